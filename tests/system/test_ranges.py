"""A number is in its range, or one line says which can be."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import MiniloraError
from minilora.system.ranges import SEED, number, whole

SHARE = number(0, 1)
RATE = number(0, 100, above=True, such="1e-3")
HEAT = number(0.001, 1000, zero=True)


@given(st.integers())
def test_whole_numbers(value):
    numbers = whole(1, 1000)
    if 1 <= value <= 1000:
        assert numbers.parse(str(value), "--n") == value
    else:
        with pytest.raises(
            MiniloraError, match=r"^--n is .*; give a whole number from 1 to 1,000$"
        ):
            numbers.parse(str(value), "--n")


@given(st.floats())
def test_numbers(value):
    for numbers, holds in (
        (SHARE, 0 <= value <= 1),
        (RATE, 0 < value <= 100),
        (HEAT, value == 0 or 0.001 <= value <= 1000),
    ):
        assert numbers.holds(value) == holds
        if holds:
            assert numbers.parse(repr(value), "--x") == value
        else:
            with pytest.raises(MiniloraError, match="^--x is .*; give .*a number "):
                numbers.parse(repr(value), "--x")


@pytest.mark.parametrize("text", ["", "x", "1.5", "nan", "1e3", "9" * 5000, "-" + "9" * 30, "²"])
def test_what_is_no_whole_number_is_told_shortly(text):
    with pytest.raises(MiniloraError) as told:
        SEED.parse(text, "--seed")
    assert len(str(told.value)) < 200 and "give a whole number from 0 to 9,223,372,036" in str(
        told.value
    )


@pytest.mark.parametrize("value", [True, "1", None, 1.0, 10**400, math.nan])
def test_what_is_given_in_python_is_looked_at_as_well(value):
    with pytest.raises(MiniloraError, match="rank is .*; give a whole number"):
        whole(1, 9).require(value, "rank")


def test_the_ends_are_told():
    assert SHARE.told() == "a number from 0 to 1"
    assert RATE.told() == "a number above 0, at most 100, such as 1e-3"
    assert HEAT.told() == "0, or a number from 0.001 to 1,000"

"""The numbers behind the sliders of lessons 04 and 05."""

import math

import numpy as np
import pytest

from minilora import numerics
from minilora.explore import bits, formats


def flags(code: int) -> dict:
    return {f"b{place}": code >> place & 1 for place in range(8)}


@pytest.mark.parametrize("exponent", range(2, 7))
def test_flipped_bits_give_the_formats_number(exponent):
    fmt = numerics.get(f"e{exponent}m{7 - exponent}")
    values = np.array([bits.compute(exponent, **flags(code))["value"] for code in range(256)])
    np.testing.assert_array_equal(values, numerics.decode(np.arange(256), fmt))


@pytest.mark.parametrize("code, told", [
    (0b0_1000_101, "(1 + 5/8) · 2^(8 − 7) = 3.25"), (0b1_0000_011, "−3/8 · 2^−6 = −0.00585938 (field 0: subnormal, no hidden 1)"),
    (0b1_1111_000, "−infinity"), (0b0_1111_001, "NaN, not a number"),
])
def test_a_pattern_is_told_as_the_formula_that_gives_it(code, told):
    found = bits.compute(4, **flags(code))
    assert bits.told(found) == told and told in bits.render(found)[0]


def test_eight_bits_count_their_numbers():
    assert len(bits.positives(4)) == 2**7 - 1 - 8  # all positive patterns but the highest field's eight


def test_pi_in_the_formats_that_have_a_name():
    assert {e_m: formats.compute(*e_m)["pi"] for e_m in ((5, 10), (8, 7), (8, 23))} == {(5, 10): 3.140625, (8, 7): 3.140625, (8, 23): float(np.float32(math.pi))}
    assert [formats.compute(e, m)["known"] for e, m in ((5, 10), (8, 7), (8, 23), (4, 3))] == ["fp16", "bf16", "fp32", ""]


def test_the_ruler_has_every_number_of_the_format():
    found = formats.compute(5, 10)
    every = np.unique(numerics.decode(np.arange(2**15), "fp16"))
    assert np.array_equal(found["ticks"], every[(every >= 3) & (every <= 3.3)]) and found["count"] == len(found["ticks"])


@pytest.mark.parametrize("exponent", range(2, 9))
def test_pi_stays_on_the_ruler_in_every_format(exponent):
    assert {3.0 <= formats.compute(exponent, mantissa)["pi"] <= 3.3 for mantissa in range(1, 24)} == {True}

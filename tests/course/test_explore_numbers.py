"""The numbers behind the sliders of lessons 04 and 05."""

import math

import numpy as np
import pytest

from minilora import numerics
from minilora.course.explore import bits, blocks, formats
from minilora.quantize import codebooks, quantize


def flags(code: int) -> dict:
    return {f"b{place}": code >> place & 1 for place in range(8)}


@pytest.mark.parametrize("exponent", range(2, 7))
def test_flipped_bits_give_the_formats_number(exponent):
    fmt = numerics.get(f"e{exponent}m{7 - exponent}")
    values = np.array([bits.compute(exponent, **flags(code))["value"] for code in range(256)])
    np.testing.assert_array_equal(values, numerics.decode(np.arange(256), fmt))


@pytest.mark.parametrize(
    "code, told",
    [
        (0b0_1000_101, "(1 + 5/8) · 2^(8 − 7) = 3.25"),
        (0b1_0000_011, "−3/8 · 2^−6 = −0.00585938 (field 0: subnormal, no hidden 1)"),
        (0b1_1111_000, "−infinity"),
        (0b0_1111_001, "NaN, not a number"),
    ],
)
def test_a_pattern_is_told_as_the_formula_that_gives_it(code, told):
    found = bits.compute(4, **flags(code))
    assert bits.told(found) == told and told in bits.render(found)[0]


def test_eight_bits_count_their_numbers():
    # all positive patterns but the highest field's eight
    assert len(bits.positives(4)) == 2**7 - 1 - 8


def test_pi_in_the_formats_that_have_a_name():
    assert {e_m: formats.compute(*e_m)["pi"] for e_m in ((5, 10), (8, 7), (8, 23))} == {
        (5, 10): 3.140625,
        (8, 7): 3.140625,
        (8, 23): float(np.float32(math.pi)),
    }
    assert [formats.compute(e, m)["known"] for e, m in ((5, 10), (8, 7), (8, 23), (4, 3))] == [
        "fp16",
        "bf16",
        "fp32",
        "",
    ]


def test_the_ruler_has_every_number_of_the_format():
    found = formats.compute(5, 10)
    every = np.unique(numerics.decode(np.arange(2**15), "fp16"))
    assert np.array_equal(found["ticks"], every[(every >= 3) & (every <= 3.3)]) and found[
        "count"
    ] == len(found["ticks"])


@pytest.mark.parametrize("exponent", range(2, 9))
def test_pi_stays_on_the_ruler_in_every_format(exponent):
    assert {
        3.0 <= formats.compute(exponent, mantissa)["pi"] <= 3.3 for mantissa in range(1, 24)
    } == {True}


def test_four_bits_of_the_normal_construction_are_nf4():
    """The reference was computed with seven digits of the outermost probability, so they agree to
    about as many.
    """
    assert (
        np.abs(blocks.normal_levels(4, blocks.outermost(4)) - codebooks.nf4_levels()).max() < 1e-6
    )
    for b in range(2, 9):
        levels = blocks.normal_levels(b, blocks.outermost(b))
        assert (
            len(np.unique(levels)) == 2**b
            and 0.0 in levels
            and (levels[0], levels[-1]) == (-1.0, 1.0)
        )


@pytest.mark.parametrize("code, name", [("int", "int3"), ("zero point", "uint3")])
def test_the_error_shown_is_that_of_the_packages_codes(code, name):
    W = blocks.weights()
    gone, stored = blocks.error(code, 3, 32)
    q = quantize(W, name, 32)
    assert gone == pytest.approx(np.linalg.norm(q.dequantize() - W) / np.linalg.norm(W), rel=1e-4)
    assert stored == q.bits_per_parameter == 3 + (32 if code == "int" else 40) / 32


def test_a_code_book_of_ones_own_is_not_counted_with_every_matrix():
    assert blocks.error("normal float", 4, 64)[1] == 4.5
    assert blocks.error("normal float", 4, 64)[0] == pytest.approx(
        blocks.error("int", 4, 64)[0], rel=0.3
    )


def test_the_histogram_holds_every_weight():
    assert blocks.histogram(64).sum() == pytest.approx(1.0)
    assert "Of the three codes" in blocks.render(blocks.compute("int", 2, 16))[0]

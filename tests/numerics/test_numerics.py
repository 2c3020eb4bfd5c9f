"""numerics against NumPy's and torch's casts, bit for bit, and against exact fractions where no
cast exists.
"""

import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import numerics
from minilora.errors import MiniloraError
from minilora.numerics import FORMATS, Format, Integer

pytestmark = pytest.mark.parity  # beside the library that people use

INF, NAN = math.inf, math.nan
TORCH = {
    "fp64": (torch.float64, torch.int64),
    "fp32": (torch.float32, torch.int32),
    "bf16": (torch.bfloat16, torch.int16),
    "fp16": (torch.float16, torch.int16),
    "fp8_e5m2": (torch.float8_e5m2, torch.uint8),
    "fp8_e4m3": (torch.float8_e4m3fn, torch.uint8),
}
# torch 2.13 saturates e4m3 where earlier versions gave NaN: ask the one at hand.
SATURATES = bool(torch.tensor([1e9] * 64).to(torch.float8_e4m3fn).float()[0] == 448)
E4M3 = replace(FORMATS["fp8_e4m3"], saturating=SATURATES)


def torch_codes(x32, name):
    """The reference: torch's cast of float32 (its casts of float64 round twice), as unsigned
    patterns.
    """
    kind, view = TORCH[name]
    width = numerics.get(name).bits
    return torch.from_numpy(x32).to(kind).view(view).numpy().astype(np.int64) & (2**width - 1)


def torch_values(name):
    """What torch decodes from every code of a format of at most 16 bits."""
    kind, view = TORCH[name]
    width = numerics.get(name).bits
    unsigned = np.arange(2**width, dtype=np.uint16)
    patterns = unsigned.astype(np.uint8) if width == 8 else unsigned.view(np.int16)
    return torch.from_numpy(patterns).view(kind).double().numpy()


def random_float32(n=100_000, seed=0):
    """Random bit patterns, so that every exponent occurs, with subnormals, infinities and NaN."""
    return np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32).view(np.float32)


def edge_values(fmt):
    """Zeros, the ends of the range, and each value, midpoint and neighbour of a midpoint, up to
    4,000 values of the format.
    """
    fmt = numerics.get(fmt)
    codes = np.unique(np.linspace(0, fmt.max_code, 4000, dtype=np.int64))
    low = numerics.decode(codes, fmt)
    high = np.append(
        numerics.decode(np.minimum(codes + 1, fmt.max_code)[:-1], fmt), 2 * fmt.max - low[-2]
    )
    middle = low / 2 + high / 2
    tiny = np.array(
        [0.0, fmt.smallest_subnormal / 2, fmt.smallest_normal, fmt.max, 2.0 * fmt.max, 5e-324, INF]
    )
    positive = np.concatenate(
        [low, middle, np.nextafter(middle, INF), np.nextafter(middle, 0), tiny]
    )
    return np.concatenate([positive, -positive])


def same_codes(codes, reference, fmt):
    """Equal patterns; NaN of any payload equals NaN."""
    codes, reference = np.asarray(codes, np.int64), np.asarray(reference, np.int64)
    both_nan = np.isnan(numerics.decode(codes, fmt)) & np.isnan(numerics.decode(reference, fmt))
    np.testing.assert_array_equal(np.where(both_nan, 0, codes), np.where(both_nan, 0, reference))


def same_bits(ours, reference):
    """Equal as float64 patterns (so −0.0 is not 0.0), NaN of any payload equal."""
    ours, reference = np.float64(ours), np.float64(reference)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(reference))
    number = ~np.isnan(ours)
    np.testing.assert_array_equal(ours[number].view(np.int64), reference[number].view(np.int64))


# ---- against NumPy and torch, code by code


def test_decode_all_codes():
    for name in ("fp16", "bf16", "fp8_e5m2", "fp8_e4m3"):
        same_bits(numerics.decode(np.arange(2 ** FORMATS[name].bits), name), torch_values(name))


def test_encode_against_numpy():
    x32 = random_float32()
    with np.errstate(all="ignore"):
        x64 = np.random.default_rng(1).integers(0, 2**64, 50_000, dtype=np.uint64).view(np.float64)
        x64 = np.concatenate(
            [x64, x32.astype(np.float64), edge_values("fp32"), edge_values("fp16")]
        )
        same_codes(numerics.encode(x64, "fp16"), x64.astype(np.float16).view(np.uint16), "fp16")
        same_codes(numerics.encode(x64, "fp32"), x64.astype(np.float32).view(np.uint32), "fp32")
        same_bits(numerics.decode(numerics.encode(x64, "fp64"), "fp64"), x64)


def test_encode_against_torch():
    x32 = np.concatenate(
        [random_float32(), np.array([0.0, -0.0, INF, -INF, NAN, 464, 464.1, 480, -1e9], np.float32)]
    )
    for name in ("bf16", "fp16", "fp8_e5m2", "fp8_e4m3"):
        with np.errstate(over="ignore"):
            x = np.concatenate(
                [
                    x32,
                    edge_values(name).astype(np.float32),
                    torch_values("fp16").astype(np.float32),
                ]
            )
        fmt = E4M3 if name == "fp8_e4m3" else name
        same_codes(numerics.encode(x, fmt), torch_codes(x, name), name)


def test_limits():
    for name, (kind, _) in TORCH.items():
        ours, theirs = numerics.get(name), torch.finfo(kind)
        assert (ours.max, ours.min, ours.smallest_normal, ours.epsilon) == (
            theirs.max,
            theirs.min,
            theirs.tiny,
            theirs.eps,
        )
        assert ours.bits == theirs.bits
    for kind, name in ((np.float16, "fp16"), (np.float32, "fp32"), (np.float64, "fp64")):
        assert numerics.get(name).smallest_subnormal == float(np.finfo(kind).smallest_subnormal)


def test_next_up():
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    for x, name in ((every, "fp16"), (random_float32(20_000), "fp32")):
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(
                numerics.next_up(x, name), np.nextafter(x, x.dtype.type(INF)).astype(np.float64)
            )
    between = numerics.next_up([1.01, -1.01, 447, 448, 1e-9, -1e-9, -INF, 449, NAN], "fp8_e4m3")
    np.testing.assert_array_equal(between, [1.125, -1, 448, INF, 2**-9, 0, -448, INF, NAN])


def test_integers():
    x = np.concatenate([np.arange(-300, 300) / 2, [-1e30, 1e30, -INF, INF, -0.0]])
    for width in (2, 3, 4, 8):
        expected = np.clip(np.round(x), -(2 ** (width - 1)), 2 ** (width - 1) - 1)
        np.testing.assert_array_equal(numerics.round_to(x, f"int{width}"), expected)
    inside = x[np.abs(x) < 127]
    np.testing.assert_array_equal(
        numerics.encode(inside, "int8").view(np.int8), torch.tensor(inside).round().to(torch.int8)
    )
    np.testing.assert_array_equal(
        numerics.next_up([-200, -1.5, 0, 126, 127, -0.25], "int8"), [-128, -1, 1, 127, INF, 0]
    )


def test_bits():
    assert numerics.bits(1, "fp16") == "0 01111 0000000000"
    assert numerics.bits(-0.15625, "fp32") == "1 01111100 01000000000000000000000"
    assert numerics.bits(-0.0, "fp4") == "1 00 0"
    assert numerics.bits(-3, "int4") == "1 101"
    powers = Format("powers", 2, 0, has_inf=False, has_nan=False)
    # 3 is a tie
    assert numerics.bits([[1, 2], [3, 4]], powers) == [["0 01", "0 10"], ["0 11", "0 11"]]


# ---- formats that no library casts to: exact fractions are the reference


def exact_value(code, fmt):
    """A positive code's value from the definition, as a fraction."""
    field, mantissa = code >> fmt.mantissa, code & (2**fmt.mantissa - 1)
    fraction = Fraction(mantissa, 2**fmt.mantissa) + (field > 0)
    return fraction * Fraction(2) ** (max(field, 1) - fmt.bias)


def exact_code(x, fmt):
    """The nearest code by comparing distances; one step beyond the maximum stands for overflow.

    A tie goes to the even significand, and to the larger one where both are odd (IEEE 754-2019,
    4.3.1): without a mantissa every number but 0 is 1·2^k.
    """
    values = [exact_value(code, fmt) for code in range(fmt.max_code + 1)]
    beyond = exact_value(fmt.max_code + 1, fmt)
    size = abs(Fraction(x))
    odd = [code % 2 if fmt.mantissa else code > 0 for code in range(len(values) + 1)]
    nearest = min(
        range(len(values) + 1), key=lambda c: (abs((values + [beyond])[c] - size), odd[c], -c)
    )
    if nearest > fmt.max_code:
        nearest = (
            fmt.max_code if fmt.saturating or not fmt.has_nan else fmt.inf_code or fmt.nan_code
        )
    return nearest | (math.copysign(1, x) < 0) << (fmt.bits - 1)


@st.composite
def small_formats(draw):
    exponent, mantissa = draw(st.integers(1, 4)), draw(st.integers(0, 4))
    bias = draw(st.one_of(st.none(), st.integers(-3, 12)))
    has_nan = draw(st.booleans()) and exponent + mantissa > 1
    has_inf = draw(st.booleans()) and has_nan and mantissa > 0
    return Format("drawn", exponent, mantissa, bias, has_inf, has_nan, draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(small_formats(), st.data())
def test_any_small_format_equals_exact_fractions(fmt, data):
    codes = range(fmt.max_code + 1)
    same_bits(
        numerics.decode(np.array(codes), fmt), np.array([float(exact_value(c, fmt)) for c in codes])
    )
    every = numerics.decode(np.array(codes), fmt)
    near = st.sampled_from(list(every) + list((every[1:] + every[:-1]) / 2))
    wide = st.floats(-2.5 * fmt.max, 2.5 * fmt.max, allow_nan=False)
    xs = data.draw(st.lists(st.one_of(near, near.map(lambda v: -v), wide), min_size=1, max_size=8))
    assert numerics.encode(xs, fmt).tolist() == [exact_code(x, fmt) for x in xs]


@pytest.mark.parametrize(
    "fmt",
    [
        *FORMATS.values(),
        Format("e3m4", 3, 4),
        Format("e1m2", 1, 2, has_inf=False),
        Integer("int3", 3),
    ],
)
def test_every_code_survives_the_round_trip(fmt):
    codes = (
        np.arange(2**fmt.bits)
        if fmt.bits <= 16
        else np.random.default_rng(2).integers(0, 2**fmt.bits, 50_000, dtype=np.uint64)
    )
    values = numerics.decode(codes, fmt)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(numerics.encode(values[number], fmt), codes[number])
    assert (
        values[np.isfinite(values)].max() <= fmt.max
        and values[np.isfinite(values)].min() >= fmt.min
    )


def test_tf32_equals_rounding_the_low_13_bits_of_float32():
    x = random_float32()
    x = x[np.isfinite(x)]
    pattern = x.view(np.uint32).astype(np.uint64)
    half_to_even = (pattern >> np.uint64(13)) & np.uint64(1)
    expected = ((pattern + np.uint64(0xFFF) + half_to_even) >> np.uint64(13)).astype(np.uint32)
    np.testing.assert_array_equal(numerics.encode(x, "tf32"), expected)


def test_fp4_is_the_table_of_the_open_compute_project():
    np.testing.assert_array_equal(
        numerics.decode(np.arange(8), "fp4"), [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    )
    np.testing.assert_array_equal(
        numerics.round_to([0.25, 0.75, 2.5, 3.5, 5, 1e9, -INF], "fp4"), [0, 1, 2, 4, 4, 6, -6]
    )


def test_pi_in_every_format():
    expected = {
        "fp32": 3.1415927410125732,
        "bf16": 3.140625,
        "fp16": 3.140625,
        "fp8_e4m3": 3.25,
        "fp8_e5m2": 3.0,
        "int8": 3.0,
    }
    assert {name: float(numerics.round_to(math.pi, name)) for name in expected} == expected


def test_saturating_or_not():
    strict, kind = (
        replace(FORMATS["fp8_e4m3"], saturating=False),
        replace(FORMATS["fp16"], saturating=True),
    )
    np.testing.assert_array_equal(numerics.round_to([464, 465, -INF], strict), [448, NAN, NAN])
    np.testing.assert_array_equal(numerics.round_to([65520, -INF], kind), [65504, -65504])


def test_one_rounding_where_torch_rounds_twice():
    # just above the tie between two bf16 values; as float32 it is the tie
    x = 1 + 2.0**-8 + 2.0**-40
    assert numerics.round_to(x, "bf16") == 1 + 2**-7
    assert torch.tensor(x, dtype=torch.float64).to(torch.bfloat16).item() == 1.0


@pytest.mark.parametrize(
    "kind", [torch.bfloat16, torch.float16, torch.float8_e5m2, torch.float64, torch.int8]
)
def test_tensors_of_any_type_and_any_shape(kind):
    x = torch.tensor([[1.0, -2.0, 3.0]]).to(kind)
    assert numerics.encode(x, "fp32").shape == (1, 3)
    np.testing.assert_array_equal(numerics.round_to(x, "fp32"), [[1, -2, 3]])
    assert numerics.encode(np.empty((0, 3)), "fp16").shape == (0, 3)
    assert numerics.decode(np.empty((2, 0), np.uint8), "int8").shape == (2, 0)
    assert (
        numerics.encode(1, "fp16").dtype == np.uint16
        and numerics.encode(1, "tf32").dtype == np.uint32
    )


def test_it_stands_on_numpy_alone():
    code = "import sys, minilora.numerics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: numerics.encode(1, "fp17"), "fp17"),
        (lambda: numerics.encode([1, NAN], "int8"), "no code for NaN; replace the 1 NaN"),
        (lambda: numerics.encode(NAN, "fp4"), "no code for NaN"),
        (lambda: numerics.decode([256], "int8"), "code 256"),
        (lambda: numerics.decode([-1], "fp16"), "code -1"),
        (lambda: numerics.decode([0.5], "fp16"), "encode"),
        (lambda: numerics.get("int1"), "2 to 53"),
        (lambda: numerics.get("e12m3"), "1 to 11"),
        (lambda: numerics.get("e4m0"), "mantissa bit"),
        (lambda: Format("far", 11, 52, bias=2000), "beyond fp64"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, says):
    with pytest.raises(MiniloraError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)

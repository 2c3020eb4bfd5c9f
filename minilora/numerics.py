"""Number formats down to the bit: encode, decode and round to any (sign, exponent, mantissa)
format, and to intN.

What it replaces: NumPy's and torch's casts (`x.astype(np.float16)`, `x.to(torch.float8_e4m3fn)`),
whose rounding happens out of sight, and which exist for some formats only. Here any split of the
bits can be tried.
How it works: with E the exponent of |x| and M mantissa bits, the spacing of the numbers around x is
q = 2^(E−M), where E is not allowed below 1 − bias: that floor is all there is to subnormals. So
n = rint(|x| / q), half to even, is the significand with its leading 1, and

        code = (E − (1 − bias))·2^M + n

is the format's bit pattern: the leading 1 of a normal number counts the exponent field up by one, a
subnormal has none and stays in field 0, and a significand that rounds up to the next power of two
carries into the exponent by itself. Only codes past the largest number (overflow), infinities and
NaN remain to be handled. x is a float64, in which |x| / q is exact, so every format is reached with
exactly one rounding.
What it leaves out: arithmetic (round the operands, compute in float64, round the result),
stochastic rounding, NaN payloads, formats wider than float64, the …fnuz variants, the exponent-only
e8m0, and bitsandbytes' FP4: its exponent field counts backwards (01, 10, 11 stand for 8, 4, 2), so
it is a code book and lives in `quantize`.
Where numerics differ: nowhere for numbers, infinities and signed zeros. A NaN comes out as one
fixed pattern, whatever its payload was. torch casts float64 to a 16- or 8-bit type by way of
float32 and so rounds twice; here it is once. Overflow in fp8 e4m3 saturates to ±448, infinities
included, as in torch 2.13; `replace(fmt, saturating=False)` gives NaN, as in older versions of
torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .errors import MiniloraError


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: one sign bit, `exponent` bits, `mantissa` bits.

    bias: a number with exponent field f > 0 and mantissa m is (1 + m/2^M)·2^(f − bias); default
    2^(exponent−1) − 1. has_inf: the highest exponent field is set aside for infinity and NaN, as in
    IEEE 754. has_nan: without has_inf, the code with all bits set is the only NaN (the "fn"
    formats: finite, with NaN). saturating: overflow gives the largest number instead of infinity or
    NaN. Formats with neither always saturate.
    """

    name: str
    exponent: int
    mantissa: int
    bias: int | None = None
    has_inf: bool = True
    has_nan: bool = True
    saturating: bool = False

    def __post_init__(self):
        if self.bias is None:
            object.__setattr__(self, "bias", 2 ** (self.exponent - 1) - 1)
        if not (1 <= self.exponent <= 11 and 0 <= self.mantissa <= 52):
            raise MiniloraError(
                f"format {self.name!r} has {self.exponent} exponent and {self.mantissa} "
                "mantissa bits; "
                "choose 1 to 11 and 0 to 52, the widths of fp64"
            )
        if self.has_inf and not (self.has_nan and self.mantissa):
            raise MiniloraError(
                f"format {self.name!r} cannot hold both infinity and NaN; give it a mantissa "
                "bit and has_nan, or has_inf=False"
            )
        if (
            1 - self.bias - self.mantissa < -1074
            or (self.max_code >> self.mantissa) - self.bias > 1023
        ):
            raise MiniloraError(
                f"format {self.name!r} with bias {self.bias} reaches beyond fp64; choose a "
                "bias closer to 0"
            )

    @property
    def bits(self) -> int:
        """Width in bits."""
        return 1 + self.exponent + self.mantissa

    @property
    def inf_code(self) -> int | None:
        """Bit pattern of +infinity, or None."""
        return (2**self.exponent - 1) << self.mantissa if self.has_inf else None

    @property
    def nan_code(self) -> int | None:
        """The NaN that `encode` writes: all ones in fp8, as torch does, else the mantissa's first
        bit set (a "quiet" NaN).
        """
        if self.has_inf and self.bits > 8:
            return self.inf_code | 1 << (self.mantissa - 1)
        return 2 ** (self.bits - 1) - 1 if self.has_nan else None

    @property
    def max_code(self) -> int:
        """Bit pattern of the largest finite number."""
        return self.inf_code - 1 if self.has_inf else 2 ** (self.bits - 1) - 1 - self.has_nan

    @property
    def max(self) -> float:
        """Largest finite number."""
        return float(decode(self.max_code, self))

    @property
    def min(self) -> float:
        """Lowest finite number."""
        return -self.max

    @property
    def smallest_normal(self) -> float:
        """Smallest positive number with the full M bits of precision: 2^(1 − bias)."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive number: 2^(1 − bias − M)."""
        return float(np.ldexp(1.0, 1 - self.bias - self.mantissa))

    @property
    def epsilon(self) -> float:
        """Distance from 1 to the next number, relative to 1: 2^−M."""
        return 2.0**-self.mantissa


@dataclass(frozen=True)
class Integer:
    """A signed integer of `bits` bits in two's complement; rounds half to even and saturates. There
    is no NaN.
    """

    name: str
    bits: int

    def __post_init__(self):
        if not 2 <= self.bits <= 53:
            raise MiniloraError(
                f"format {self.name!r} has {self.bits} bits; choose 2 to 53, which fp64 holds "
                "exactly"
            )

    @property
    def max(self) -> float:
        """2^(bits−1) − 1."""
        return 2.0 ** (self.bits - 1) - 1

    @property
    def min(self) -> float:
        """−2^(bits−1): one further from 0 than `max`."""
        return -(2.0 ** (self.bits - 1))

    smallest_normal = smallest_subnormal = epsilon = 1.0


FORMATS = {
    "fp64": Format("fp64", 11, 52),
    "fp32": Format("fp32", 8, 23),
    "tf32": Format("tf32", 8, 10),
    "bf16": Format("bf16", 8, 7),
    "fp16": Format("fp16", 5, 10),
    "fp8_e5m2": Format("fp8_e5m2", 5, 2),
    "fp8_e4m3": Format("fp8_e4m3", 4, 3, has_inf=False, saturating=True),
    "fp4": Format("fp4", 2, 1, has_inf=False, has_nan=False),
    "int8": Integer("int8", 8),
    "int4": Integer("int4", 4),
}


def get(fmt: str | Format | Integer) -> Format | Integer:
    """A format by name: one of FORMATS, `intN`, or `eEmM` for an IEEE-like format of E exponent and
    M mantissa bits.
    """
    if isinstance(fmt, (Format, Integer)):
        return fmt
    if fmt in FORMATS:
        return FORMATS[fmt]
    if match := re.fullmatch(r"int(\d{1,3})", fmt):
        return Integer(fmt, int(match[1]))
    if match := re.fullmatch(r"e(\d{1,2})m(\d{1,2})", fmt):
        return Format(fmt, int(match[1]), int(match[2]))
    raise MiniloraError(
        f"no number format {fmt!r}; choose one of {', '.join(FORMATS)}, intN, or eEmM such as e3m4"
    )


def _float64(x) -> np.ndarray:
    """Anything number-like as float64, which holds every value of every format here. torch tensors
    of any type too.
    """
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return np.asarray(x, dtype=np.float64)


def _code_type(fmt) -> type:
    return next(
        t for t in (np.uint8, np.uint16, np.uint32, np.uint64) if np.iinfo(t).bits >= fmt.bits
    )


def _check_no_nan(x: np.ndarray, fmt) -> None:
    if np.isnan(x).any():
        raise MiniloraError(
            f"{fmt.name} has no code for NaN; replace the {int(np.isnan(x).sum())} NaN in the "
            "input first"
        )


def encode(x, fmt) -> np.ndarray:
    """Bit patterns of the values of `fmt` nearest to x, in the smallest unsigned type that holds
    them.

    A tie goes to the even significand; where none is even (no mantissa bits) away from 0, as IEEE
    754-2019, 4.3.1, has it. x: array, tensor or number of any shape. Raises MiniloraError for NaN
    where the format has none.
    """
    x, fmt = _float64(x), get(fmt)
    if isinstance(fmt, Integer):
        _check_no_nan(x, fmt)
        whole = np.clip(np.rint(x), fmt.min, fmt.max).astype(np.int64)
        return (whole & (2**fmt.bits - 1)).astype(_code_type(fmt))

    size, lowest = np.abs(x), 1 - fmt.bias
    finite = np.where(np.isfinite(size), size, 0.0)
    # frexp gives |x| = f·2^e with f in [½, 1)
    exponent = np.maximum(np.frexp(finite)[1] - 1, lowest)
    exponent = np.where(finite == 0, lowest, exponent).astype(np.int64)
    significand = np.rint(np.ldexp(finite, fmt.mantissa - exponent)).astype(np.int64)
    code = (exponent - lowest << fmt.mantissa) + significand

    overflow = (code > fmt.max_code) | np.isinf(x)
    saturates = fmt.saturating or not fmt.has_nan
    code = np.where(overflow, fmt.max_code if saturates else fmt.inf_code or fmt.nan_code, code)
    if fmt.has_nan:
        code = np.where(np.isnan(x), fmt.nan_code, code)
    else:
        _check_no_nan(x, fmt)
    sign = np.signbit(x).astype(np.uint64) << np.uint64(fmt.bits - 1)
    return (code.astype(np.uint64) | sign).astype(_code_type(fmt))


def _check_codes(codes, fmt) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise MiniloraError(
            f"codes are integers, not {codes.dtype}; did you mean encode(x, {fmt.name!r})?"
        )
    if codes.size and (codes.min() < 0 or int(codes.max()) >= 2**fmt.bits):
        worst = int(codes.min()) if codes.min() < 0 else int(codes.max())
        raise MiniloraError(
            f"code {worst} is not a {fmt.bits}-bit pattern of {fmt.name}; codes run from 0 to "
            f"{2**fmt.bits - 1}"
        )
    return codes.astype(np.uint64)


def fields(codes, fmt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sign, exponent field and mantissa of each code, as integers. intN has no exponent field: 0
    there.
    """
    fmt = get(fmt)
    codes = _check_codes(codes, fmt)
    exponent_bits, mantissa_bits = (
        (0, fmt.bits - 1) if isinstance(fmt, Integer) else (fmt.exponent, fmt.mantissa)
    )
    sign = codes >> np.uint64(fmt.bits - 1)
    exponent = codes >> np.uint64(mantissa_bits) & np.uint64(2**exponent_bits - 1)
    mantissa = codes & np.uint64(2**mantissa_bits - 1)
    return sign.astype(np.int64), exponent.astype(np.int64), mantissa.astype(np.int64)


def decode(codes, fmt) -> np.ndarray:
    """The float64 values that the bit patterns stand for, exactly."""
    fmt = get(fmt)
    sign, exponent, mantissa = fields(codes, fmt)
    if isinstance(fmt, Integer):
        return (mantissa - (sign << (fmt.bits - 1))).astype(np.float64)

    # the leading 1 that is not stored; subnormals have none
    hidden = np.where(exponent > 0, 1 << fmt.mantissa, 0)
    with np.errstate(over="ignore"):  # the patterns above max_code, replaced below
        size = np.ldexp(
            (hidden + mantissa).astype(np.float64),
            np.maximum(exponent, 1) - fmt.bias - fmt.mantissa,
        )
    code = (exponent << fmt.mantissa) + mantissa
    size = np.where(code > fmt.max_code, np.nan, size)
    if fmt.has_inf:
        size = np.where(code == fmt.inf_code, np.inf, size)
    return np.where(sign == 1, -size, size)


def round_to(x, fmt) -> np.ndarray:
    """x as `fmt` would hold it, in float64: decode(encode(x))."""
    return decode(encode(x, fmt), fmt)


def bits(x, fmt):
    """The bit pattern of x as text, `sign exponent mantissa`: bits(1, "fp16") is "0 01111
    0000000000".

    One string for a number; a list of strings, nested as x is, for an array. intN: `sign rest`.
    """
    fmt = get(fmt)
    widths = (1, fmt.bits - 1) if isinstance(fmt, Integer) else (1, fmt.exponent, fmt.mantissa)
    codes = encode(x, fmt)

    def text(code):
        if isinstance(code, list):
            return [text(one) for one in code]
        digits, ends = f"{code:0{fmt.bits}b}", np.cumsum(widths)
        return " ".join(digits[end - width : end] for end, width in zip(ends, widths) if width)

    return text(codes.tolist())


def next_up(x, fmt) -> np.ndarray:
    """The smallest value of `fmt` above x, in float64; infinity where there is none, NaN for
    NaN.
    """
    x, fmt = _float64(x), get(fmt)
    if isinstance(fmt, Integer):
        above = np.maximum(np.floor(x) + 1, fmt.min)
        return np.where(above > fmt.max, np.inf, above)
    here = np.clip(x, fmt.min, fmt.max)  # without infinities; NaN passes through
    here = np.where(np.isnan(here), 0.0, here)
    code = encode(here, fmt).astype(np.uint64)
    top = np.uint64(1 << (fmt.bits - 1))
    size = (code & (top - np.uint64(1))).astype(np.int64)
    # patterns as a ladder of integers in the order of the values
    step = np.where(code >= top, -size, size)
    step = step + (decode(code, fmt) <= here)
    above = decode(np.where(step < 0, -step, np.minimum(step, fmt.max_code)).astype(np.uint64), fmt)
    above = np.where(step < 0, -above, above)
    above = np.where((step > fmt.max_code) | (x >= fmt.max), np.inf, above)
    above = np.where(x < fmt.min, fmt.min, above)
    return np.where(np.isnan(x), np.nan, above)

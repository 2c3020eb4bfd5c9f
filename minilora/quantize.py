"""Quantization: a tensor as small integers, one scale for each block of them, and a code book that says what they mean.

What it replaces: `quantize_4bit`, `dequantize_4bit` and their `QuantState` in bitsandbytes, without CUDA or C++.
How it works: the flattened tensor is cut into blocks; each block is divided by its largest magnitude (absmax), and each
number replaced by the index of the nearest level of a code book (`codebooks`). Two 4-bit indices share a byte, the first
one in the high half. Double quantization stores the absmax themselves in 8 bits (QLoRA, section 3).
What it leaves out: calibration with data (GPTQ, AWQ) and formats with two-dimensional tiles.
Where numerics differ: nowhere for `nf4` and `fp4`: bytes and scales equal bitsandbytes' on a CPU bit for bit, its quirks
included: whole blocks are *multiplied* by 1/absmax, the tail block is *divided* by its absmax, and a tie goes to the lower
level. Decoding is level * absmax in fp32, then one rounding to the wanted type, for every shape.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass

import numpy as np

from . import codebooks
from .codebooks import CodeBook
from .errors import MiniloraError

NESTED_BLOCK = 256
SMALLEST_SCALE = np.float32(1e-38)


def is_torch(x) -> bool:
    """True for a torch tensor; never imports torch to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


# ---------------------------------------------------------------------------------------------------------------------
# The plain version: what the fast one must equal, bit for bit


def scale_plain(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers divided by the absmax of their block, and the absmax of each block. x: fp32, flat."""
    full = x.size // block * block
    absmax = np.abs(x[:full]).reshape(-1, block).max(axis=1)
    inverse = np.float32(1) / np.maximum(absmax, SMALLEST_SCALE)
    scaled = (x[:full].reshape(-1, block) * inverse[:, None]).reshape(-1)
    if full < x.size:
        last = np.maximum(np.abs(x[full:]).max(), SMALLEST_SCALE)
        absmax, scaled = np.append(absmax, last), np.append(scaled, x[full:] / last)
    return scaled, absmax


def encode_plain(x: np.ndarray, book: CodeBook, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The index of the nearest level for each number of a flat fp32 array, and the absmax of each block."""
    scaled, absmax = scale_plain(x, block)
    rank = np.searchsorted(book.thresholds, scaled, side="left")  # how many thresholds t have t < x
    return book.order[rank], absmax


def decode_plain(codes: np.ndarray, absmax: np.ndarray, book: CodeBook, block: int) -> np.ndarray:
    """level * absmax in fp32, for each index."""
    return book.levels[codes] * np.repeat(absmax, block)[: codes.size]


def pack(codes: np.ndarray, bits: int, filler: int = 0) -> np.ndarray:
    """Indices of `bits` bits side by side in bytes, the first one in the highest bits; `filler` completes the last byte."""
    codes = np.append(codes, np.full(-codes.size % (8 // math.gcd(8, bits)), filler, dtype=np.uint8))
    if bits == 8:
        return codes
    if bits == 4:
        return codes[0::2] << 4 | codes[1::2]
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :])


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack`: the first `count` indices."""
    packed = packed.reshape(-1)
    if bits == 8:
        return packed[:count]
    if bits == 4:
        return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
    ones = np.unpackbits(packed)[: count * bits].reshape(-1, bits)
    return np.packbits(ones, axis=1).reshape(-1) >> (8 - bits)


# ---------------------------------------------------------------------------------------------------------------------
# Double quantization: the absmax in 8 bits


@dataclass
class Nested:
    """How the absmax were quantized: `absmax` fp32 for each 256 of them, and the mean that was taken off before."""

    absmax: object
    offset: float
    block: int = NESTED_BLOCK


@functools.cache
def _nearest_of_65536() -> np.ndarray:
    """The dynamic code of the centre of each of 65,536 even bins over [-1, 1]: bitsandbytes' shortcut on a CPU."""
    centres = (np.arange(65536) * (2 / 65535) - 1).astype(np.float32)
    levels = codebooks.named("dynamic8").levels
    return np.array([np.abs(c - levels).argmin() for c in centres], dtype=np.uint8)


def encode_dynamic(x: np.ndarray, block: int = NESTED_BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """8-bit dynamic codes of a flat fp32 array and the absmax of each block, as bitsandbytes computes them on a CPU.

    A number gets the code of its bin's centre, which is not always the nearest (0 decodes to 2e-5); a zero block gets 0.
    """
    padded = np.append(x, np.zeros(-x.size % block, dtype=np.float32)).reshape(-1, block)
    absmax = np.abs(padded).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = padded * (np.float32(1) / absmax)[:, None]
        bins = np.where(absmax[:, None] > 0, (scaled + np.float32(1)) * np.float32(32767.5) + np.float32(0.5), 0)
    codes = np.where(absmax[:, None] > 0, _nearest_of_65536()[np.clip(bins, 0, 65535).astype(np.int64)], 0)
    return codes.reshape(-1)[: x.size].astype(np.uint8), absmax


def _mean(absmax: np.ndarray) -> np.float32:
    """The mean as torch sums it, for the last bit to agree with the reference."""
    import torch

    return np.float32(torch.from_numpy(absmax).mean().item())


# ---------------------------------------------------------------------------------------------------------------------
# What callers use


@dataclass
class Quantized:
    """A quantized tensor. `packed` uint8 (bytes, 1); `absmax` fp32 per block, or uint8 codes of it if `nested` is given.

    `shape` and `dtype` are those of the tensor that was quantized; arrays are NumPy's or torch's as the input was.
    """

    packed: object
    absmax: object
    book: CodeBook
    block: int
    shape: tuple[int, ...]
    dtype: object
    nested: Nested | None = None

    @property
    def code(self) -> str:
        return self.book.name

    @property
    def size(self) -> int:
        """How many numbers were quantized."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored: indices, scales, and the constants of the scales."""
        total = _nbytes(self.packed) + _nbytes(self.absmax)
        if self.nested is not None:
            total += _nbytes(self.nested.absmax) + 4
        if self.code == "custom":
            total += self.book.levels.nbytes
        return total

    @property
    def bits_per_parameter(self) -> float:
        """Bits stored for each number, the constants included: 4.5 for NF4 in blocks of 64, 4.127 with double."""
        return 8 * self.nbytes / self.size

    def scales(self):
        """The absmax of each block in fp32, decoded if they are nested. NumPy or torch as the input was."""
        if self.nested is None:
            return self.absmax
        levels = codebooks.named("dynamic8").levels
        absmax, outer = _numpy(self.absmax), _numpy(self.nested.absmax)
        scales = decode_plain(absmax, outer, codebooks.named("dynamic8"), self.nested.block) + np.float32(self.nested.offset)
        return _like(scales, self.absmax)

    def dequantize(self, dtype=None, out=None):
        """The tensor that the indices stand for, in `dtype` (the original one if None), into `out` if given."""
        codes = unpack(_numpy(self.packed), self.book.bits, self.size)
        values = decode_plain(codes, _numpy(self.scales()), self.book, self.block).reshape(self.shape)
        values = _like(values, self.packed)
        if out is not None:
            (out.copy_(values) if is_torch(out) else np.copyto(out, values))
            return out
        dtype = dtype if dtype is not None else self.dtype
        return values.to(dtype) if is_torch(values) else values.astype(dtype)


def _nbytes(array) -> int:
    return array.numel() * array.element_size() if is_torch(array) else array.nbytes


def _numpy(array) -> np.ndarray:
    return array.detach().cpu().numpy() if is_torch(array) else array


def _like(values: np.ndarray, model):
    """`values` as NumPy or torch, on the device of `model`."""
    if not is_torch(model):
        return values
    import torch

    return torch.from_numpy(values).to(model.device)


def _flat_fp32(x) -> np.ndarray:
    if is_torch(x):
        return x.detach().float().cpu().contiguous().numpy().reshape(-1)
    return np.ascontiguousarray(x, dtype=np.float32).reshape(-1)


def quantize(x, code="nf4", block: int = 64, double: bool = False) -> Quantized:
    """Quantize an array or tensor in blocks of its flattened numbers.

    x: NumPy array or torch tensor of any shape in fp32, bf16 or fp16; code: a name of `codebooks.NAMES`, a CodeBook or
    an array of levels; block: numbers to a scale; double: quantize the scales too.
    Raises MiniloraError for an unknown code, a block below 1, an empty tensor, NaN or infinity.
    """
    book = code if isinstance(code, CodeBook) else codebooks.named(code) if isinstance(code, str) else codebooks.custom(code)
    if block < 1:
        raise MiniloraError(f"block {block} is not allowed; take a whole number of at least 1, such as 64")
    flat = _flat_fp32(x)
    if flat.size == 0:
        raise MiniloraError(f"the tensor of shape {tuple(x.shape)} is empty; there is nothing to quantize")
    if not np.isfinite(flat).all():
        raise MiniloraError("the tensor holds NaN or infinity; mend it before quantizing")
    codes, absmax = encode_plain(flat, book, block)
    packed = pack(codes, book.bits, filler=book.zero).reshape(-1, 1)
    nested = None
    if double:
        offset = _mean(absmax)
        absmax, outer = encode_dynamic(absmax - offset)
        nested = Nested(_like(outer, x), float(offset))
    return Quantized(_like(packed, x), _like(absmax, x), book, block, tuple(x.shape), x.dtype, nested)

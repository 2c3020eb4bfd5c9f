"""Zero-point quantization: unsigned integers from the smallest to the largest number of a block,
not symmetric ones.

What it replaces: `torch.quantize_per_tensor` / `quantize_per_channel` with affine schemes.
How it works: with b bits, scale = (max - min) / (2^b - 1) and zero point z = round(-min / scale),
so that the number 0 is hit exactly; q = clip(round(x / scale) + z), and x is taken for (q - z) *
scale (LLM.int8(), section 2.1; Jacob et al. 2018).
What it leaves out: integer products; observers that gather ranges over batches.
Where numerics differ: nowhere from torch's observers and kernels, which also multiply by 1 / scale
and round half to even.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import MiniloraError
from .numpy_or_torch import (
    Array,
    as_given,
    block_size,
    flat_raw,
    nbytes,
    require_finite,
    room,
    to_fp32,
    to_numpy,
    writer,
)
from .packing import pack, unpack

CODES = tuple(f"uint{bits}" for bits in range(2, 9))


@dataclass
class Affine:
    """A tensor quantized with zero points. `packed` uint8 (bytes, 1); `scale` fp32 and `zero` uint8
    for each block.
    """

    packed: Array
    scale: Array
    zero: Array
    bits: int
    block: int
    shape: tuple[int, ...]
    dtype: object
    by_column: bool = False

    @property
    def code(self) -> str:
        return f"uint{self.bits}"

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored: indices, scales and zero points."""
        return nbytes(self.packed) + nbytes(self.scale) + nbytes(self.zero)

    @property
    def bits_per_parameter(self) -> float:
        return 8 * self.nbytes / self.size

    def dequantize(self, dtype=None, out=None):
        """(q - z) * scale in `dtype` (the original one if None), or into `out` if that is given."""
        codes = unpack(to_numpy(self.packed), self.bits, self.size).astype(np.float32)
        scale, zero = (
            np.repeat(to_numpy(each), self.block)[: self.size] for each in (self.scale, self.zero)
        )
        numbers = (codes - zero) * scale
        if self.by_column:
            numbers = np.ascontiguousarray(numbers.reshape(self.shape[::-1]).T).reshape(-1)
        values = room(out, self.shape, dtype or self.dtype, like=self.packed)
        flat, store = writer(values)
        store(0, self.size, numbers) if store else np.copyto(flat, numbers)
        return values


def quantize_affine(x, code: str = "uint8", block: int | str = 64) -> Affine:
    """Quantize with a scale and a zero point for each block. Arguments and errors are those of
    `quantize.quantize`.
    """
    if code not in CODES:
        raise MiniloraError(
            f"unknown code {code!r}; codes with a zero point are {', '.join(CODES)}"
        )
    bits = int(code[4:])
    size, by_column = block_size(x, block)
    raw = flat_raw(x.T if by_column else x)
    flat = to_fp32(raw, np.empty(raw.size, np.float32))
    starts = np.arange(0, flat.size, size)
    low = np.minimum(np.minimum.reduceat(flat, starts), np.float32(0))
    high = np.maximum(np.maximum.reduceat(flat, starts), np.float32(0))
    require_finite(low, high)
    top = 2**bits - 1
    scale = np.maximum((high - low) / np.float32(top), np.finfo(np.float32).eps)
    zero = np.clip(-np.rint(low / scale), 0, top).astype(np.uint8)
    spread = [np.repeat(each, size)[: flat.size] for each in (np.float32(1) / scale, zero)]
    codes = np.clip(np.rint(flat * spread[0]) + spread[1], 0, top).astype(np.uint8)
    packed = as_given(pack(codes, bits).reshape(-1, 1), x)
    return Affine(
        packed,
        as_given(scale, x),
        as_given(zero, x),
        bits,
        size,
        tuple(x.shape),
        x.dtype,
        by_column,
    )

"""Quantization: a tensor as small integers, one scale for each block of them, and a code book that
says what they mean.

What it replaces: `quantize_4bit`, `dequantize_4bit` and their `QuantState` in bitsandbytes, without
CUDA or C++.
How it works: the flattened tensor is cut into blocks; each block is divided by its largest
magnitude (absmax), and each number replaced by the index of the nearest level of a code book
(`codebooks`). Two 4-bit indices share a byte, the first one in the high half. Double quantization
stores the absmax themselves in 8 bits (`nested`). The arithmetic in a few lines is
`kernels/plain.py`; `kernels` has it fast, once for each kind of machine.
What it leaves out: calibration with data (GPTQ, AWQ) and formats with two-dimensional tiles.
Where numerics differ: nowhere for `nf4` and `fp4`: bytes and scales equal bitsandbytes' on a CPU
bit for bit. Decoding is level * absmax in fp32, then one rounding to the wanted type, for every
shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from . import codebooks, kernels
from .codebooks import CodeBook
from .kernels.plain import scale_plain as scale_plain
from .nested import NESTED_BLOCK as NESTED_BLOCK
from .nested import Nested as Nested
from .numpy_or_torch import Array, block_size, is_torch, nbytes, room
from .zero_point import quantize_affine


@dataclass
class Quantized:
    """A quantized tensor. `packed` uint8 (bytes, 1); `absmax` fp32 per block, or uint8 codes of it
    if `nested` is given.

    `shape` and `dtype` are those of the tensor that was quantized; arrays are NumPy's or torch's as
    the input was. `by_column`: the blocks run down the columns of a matrix instead of along its
    rows.
    """

    packed: Array
    absmax: Array
    book: CodeBook
    block: int
    shape: tuple[int, ...]
    dtype: object
    nested: Nested | None = None
    by_column: bool = False

    @property
    def code(self) -> str:
        return self.book.name

    @property
    def size(self) -> int:
        """How many numbers were quantized."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored for this tensor: indices, scales, the scales'
        constants, your own levels.
        """
        total = nbytes(self.packed) + nbytes(self.absmax)
        if self.nested is not None:
            total += nbytes(self.nested.absmax) + 4  # the offset
        return total + (self.book.levels.nbytes if self.code == "custom" else 0)

    @property
    def bits_per_parameter(self) -> float:
        """Bits stored for each number, the constants included: 4.5 for NF4 in blocks of 64, 4.127
        with double.
        """
        return 8 * self.nbytes / self.size

    def scales(self) -> Array:
        """The absmax of each block in fp32, decoded if they are nested. NumPy or torch as the input
        was.
        """
        kernel = kernels.choose(self.packed, self.book, self.block)
        return kernel.decode_scales(self.absmax, self.nested)

    def dequantize(self, dtype=None, out: Array | None = None) -> Array:
        """The tensor that the indices stand for, in `dtype` (the original one if None), or into
        `out` if that is given.

        Raises MiniloraError if `out` has another shape or is not contiguous.
        """
        if self.by_column:
            return self._turned(dtype, out)
        values = room(out, self.shape, dtype or self.dtype, like=self.packed)
        self._decode(values)
        return values

    def _turned(self, dtype, out: Array | None) -> Array:
        """`dequantize` where the blocks run down the columns: decoded as rows, then turned."""
        if out is not None:
            room(out, self.shape, None, like=self.packed)  # looks at it
            dtype = out.dtype
        values = room(None, self.shape[::-1], dtype or self.dtype, like=self.packed)
        self._decode(values)
        if out is None:
            return values.T.contiguous() if is_torch(values) else np.ascontiguousarray(values.T)
        if is_torch(out):
            return out.copy_(values.T if is_torch(values) else values)
        np.copyto(out, values.T)
        return out

    def _decode(self, out: Array) -> None:
        kernel = kernels.choose(self.packed, self.book, self.block, out)
        kernel.decode(self.packed, self.absmax, self.nested, self.book, self.block, out)


def quantize(x, code="nf4", block: int | str = 64, double: bool = False):
    """Quantize an array or tensor in blocks that share a scale. Returns a `Quantized`.

    x: NumPy array or torch tensor of any shape in fp32, bf16, fp16 or fp64 (which is rounded to
    fp32 first). code: a name of `codebooks.NAMES`, a CodeBook or an array of levels; `uint2` ...
    `uint8` use a zero point (`zero_point`). block: how many neighbours of the flattened tensor
    share a scale, or "row", "column", "tensor". double: store the scales in 8 bits, too.
    Raises MiniloraError for an unknown code, a block that is not allowed, an empty tensor, NaN or
    infinity.
    """
    if isinstance(code, str) and code.startswith("uint"):
        return quantize_affine(x, code, block)
    book = _code_book(code)
    size, by_column = block_size(x, block)
    kernel = kernels.choose(x, book, size)
    packed, absmax = kernel.encode(x.T if by_column else x, book, size)
    nested = None
    if double:
        absmax, nested = kernel.encode_scales(absmax)
    return Quantized(
        packed.reshape(-1, 1), absmax, book, size, tuple(x.shape), x.dtype, nested, by_column
    )


def _code_book(code) -> CodeBook:
    if isinstance(code, CodeBook):
        return code
    return codebooks.named(code) if isinstance(code, str) else codebooks.custom(code)

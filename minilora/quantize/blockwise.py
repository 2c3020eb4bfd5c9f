"""Quantization: a tensor as small integers, one scale for each block of them, and a code book that
says what they mean.

What it replaces: `quantize_4bit`, `dequantize_4bit` and their `QuantState` in bitsandbytes, without
CUDA or C++.
How it works: the flattened tensor is cut into blocks; each block is divided by its largest
magnitude (absmax), and each number replaced by the index of the nearest level of a code book
(`codebooks`). Two 4-bit indices share a byte, the first one in the high half. Double quantization
stores the absmax themselves in 8 bits (QLoRA, section 3).
What it leaves out: calibration with data (GPTQ, AWQ) and formats with two-dimensional tiles.
Where numerics differ: nowhere for `nf4` and `fp4`: bytes and scales equal bitsandbytes' on a CPU
bit for bit, its quirks included: whole blocks are *multiplied* by 1/absmax, the tail block is
*divided* by its absmax, and a tie goes to the lower level. Decoding is level * absmax in fp32, then
one rounding to the wanted type, for every shape.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np

from ..quantize import codebooks
from .codebooks import CodeBook
from .kernels import compiled, cpu
from .numpy_or_torch import (
    as_given,
    block_size,
    flat_raw,
    is_torch,
    nbytes,
    on_cpu,
    require_finite,
    to_numpy,
    writer,
)
from .packing import pack, unpack
from .zero_point import quantize_affine

NESTED_BLOCK = 256

SMALLEST_SCALE = np.float32(1e-38)


# --------------------------------------------------------------------------------------------------
# The plain version: what the fast one must equal, bit for bit


def scale_plain(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers divided by the absmax of their block, and the absmax of each block. x: fp32, flat."""
    full = x.size // block * block
    absmax = np.abs(x[:full]).reshape(-1, block).max(axis=1)
    require_finite(absmax)
    inverse = np.float32(1) / np.maximum(absmax, SMALLEST_SCALE)
    scaled = (x[:full].reshape(-1, block) * inverse[:, None]).reshape(-1)
    if full < x.size:
        last = np.maximum(np.abs(x[full:]).max(), SMALLEST_SCALE)
        require_finite(last)
        absmax, scaled = np.append(absmax, last), np.append(scaled, x[full:] / last)
    return scaled, absmax


def encode_plain(x: np.ndarray, book: CodeBook, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The index of the nearest level for each number of a flat fp32 array, and the absmax of each
    block.
    """
    scaled, absmax = scale_plain(x, block)
    rank = np.searchsorted(book.thresholds, scaled, side="left")  # how many thresholds t have t < x
    return book.order[rank], absmax


def decode_plain(codes: np.ndarray, absmax: np.ndarray, book: CodeBook, block: int) -> np.ndarray:
    """level * absmax in fp32, for each index."""
    return book.levels[codes] * np.repeat(absmax, block)[: codes.size]


# --------------------------------------------------------------------------------------------------
# Double quantization: the absmax in 8 bits


@dataclass
class Nested:
    """How the absmax were quantized: `absmax` fp32 for each 256 of them, and the mean that was
    taken off before.

    `levels`: the 256 values of the 8-bit code; files made on a CPU by some versions of bitsandbytes
    hold -1 as the first.
    """

    absmax: object
    offset: float
    block: int = NESTED_BLOCK
    levels: np.ndarray = field(default_factory=lambda: codebooks.named("dynamic8").levels)


@functools.cache
def _nearest_of_65536() -> np.ndarray:
    """The dynamic code of the centre of each of 65,536 even bins over [-1, 1]: bitsandbytes'
    shortcut on a CPU.
    """
    centres = (np.arange(65536) * (2 / 65535) - 1).astype(np.float32)
    levels = codebooks.named("dynamic8").levels
    return np.array([np.abs(c - levels).argmin() for c in centres], dtype=np.uint8)


def encode_dynamic(x: np.ndarray, block: int = NESTED_BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """8-bit dynamic codes of a flat fp32 array and the absmax of each block, as bitsandbytes
    computes them on a CPU.

    A number gets the code of its bin's centre, which is not always the nearest (0 decodes to 2e-5);
    a zero block gets 0.
    """
    padded = np.append(x, np.zeros(-x.size % block, dtype=np.float32)).reshape(-1, block)
    absmax = np.abs(padded).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = padded * (np.float32(1) / absmax)[:, None]
        bins = np.where(
            absmax[:, None] > 0, (scaled + np.float32(1)) * np.float32(32767.5) + np.float32(0.5), 0
        )
    codes = np.where(
        absmax[:, None] > 0, _nearest_of_65536()[np.clip(bins, 0, 65535).astype(np.int64)], 0
    )
    return codes.reshape(-1)[: x.size].astype(np.uint8), absmax


def _encode_scales(absmax):
    """`encode_dynamic` where the numbers are: of 65 billion weights a billion scales come, which a
    host would take minutes for.
    """
    if not is_torch(absmax):
        return encode_dynamic(absmax)
    from .kernels import torch_ops

    return torch_ops.encode_dynamic(absmax, _nearest_of_65536(), NESTED_BLOCK)


def _mean(absmax: np.ndarray) -> np.float32:
    """The mean as torch sums it, for the last bit to agree with the reference."""
    import torch

    return np.float32(torch.from_numpy(absmax).mean().item())


# --------------------------------------------------------------------------------------------------
# What callers use


@dataclass
class Quantized:
    """A quantized tensor. `packed` uint8 (bytes, 1); `absmax` fp32 per block, or uint8 codes of it
    if `nested` is given.

    `shape` and `dtype` are those of the tensor that was quantized; arrays are NumPy's or torch's as
    the input was. `by_column`: the blocks run down the columns of a matrix instead of along its
    rows.
    """

    packed: object
    absmax: object
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

    def scales(self):
        """The absmax of each block in fp32, decoded if they are nested. NumPy or torch as the input
        was.
        """
        return as_given(self._scales(), self.packed) if self.nested is not None else self.absmax

    def _scales(self) -> np.ndarray:
        absmax = to_numpy(self.absmax)
        if self.nested is None:
            return absmax
        scales, outer, block = (
            np.take(self.nested.levels, absmax),
            to_numpy(self.nested.absmax),
            self.nested.block,
        )
        full = absmax.size // block
        np.multiply(
            scales[: full * block].reshape(full, block),
            outer[:full, None],
            out=scales[: full * block].reshape(full, block),
        )
        scales[full * block :] *= outer[full:]  # of the last, shorter block: one number or none
        return np.add(scales, np.float32(self.nested.offset), out=scales)

    def dequantize(self, dtype=None, out=None):
        """The tensor that the indices stand for, in `dtype` (the original one if None), or into
        `out` if that is given.

        Raises MiniloraError if `out` has another shape or is not contiguous.
        """
        if not on_cpu(self.packed):
            from .kernels import torch_ops

            return torch_ops.dequantize(self, dtype, out)
        if out is not None and self._decoded_whole(out):
            return out
        shape = self.shape[::-1] if self.by_column else self.shape
        values = out if out is not None and not self.by_column else None
        flat, store, values = writer(values, shape, dtype or self.dtype, like=self.packed)
        self._decode(flat, store, values)
        if not self.by_column:
            return values
        if out is None:
            return values.T.contiguous() if is_torch(values) else np.ascontiguousarray(values.T)
        (out.copy_ if is_torch(out) else functools.partial(np.copyto, out))(values.T)
        return out

    def _decoded_whole(self, out) -> bool:
        """The shortest way, for what a training step asks of each small layer; False, and nothing
        done, where it does not lead.
        """
        if (
            not is_torch(out)
            or self.by_column
            or out.shape != self.shape
            or not out.is_contiguous()
            or out.numel() % self.block
        ):
            return False
        return cpu.decode_whole(
            self.packed.view(-1).numpy(), self._scales, self.book, self.block, out.detach().view(-1)
        )

    def _decode(self, flat: np.ndarray, store, values) -> None:
        """The fast path for whole blocks, the plain one for what is left at the end. flat, store,
        values: see `arrays.writer`.
        """
        bits, packed, scales = self.book.bits, to_numpy(self.packed).reshape(-1), self._scales()
        unit = cpu.unit_size(self.block, bits)
        body = self.size // unit * unit
        if body:
            given = packed[: body * bits // 8], scales[: body // self.block], self.book, self.block
            target = values.detach().reshape(-1)[:body] if is_torch(values) else values
            if not (
                cpu.decode_whole(given[0], lambda: given[1], *given[2:], target)
                or compiled.decode(*given, target)
            ):
                cpu.decode(*given, flat[:body], store)
        if body < self.size:
            codes = unpack(packed[body * bits // 8 :], bits, self.size - body)
            rest = decode_plain(codes, scales[body // self.block :], self.book, self.block)
            store(body, self.size, rest) if store else np.copyto(flat[body:], rest)


def quantize(x, code="nf4", block: int | str = 64, double: bool = False):
    """Quantize an array or tensor in blocks that share a scale. Returns a `Quantized`.

    x: NumPy array or torch tensor of any shape in fp32, bf16, fp16 or fp64 (which is rounded to
    fp32 first). code: a name of `codebooks.NAMES`, a CodeBook or an array of levels; `uint2` ...
    `uint8` use a zero point (`affine`). block: how many neighbours of the flattened tensor share a
    scale, or "row", "column", "tensor". double: store the scales in 8 bits, too.
    Raises MiniloraError for an unknown code, a block that is not allowed, an empty tensor, NaN or
    infinity.
    """
    if isinstance(code, str) and code.startswith("uint"):
        return quantize_affine(x, code, block)
    book = _code_book(code)
    size, by_column = block_size(x, block)
    if not on_cpu(x):
        from .kernels import torch_ops

        packed, absmax = torch_ops.encode(x.T if by_column else x, book, size)
    else:
        packed, absmax = _encode(flat_raw(x.T if by_column else x), book, size)
    nested = None
    if double:
        offset = _mean(to_numpy(absmax))
        absmax, outer = _encode_scales(absmax - offset)
        nested = Nested(as_given(outer, x), float(offset))
    packed = as_given(packed.reshape(-1, 1), x)
    return Quantized(
        packed, as_given(absmax, x), book, size, tuple(x.shape), x.dtype, nested, by_column
    )


def _code_book(code) -> CodeBook:
    if isinstance(code, CodeBook):
        return code
    return codebooks.named(code) if isinstance(code, str) else codebooks.custom(code)


def _encode(raw: np.ndarray, book: CodeBook, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed indices and absmax of a flat array: the fast path for whole blocks, the plain one for
    the end.
    """
    unit = cpu.unit_size(block, book.bits)
    body = raw.size // unit * unit
    packed, absmax = cpu.encode(raw[:body], book, block)
    if body < raw.size:
        rest = cpu.to_fp32(raw[body:], np.empty(raw.size - body, np.float32))
        codes, last = encode_plain(rest, book, block)
        packed = np.concatenate([packed, pack(codes, book.bits, filler=book.zero)])
        absmax = np.concatenate([absmax, last])
    return packed, absmax

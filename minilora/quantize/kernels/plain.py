"""The plain version: a few lines of NumPy that every fast kernel must equal, bit for bit.

What it replaces: the reference implementation that bitsandbytes' CUDA and C++ kernels do not have.
How it works: read `scale_plain`, `encode_plain` and `decode_plain`; `encode` and `decode` put them
behind the names and arguments that all kernels share (see `kernels`). A fast kernel calls them for
the few numbers that its fast way does not fit.
What it leaves out: speed, and tensors that are not on a processor.
Where numerics differ: nowhere from bitsandbytes on a CPU, its quirks included: whole blocks are
*multiplied* by 1/absmax, the tail block is *divided* by its absmax, and a tie goes to the lower
level.
"""

from __future__ import annotations

import math

import numpy as np

from ..codebooks import CodeBook
from ..nested import Nested, nest, unnest
from ..numpy_or_torch import (
    Array,
    as_given,
    flat_raw,
    require_finite,
    to_fp32,
    to_numpy,
    writer,
)
from ..packing import pack, unpack

# a block of smaller numbers is divided by this, for 1/absmax not to overflow
SMALLEST_SCALE = np.float32(1e-38)


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


# ------------------------------------------------------------------------------- as all kernels are


def encode(x: Array, book: CodeBook, block: int) -> tuple[Array, Array]:
    raw = flat_raw(x)
    codes, absmax = encode_plain(to_fp32(raw, np.empty(raw.size, np.float32)), book, block)
    return as_given(pack(codes, book.bits, filler=book.zero), x), as_given(absmax, x)


def decode(
    packed: Array, absmax: Array, nested: Nested | None, book: CodeBook, block: int, out: Array
) -> None:
    size = math.prod(out.shape)
    codes = unpack(to_numpy(packed), book.bits, size)
    numbers = decode_plain(codes, host_scales(absmax, nested), book, block)
    flat, store = writer(out)
    store(0, size, numbers) if store else np.copyto(flat, numbers)


def encode_scales(absmax: Array) -> tuple[Array, Nested]:
    codes, nested = nest(to_numpy(absmax))
    nested.absmax = as_given(nested.absmax, absmax)
    return as_given(codes, absmax), nested


def decode_scales(absmax: Array, nested: Nested | None) -> Array:
    return absmax if nested is None else as_given(host_scales(absmax, nested), absmax)


def host_scales(absmax: Array, nested: Nested | None) -> np.ndarray:
    """The fp32 scales as a NumPy array."""
    codes = to_numpy(absmax)
    return codes if nested is None else unnest(codes, to_numpy(nested.absmax), nested)

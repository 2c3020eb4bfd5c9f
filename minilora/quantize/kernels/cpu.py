"""The fast path of quantization: NumPy over pieces that fit the processor's cache, on as many
threads as torch uses.

What it replaces: the C++ and CUDA kernels of bitsandbytes; on a CPU it is several times faster than
they are.
How it works: a piece of 64K numbers is read once and stays in the cache for every pass over it.
Encoding: the absmax of a block is a maximum over *integers* (fp32 magnitudes sort like their bits),
and the rank of a number among sixteen levels is fifteen compares added up. Decoding: a byte holds
two indices, so a table of 256 *pairs* of levels, each seen as one 64-bit number, turns a byte into
two fp32 numbers with one look-up; the block's scale is multiplied in afterwards. A small matrix is
decoded as a whole by three calls into torch: between two products, what Python itself reads has
left the cache, and each line of it costs more than the numbers do.
What it leaves out: tensors that are not on the CPU (`torch_ops`); a block larger than a piece no
longer fits the cache.
Where numerics differ: nowhere; every function equals its plain version in `plain` bit for bit, NaN
excepted (`quantize` refuses it).
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ...system.machine import cores
from ...system.scratch import Scratch
from ..codebooks import CodeBook
from ..nested import Nested
from ..numpy_or_torch import (
    Array,
    as_given,
    flat_raw,
    is_torch,
    require_finite,
    serial_share,
    to_fp32,
    to_numpy,
    writer,
)
from ..packing import pack, unpack
from . import plain
from .plain import decode_scales as decode_scales
from .plain import encode_scales as encode_scales

PIECE = 65536  # numbers: 256 KB of fp32, about an eighth of a present-day core's second-level cache

PARALLEL_FROM = 1 << 20  # below a million numbers starting threads costs more than it saves

WHOLE = 1 << 19  # numbers: up to here a matrix and its indices fit the cache as they are

FEW_THRESHOLDS = 32  # up to here counting compares beats a binary search

# bytes that a thread keeps of each of its seven buffers from call to call: what WHOLE numbers take.
# A long block needs more, for that call alone
HELD = 4 * WHOLE

_scratch = Scratch(HELD)


def threads() -> int:
    """As many as torch was told to use; without torch, OMP_NUM_THREADS or the cores of this
    process.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and wanted != "0" else cores()


def _buffer(name: str, size: int, dtype) -> np.ndarray:
    """This thread's scratch memory of that name."""
    return _scratch.bytes(name, size * np.dtype(dtype).itemsize).view(dtype)


def _in_pieces(size: int, piece: int, work: Callable[[int, int], None]) -> None:
    """Call work(start, stop) over [0, size) piece by piece; large jobs are dealt to a pool of
    threads.
    """
    starts = range(0, size, piece)
    count = min(threads(), len(starts)) if size >= PARALLEL_FROM else 1

    def share(worker: int) -> None:
        for start in starts[len(starts) * worker // count : len(starts) * (worker + 1) // count]:
            work(start, min(start + piece, size))

    if count == 1:
        return share(0)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(share, range(count)))


def unit_size(block: int, bits: int) -> int:
    """The fewest whole blocks, in numbers, whose indices fill whole bytes."""
    return block * (8 // math.gcd(8, block * bits))


def piece_size(block: int, bits: int) -> int:
    """The largest multiple of the unit up to PIECE, one unit at least."""
    unit = unit_size(block, bits)
    return max(1, PIECE // unit) * unit


# ----------------------------------------------------------------------------------------- encoding


def encode(x: Array, book: CodeBook, block: int) -> tuple[Array, Array]:
    """Packed indices and absmax, see `kernels`: whole blocks fast, what is left by the plain
    version.
    """
    raw = flat_raw(x)
    unit = unit_size(block, book.bits)
    body = raw.size // unit * unit
    packed, absmax = _encode_blocks(raw[:body], book, block)
    if body < raw.size:
        rest, last = plain.encode(_numbers(raw[body:]), book, block)
        packed, absmax = np.concatenate([packed, rest]), np.concatenate([absmax, last])
    return as_given(packed, x), as_given(absmax, x)


def _numbers(raw: np.ndarray) -> np.ndarray:
    return to_fp32(raw, np.empty(raw.size, np.float32))


def _encode_blocks(raw: np.ndarray, book: CodeBook, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed indices and absmax of a flat array whose size is a multiple of `unit_size`.

    raw: fp32, fp16, fp64, or uint16 for bf16.
    """
    packed = np.empty(raw.size * book.bits // 8, dtype=np.uint8)
    absmax = np.empty(raw.size // block, dtype=np.float32)

    def work(start: int, stop: int) -> None:
        x = to_fp32(raw[start:stop], _buffer("x", stop - start, np.float32))
        scales = absmax[start // block : stop // block]
        codes = _encode_piece(x, book, block, scales)
        if book.bits == 4:
            _pack_nibbles(codes, packed[start // 2 : stop // 2])
        else:
            packed[start * book.bits // 8 : stop * book.bits // 8] = pack(codes, book.bits)

    _in_pieces(raw.size, piece_size(block, book.bits), work)
    return packed, absmax


def _encode_piece(x: np.ndarray, book: CodeBook, block: int, absmax: np.ndarray) -> np.ndarray:
    """The indices of one piece, in scratch memory; the scales go into `absmax`."""
    scaled = _buffer("scaled", x.size, np.float32)
    np.abs(x, out=scaled)
    np.max(scaled.view(np.int32).reshape(-1, block), axis=1, out=absmax.view(np.int32))
    require_finite(absmax)
    inverse = np.float32(1) / np.maximum(absmax, plain.SMALLEST_SCALE)
    np.multiply(x.reshape(-1, block), inverse[:, None], out=scaled.reshape(-1, block))
    if book.thresholds.size > FEW_THRESHOLDS:
        return book.order[np.searchsorted(book.thresholds, scaled, side="left")]
    codes, above = _buffer("codes", x.size, np.uint8), _buffer("above", x.size, np.bool_)
    np.greater(scaled, book.thresholds[0], out=codes.view(np.bool_))
    for threshold in book.thresholds[1:]:
        np.greater(scaled, threshold, out=above)
        np.add(codes, above.view(np.uint8), out=codes)
    return codes if book.is_sorted else np.take(book.order, codes)


def _pack_nibbles(codes: np.ndarray, out: np.ndarray) -> None:
    """Two indices to a byte, the first one high, by one multiplication of both at once."""
    if sys.byteorder != "little":
        np.bitwise_or(codes[0::2] << 4, codes[1::2], out=out)
        return
    pairs = codes.view(np.uint16)  # first + 256 * second
    np.multiply(pairs, np.uint16(4097), out=pairs)  # the upper byte becomes second + 16 * first
    np.copyto(out, codes[1::2])


# ----------------------------------------------------------------------------------------- decoding


def decode(
    packed: Array, absmax: Array, nested: Nested | None, book: CodeBook, block: int, out: Array
) -> None:
    """level * absmax into `out`, see `kernels`: whole blocks fast, what is left by the plain
    version.
    """
    stored, scales = to_numpy(packed).reshape(-1), plain.host_scales(absmax, nested)
    flat, size = out.detach().view(-1) if is_torch(out) else out.reshape(-1), math.prod(out.shape)
    unit = unit_size(block, book.bits)
    body = size // unit * unit
    if body:
        whole = flat if body == size else flat[:body]
        by = _decode_whole if _is_small(book, block, whole) else _decode_in_pieces
        by(stored[: body * book.bits // 8], scales[: body // block], book, block, whole)
    if body < size:
        rest = stored[body * book.bits // 8 :], scales[body // block :]
        plain.decode(*rest, None, book, block, flat[body:])


def _decode_in_pieces(
    stored: np.ndarray, scales: np.ndarray, book: CodeBook, block: int, out: Array
) -> None:
    """`decode` of whole blocks, piece by piece. stored, scales, out: flat."""
    bits, (flat, store) = book.bits, writer(out)
    part = _part_of(block)
    if part < block:
        scales, block = np.repeat(scales, block // part), part

    def work(start: int, stop: int) -> None:
        values = _buffer("values", stop - start, np.float32) if store else flat[start:stop]
        piece = stored[start * bits // 8 : stop * bits // 8]
        if bits == 4:
            # or `take` would make, and drop, one of its own for each piece
            index = _buffer("index", piece.size, np.intp)
            np.copyto(index, piece)
            np.take(book.pairs, index, out=values.view(np.float64), mode="clip")
        else:
            np.take(book.levels, unpack(piece, bits, stop - start), out=values, mode="clip")
        _multiply_blocks(values.reshape(-1, block), scales[start // block : stop // block, None])
        if store:
            store(start, stop, values)

    _in_pieces(flat.size, piece_size(block, bits), work)


@functools.lru_cache(maxsize=64)
def _part_of(block: int) -> int:
    """The longest equal part of a block that fits a piece; the block itself if it fits, or has no
    such part.
    """
    parts = (block // n for n in range(-(-block // PIECE), block // 4096 + 1) if block % n == 0)
    return block if block <= PIECE else next(parts, block)


def _is_small(book: CodeBook, block: int, out: Array) -> bool:
    """Whether `_decode_whole` can do it, and pays."""
    return (
        book.bits == 4
        and block % 2 == 0
        and is_torch(out)
        and out.numel() <= WHOLE
        and out.storage_offset() % 2 == 0
    )


def _decode_whole(
    stored: np.ndarray, scales: np.ndarray, book: CodeBook, block: int, out: Array
) -> None:
    """`decode` of whole blocks into a small torch tensor, in one piece."""
    torch = sys.modules["torch"]
    index = torch.from_numpy(_buffer("index32", stored.size, np.int32))
    index.copy_(torch.from_numpy(stored))
    single = out.dtype == torch.float32
    values = out if single else torch.from_numpy(_buffer("values", out.numel(), np.float32))
    torch.index_select(torch.from_numpy(book.pairs), 0, index, out=values.view(torch.float64))
    values.view(-1, block).mul_(torch.from_numpy(scales)[:, None])
    if not single:
        out.copy_(values)


def _multiply_blocks(blocks: np.ndarray, scales: np.ndarray) -> None:
    """blocks (n, block) times scales (n, 1) in place. torch spends less on each short row than
    NumPy, where it is loaded.

    It is handed a share at a time, see `serial_share`.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        np.multiply(blocks, scales, out=blocks)
        return
    rows = max(1, serial_share() // blocks.shape[1])
    for start in range(0, len(blocks), rows):
        torch.from_numpy(blocks[start : start + rows]).mul_(
            torch.from_numpy(scales[start : start + rows])
        )

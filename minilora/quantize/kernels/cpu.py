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
What it leaves out: tensors that are not on the CPU (`devicecodes`); a block larger than a piece no
longer fits the cache.
Where numerics differ: nowhere; every function equals its plain version in `quantize` bit for bit,
NaN excepted (`quantize` refuses it).
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..codebooks import CodeBook
from ..numpy_or_torch import is_torch, require_finite, serial_share
from ..packing import pack, unpack

PIECE = 65536  # numbers: 256 KB of fp32, about an eighth of a present-day core's second-level cache

PARALLEL_FROM = 1 << 20  # below a million numbers starting threads costs more than it saves

WHOLE = 1 << 19  # numbers: up to here a matrix and its indices fit the cache as they are

FEW_THRESHOLDS = 32  # up to here counting compares beats a binary search

_work = threading.local()


def threads() -> int:
    """As many as torch was told to use; without torch, OMP_NUM_THREADS or the cores of this
    process.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and wanted != "0" else len(os.sched_getaffinity(0))


def _buffer(name: str, size: int, dtype) -> np.ndarray:
    """This thread's scratch memory of that name, kept from call to call and grown when needed."""
    memory = _work.__dict__.get(name)
    if memory is None or memory.size < size:
        memory = _work.__dict__[name] = np.empty(size, dtype)
    return memory[:size]


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


def to_fp32(raw: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`raw` in fp32: itself if it is, else written to `out`. uint16 stands for bf16, which is
    fp32's upper half.
    """
    if raw.dtype == np.float32:
        return raw
    out = out[: raw.size]
    if raw.dtype == np.uint16:
        bits = out.view(np.uint32)
        np.copyto(bits, raw)
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(out, raw, casting="same_kind")
    return out


def unit_size(block: int, bits: int) -> int:
    """The fewest whole blocks, in numbers, whose indices fill whole bytes."""
    return block * (8 // math.gcd(8, block * bits))


def piece_size(block: int, bits: int) -> int:
    """The largest multiple of the unit up to PIECE, one unit at least."""
    unit = unit_size(block, bits)
    return max(1, PIECE // unit) * unit


def encode(raw: np.ndarray, book: CodeBook, block: int) -> tuple[np.ndarray, np.ndarray]:
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
    inverse = np.float32(1) / np.maximum(absmax, np.float32(1e-38))
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


def decode(
    packed: np.ndarray, absmax: np.ndarray, book: CodeBook, block: int, out, store=None
) -> None:
    """level * absmax into `out` (flat fp32), whose size is a multiple of `unit_size`.

    packed: flat bytes of out.size indices. If `store` is given, `out` is only asked for its size,
    and store(start, stop, values) gets each fp32 piece to convert it.
    """
    bits = book.bits

    def work(start: int, stop: int) -> None:
        values = _buffer("values", stop - start, np.float32) if store else out[start:stop]
        stored = packed[start * bits // 8 : stop * bits // 8]
        if bits == 4:
            # or `take` would make, and drop, one of its own for each piece
            index = _buffer("index", stored.size, np.intp)
            np.copyto(index, stored)
            np.take(book.pairs, index, out=values.view(np.float64), mode="clip")
        else:
            np.take(book.levels, unpack(stored, bits, stop - start), out=values, mode="clip")
        _multiply_blocks(values.reshape(-1, block), absmax[start // block : stop // block, None])
        if store:
            store(start, stop, values)

    _in_pieces(out.size, piece_size(block, bits), work)


def decode_whole(
    packed: np.ndarray, absmax: Callable[[], np.ndarray], book: CodeBook, block: int, out
) -> bool:
    """`decode` for a small torch tensor `out` (flat, of whole blocks) in one piece; False, and
    nothing done, for any other.

    absmax: called for the scales if they are needed.
    """
    if (
        book.bits != 4
        or block % 2
        or not is_torch(out)
        or out.numel() > WHOLE
        or out.storage_offset() % 2
    ):
        return False
    torch = sys.modules["torch"]
    index = torch.from_numpy(_buffer("index32", packed.size, np.int32))
    index.copy_(torch.from_numpy(packed))
    single = out.dtype == torch.float32
    values = out if single else torch.from_numpy(_buffer("values", out.numel(), np.float32))
    torch.index_select(torch.from_numpy(book.pairs), 0, index, out=values.view(torch.float64))
    values.view(-1, block).mul_(torch.from_numpy(absmax())[:, None])
    if not single:
        out.copy_(values)
    return True


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

"""Quantization in plain torch operations, for tensors that are not on the CPU: CUDA, MPS, and fake
ones without memory.

What it replaces: the CUDA kernels of bitsandbytes, at more memory traffic and without compiling
anything.
How it works: the formulas of the plain version, word for word: a bucket search against the
thresholds, and an index into the table of pairs of levels. Nothing but a block's mean leaves the
device. Long tensors pass in pieces, so that the fp32 temporaries stay small beside a layer; the
tables are put on a device once, since every copy from the host makes it wait.
What it leaves out: fused kernels; on a GPU, where speed counts, `hub` loads the model with
bitsandbytes instead.
Where numerics differ: nowhere; on the CPU it equals the fast path bit for bit, and tests hold it to
that.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from ..codebooks import CodeBook
from ..nested import NESTED_BLOCK, Nested, mean, nearest_of_65536
from ..numpy_or_torch import require_finite, require_floating
from ..packing import pack
from .plain import SMALLEST_SCALE

SMALLEST = float(SMALLEST_SCALE)

# numbers at a time; each takes about 6 bytes of temporaries when it is decoded, 14 when it is
# encoded
PIECE = 1 << 23


# --------------------------------------------------------------------------------------- the tables


def constant(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """A small table on the device of `like`. Copied there once; for fake tensors anew, since theirs
    must not outlive their mode.
    """
    if type(like) not in (torch.Tensor, torch.nn.Parameter):
        return torch.tensor(values, device=like.device)
    return _kept(values.tobytes(), values.dtype.str, like.device)


@functools.lru_cache(maxsize=64)
def _kept(raw: bytes, dtype: str, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(np.frombuffer(raw, dtype).copy()).to(device)


# ----------------------------------------------------------------------------------------- encoding


def encode(x: torch.Tensor, book: CodeBook, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed indices (bytes,) and the absmax of each block, on the device of x."""
    require_floating(x)
    flat = x.detach().reshape(-1)
    codes = torch.empty(flat.numel(), dtype=torch.uint8, device=x.device)
    absmax = torch.empty(-(-flat.numel() // block), device=x.device)
    step = max(1, PIECE // block) * block
    for start in range(0, flat.numel(), step):
        scaled, most = _scale(flat[start : start + step].float(), block)
        rank = torch.bucketize(scaled, constant(book.thresholds, x), out_int32=True)
        codes[start : start + step] = constant(book.order, x).index_select(0, rank)
        absmax[start // block : start // block + most.numel()] = most
    require_finite(absmax.amax().reshape(1).cpu().numpy())
    return _pack(codes, book.bits, book.zero), absmax


def _scale(flat: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers divided by the absmax of their block, and these; a shorter block at the end is
    divided, the others are multiplied.
    """
    full = flat.numel() // block * block
    blocks = flat[:full].view(-1, block)
    absmax = blocks.abs().amax(1) if full else flat.new_empty(0)
    scaled = (blocks * (1 / absmax.clamp(min=SMALLEST))[:, None]).view(-1)
    if full == flat.numel():
        return scaled, absmax
    last = flat[full:].abs().amax().clamp(min=SMALLEST)
    return torch.cat([scaled, flat[full:] / last]), torch.cat([absmax, last[None]])


def _pack(codes: torch.Tensor, bits: int, filler: int) -> torch.Tensor:
    """`packing.pack` where the indices are; odd widths by NumPy on the host."""
    if bits == 8:
        return codes
    if bits == 4:
        if codes.numel() % 2:
            codes = torch.cat([codes, codes.new_full((1,), filler)])
        return codes[0::2] << 4 | codes[1::2]
    return torch.from_numpy(pack(codes.cpu().numpy(), bits, filler=filler)).to(codes.device)


def encode_scales(absmax: torch.Tensor) -> tuple[torch.Tensor, Nested]:
    """`nested.nest` where the scales are: of 65 billion weights a billion scales come, which a host
    would take minutes for.
    """
    offset = mean(absmax.cpu().numpy())
    x = absmax - float(offset)
    padded = torch.cat([x, x.new_zeros(-x.numel() % NESTED_BLOCK)]).view(-1, NESTED_BLOCK)
    outer = padded.abs().amax(1)
    full = outer > 0
    scaled = padded * (1 / outer.where(full, torch.ones_like(outer)))[:, None]
    bins = ((scaled + 1) * 32767.5 + 0.5).clamp(0, 65535).int()
    table = constant(nearest_of_65536(), x)
    codes = table.index_select(0, bins.view(-1)).view_as(padded) * full[:, None]
    return codes.view(-1)[: x.numel()].contiguous(), Nested(outer, float(offset))


# ----------------------------------------------------------------------------------------- decoding


def decode_scales(absmax: torch.Tensor, nested: Nested | None) -> torch.Tensor:
    """The absmax of each block in fp32."""
    if nested is None:
        return absmax
    spread = constant(nested.levels, absmax).index_select(0, absmax.int())
    outer = nested.absmax.repeat_interleave(nested.block)[: spread.numel()]
    return spread.mul_(outer).add_(nested.offset)


def decode(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    nested: Nested | None,
    book: CodeBook,
    block: int,
    out: torch.Tensor,
) -> None:
    """level * absmax into `out`, see `kernels`."""
    stored, scales = packed.reshape(-1), decode_scales(absmax, nested)
    # pieces of whole blocks and whole bytes
    flat, size, unit = out.detach().view(-1), out.numel(), math.lcm(block, 2)
    step = max(1, PIECE // unit) * unit if book.bits in (4, 8) else max(size, 1)
    for start in range(0, size, step):
        stop = min(start + step, size)
        numbers = _levels(stored, book, start, stop)
        part = scales[start // block : -(-stop // block)]
        if numbers.numel() % block == 0:
            numbers.view(-1, block).mul_(part[:, None])
        else:
            numbers.mul_(part.repeat_interleave(block)[: numbers.numel()])
        flat[start:stop].copy_(numbers)


def _levels(packed: torch.Tensor, book: CodeBook, start: int, stop: int) -> torch.Tensor:
    """The levels of numbers start … stop-1, in fp32 memory of their own. Of other widths than 4 and
    8 bits all at once, from 0.
    """
    if book.bits == 4:
        table = constant(book.pairs.view(np.float32).reshape(256, 2), packed).view(256, 2)
        return table.index_select(0, packed[start // 2 : -(-stop // 2)].int()).view(-1)[
            : stop - start
        ]
    codes = packed[start:stop].int() if book.bits == 8 else _unpack(packed, book.bits, stop)
    return constant(book.levels, packed).index_select(0, codes)


def _unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Indices of `bits` bits from a stream of bytes, the highest bits first."""
    shifts = torch.arange(7, -1, -1, device=packed.device)
    ones = (packed[:, None] >> shifts & 1).view(-1)[: count * bits].view(-1, bits)
    weights = 2 ** torch.arange(bits - 1, -1, -1, device=packed.device)
    return (ones * weights).sum(1, dtype=torch.int32)

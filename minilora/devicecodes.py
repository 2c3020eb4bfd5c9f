"""Quantization in plain torch operations, for tensors that are not on the CPU: CUDA, MPS, and fake ones without memory.

What it replaces: the CUDA kernels of bitsandbytes, at more memory traffic and without compiling anything.
How it works: the formulas of `quantize`'s plain version, word for word: a bucket search against the thresholds, and an
index into the table of pairs of levels.
What it leaves out: fused kernels; on a GPU, where speed counts, `hub` loads the model with bitsandbytes instead.
Where numerics differ: nowhere; on the CPU it equals the fast path bit for bit, and tests hold it to that.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from .arrays import require_finite
from .codebooks import CodeBook
from .packing import pack


def encode(x: torch.Tensor, book: CodeBook, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed indices and absmax, back on the CPU as NumPy; the caller puts them where it wants them."""
    flat = x.detach().reshape(-1).float()
    full = flat.numel() // block * block
    blocks = flat[:full].view(-1, block)
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1 / absmax.clamp(min=1e-38))[:, None]).view(-1)
    if full < flat.numel():
        last = flat[full:].abs().amax().clamp(min=1e-38)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, flat[full:] / last])
    require_finite(absmax.cpu().numpy())
    rank = torch.bucketize(scaled, torch.tensor(book.thresholds, device=x.device), out_int32=True)
    codes = torch.tensor(book.order, device=x.device)[rank]
    return pack(codes.cpu().numpy(), book.bits, filler=book.zero), absmax.cpu().numpy()


def scales(q) -> torch.Tensor:
    """The absmax of each block in fp32."""
    if q.nested is None:
        return q.absmax
    levels = torch.tensor(q.nested.levels, device=q.absmax.device)
    outer = q.nested.absmax.repeat_interleave(q.nested.block)[: q.absmax.numel()]
    return levels[q.absmax.int()] * outer + q.nested.offset


def dequantize(q, dtype: torch.dtype | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
    """What `Quantized.dequantize` promises, on the device of its tensors."""
    packed, device = q.packed.reshape(-1), q.packed.device
    if q.book.bits == 4:
        table = torch.tensor(q.book.pairs.view(np.float32).reshape(256, 2), device=device)
        values = table.index_select(0, packed.int()).view(-1)[: q.size]  # (numbers,)
    else:
        values = torch.tensor(q.book.levels, device=device).index_select(0, _unpack(packed, q.book.bits, q.size))
    spread = scales(q)
    if q.size % q.block == 0:
        values = (values.view(-1, q.block) * spread[:, None]).view(-1)
    else:
        values = values * spread.repeat_interleave(q.block)[: q.size]
    values = values.view(q.shape[::-1]).T if q.by_column else values.view(q.shape)
    return out.copy_(values) if out is not None else values.to(dtype or q.dtype)


def _unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Indices of `bits` bits from a stream of bytes, the highest bits first."""
    if bits == 8:
        return packed.int()
    shifts = torch.arange(7, -1, -1, device=packed.device)
    ones = (packed[:, None] >> shifts & 1).view(-1)[: count * bits].view(-1, bits)
    weights = 2 ** torch.arange(bits - 1, -1, -1, device=packed.device)
    return (ones * weights).sum(1, dtype=torch.int32)

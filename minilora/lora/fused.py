"""One autograd step for a frozen linear layer, with an adapter or without: less traffic, the same
numbers.

What it replaces: the chain of seven operations that autograd records for
`base(x) + ((x Aᵀ) Bᵀ) * s`.
How it works: the weight W is a tensor, or a decoder: a function that gives the dense weight in a
type, such as the 4-bit layer's, which writes it into a buffer for the moment. With N rows and rank
r, and with "d" for the gradient of the loss (dy is ∂L/∂y), the forward pass is

    h  = x Aᵀ                      (N, r)
    y  = x Wᵀ + b + (h Bᵀ) s       (N, out)

where x is (N, in), W (out, in), b (out,), A (r, in), B (out, r) and s a number. W is frozen, so the
chain rule leaves

    dh = s · dy B                  (N, r)      all that the adapter passes back goes through it
    dA = dhᵀ x                     (r, in)
    dB = s · dyᵀ h                 (out, r)
    dx = dy W + dh A               (N, in)
    db = Σ dy over the rows        (out,)      where the bias learns

and without an adapter dx = dy W alone. So x and h are what has to be kept, and without an adapter
nothing: W, A and B are there anyway, and a decoder decodes again, which costs far less than the
products that W takes part in. Autograd's chain passes over (N, out) for "times s" and "plus" going
forward and for "times s" going back, and over (N, in) to add the two gradients of x. Here s rides
on the small matrices, sums are made in the buffer that the large product just filled, and dB is
taken as (hᵀ dy)ᵀ, a few rows times many, which runs more than twice as fast as the other way round.
What it leaves out: gradients of W, dropout, DoRA, double backward. `can_fuse` sends those, and
autocast over a weight in floating point, down the plain path in layer.py.
Where numerics differ: in fp32 the forward pass not at all. A gradient may differ in the last bits
(s moved to the small factor). Over a base in 16 bits the detour is computed in 16 bits, as under
autocast, there and in PEFT, and added before its last rounding. Outside autocast PEFT widens x to
fp32 for it: two more copies of the activations, and a layer's step takes a third longer or more.
What is lost shows where x·A is nearly zero, since A in 16 bits has three digits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..system.precision import autocast_dtype

Weight = Tensor | Callable[[torch.dtype], Tensor]  # W (out, in), or what decodes it


class FusedLoRA(torch.autograd.Function):
    """y = x Wᵀ + b + ((x Aᵀ) Bᵀ) s and its backward pass as derived above; A and B may both be
    None.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Weight,
        bias: Tensor | None,
        A: Tensor | None,
        B: Tensor | None,
        scale: float,
    ) -> Tensor:
        h, b = None, None if bias is None else bias.to(x.dtype)  # no copy where the types agree
        y = F.linear(rows(x), dense(W, x.dtype), b)  # (N, out)
        if A is not None and B is not None:
            h = F.linear(x, A.to(x.dtype))  # (..., r)
            add_detour(y, rows(h), B.to(x.dtype), scale)
        kept = W if isinstance(W, Tensor) else None
        ctx.save_for_backward(None if h is None else x, h, kept, A, B)
        ctx.decoder = None if isinstance(W, Tensor) else W
        ctx.scale, ctx.shape = scale, x.shape
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y.view(*x.shape[:-1], y.shape[-1])  # (..., out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, h, W, A, B = ctx.saved_tensors
        need_x, _, need_bias, need_A, need_B, _ = ctx.needs_input_grad
        dy = rows(grad)  # (N, out)
        dx = db = dA = dB = None
        dh: Tensor | None = None
        if h is not None and (need_x or need_A):
            dh = (dy @ B.to(dy.dtype)).mul_(ctx.scale)  # (N, r)
        if need_A and dh is not None:
            dA = (dh.T @ rows(x)).to(A.dtype)  # (r, in)
        if need_B:
            # (out, r); few rows times many is the faster order
            dB = (rows(h).T @ dy).T.to(B.dtype).mul_(ctx.scale)
        if need_x:
            dx = dy @ dense(ctx.decoder or W, dy.dtype)  # (N, in)
            if dh is not None:
                dx.addmm_(dh, A.to(dy.dtype))
            dx = dx.view(ctx.shape)  # (..., in)
        if need_bias:
            db = dy.sum(0).to(ctx.bias_dtype)  # (out,)
        return dx, None, db, dA, dB, None


def rows(x: Tensor) -> Tensor:
    """x (..., C) as a matrix (N, C)."""
    return x.reshape(-1, x.shape[-1])


def dense(W: Weight, dtype: torch.dtype) -> Tensor:
    """W (out, in) as numbers of type `dtype`."""
    return W if isinstance(W, Tensor) else W(dtype)


def add_detour(y: Tensor, h: Tensor, B: Tensor, scale: float) -> Tensor:
    """y (N, out) += (h Bᵀ) · s in place, h (N, r), with the bits that y + (h Bᵀ) * s has in fp32.

    Times a power of two is exact wherever it stands. So s may go to h, and the product may add
    itself to y, or s to the sum.
    """
    if y.dtype != torch.float32:
        return y.addmm_(h, B.T, alpha=scale)
    if math.frexp(scale)[0] != 0.5:
        return y.add_(F.linear(h, B).mul_(scale))  # (N, out)
    # nothing can be tried on fake numbers
    tracing = torch.compiler.is_compiling() or type(y) is not Tensor
    if not tracing and adds_last(h.shape[1], y.device.type):
        return y.addmm_(h * scale, B.T)
    return y.add_(F.linear(h, B), alpha=scale)


@functools.cache
def adds_last(rank: int, device: str) -> bool:
    """Whether this machine's addmm finishes the product of inner size `rank` before it adds it to
    what is there.

    MKL does for ranks from 2 to some hundreds. It is tried once for each rank, because other
    libraries may not.
    """
    if device != "cpu" or rank > 128:
        return False
    source = torch.Generator().manual_seed(rank)
    y, h, B = (
        torch.randn(shape, generator=source) for shape in [(257, 300), (257, rank), (300, rank)]
    )
    return torch.equal(torch.addmm(y, h, B.T), y + F.linear(h, B))


def fused_lora(
    x: Tensor, W: Weight, bias: Tensor | None, A: Tensor, B: Tensor, scale: float
) -> Tensor:
    """x (..., in) -> (..., out), with gradients for x, A, B and a bias that learns."""
    return FusedLoRA.apply(x, W, bias, A, B, scale)


def frozen_linear(x: Tensor, W: Weight, bias: Tensor | None) -> Tensor:
    """x (..., in) -> x Wᵀ + b (..., out), with gradients for x and a bias that learns; nothing is
    kept but W.
    """
    return FusedLoRA.apply(x, W, bias, None, None, 0.0)


def can_fuse(base: nn.Module, x: Tensor, A: Tensor) -> bool:
    """Whether base is a plain frozen nn.Linear read in its own type, outside autocast."""
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and x.dtype == base.weight.dtype
        and x.dtype in (A.dtype, torch.bfloat16)
        and autocast_dtype(x.device.type) is None
    )

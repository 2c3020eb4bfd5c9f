"""One autograd step for a frozen linear layer with an adapter: less traffic, the same numbers.

What it replaces: the chain of seven operations that autograd records for
`base(x) + ((x Aᵀ) Bᵀ) * s`.
How it works: with x (N, in), W (out, in), A (r, in), B (out, r) and h = x Aᵀ (N, r) the output is

    y = x Wᵀ + b + (h Bᵀ) s

For G = ∂L/∂y (N, out) the chain rule gives, W and b being frozen,

    ∂L/∂B = s Gᵀ h                        (out, r)
    ∂L/∂h = s G B =: H                    (N, r)      small: everything of the adapter goes through
    r columns ∂L/∂A = Hᵀ x                          (r, in)
    ∂L/∂x = G W + H A                     (N, in)     the second product is added inside the first's
    buffer

so x and h are all that has to be kept (W, A and B are kept anyway). Autograd's chain passes over
(N, out) for "times s" and "plus" going forward and "times s" going back, and over (N, in) to add
the two gradients of x. Here s rides on the small matrices, sums are made in the buffer that the
large product just filled, and ∂L/∂B is taken as (hᵀ G)ᵀ, a few rows times many, which runs more
than twice as fast as the other way round.
What it leaves out: dropout, DoRA, double backward, autocast; `can_fuse` sends those down the plain
path in layer.py.
Where numerics differ: in fp32 the forward pass not at all. A gradient may differ in the last bits
(s moved to the small factor). Over a bf16 base the detour is computed in bf16, as under autocast;
PEFT widens x to fp32 for it.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import nn
from torch.nn import functional as F

from ..system.precision import autocast_dtype


class FusedLoRA(torch.autograd.Function):
    """y = x Wᵀ + b + ((x Aᵀ) Bᵀ) s with the backward pass derived above."""

    @staticmethod
    def forward(ctx, x, W, bias, A, B, scale):
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        a, b = A.to(x.dtype), B.to(x.dtype)  # no copy where the types agree
        h = F.linear(rows, a)  # (N, r)
        y = F.linear(rows, W, bias)  # (N, out)
        add_detour(y, h, b, scale)
        ctx.save_for_backward(rows, h, W, A, B)
        ctx.scale, ctx.shape = scale, x.shape
        return y.view(*x.shape[:-1], W.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, h, W, A, B = ctx.saved_tensors
        G = grad.reshape(-1, grad.shape[-1])  # (N, out)
        H = (G @ B.to(G.dtype)).mul_(ctx.scale)  # (N, r)
        dx = dA = dB = None
        if ctx.needs_input_grad[3]:
            dA = (H.T @ x).to(A.dtype)  # (r, in)
        if ctx.needs_input_grad[4]:
            # (out, r); few rows times many is the faster order
            dB = (h.T @ G).T.to(B.dtype).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            dx = (G @ W).addmm_(H, A.to(G.dtype)).view(ctx.shape)  # (..., in)
        return dx, None, None, dA, dB, None


def add_detour(y: torch.Tensor, h: torch.Tensor, B: torch.Tensor, scale: float) -> torch.Tensor:
    """y (N, out) += (h Bᵀ) · s in place, h (N, r), with the bits that y + (h Bᵀ) * s has in fp32.

    Times a power of two is exact wherever it stands. So s may go to h, and the product may add
    itself to y, or s to the sum.
    """
    if math.frexp(scale)[0] != 0.5:
        return y.add_(F.linear(h, B).mul_(scale))
    # nothing can be tried on fake numbers
    tracing = torch.compiler.is_compiling() or type(y) is not torch.Tensor
    if y.dtype != torch.float32 or (not tracing and adds_last(h.shape[1], y.device.type)):
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


def fused_lora(x, W, bias, A, B, scale: float) -> torch.Tensor:
    """x (..., in) -> (..., out), with gradients for x, A and B."""
    return FusedLoRA.apply(x, W, bias, A, B, scale)


def can_fuse(base: nn.Module, x: torch.Tensor, A: torch.Tensor) -> bool:
    """Whether base is a plain frozen nn.Linear read in its own type, outside autocast."""
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and x.dtype == base.weight.dtype
        and x.dtype in (A.dtype, torch.bfloat16)
        and not base._forward_hooks
        and not base._forward_pre_hooks
        and autocast_dtype(x.device.type) is None
    )

"""One autograd step for a frozen linear layer with an adapter: less traffic, the same numbers.

What it replaces: the chain of seven operations that autograd records for `base(x) + ((x Aᵀ) Bᵀ) * s`.
How it works: with x (N, in), W (out, in), A (r, in), B (out, r) and h = x Aᵀ (N, r) the output is

    y = x Wᵀ + b + (h Bᵀ) s

For G = ∂L/∂y (N, out) the chain rule gives, W and b being frozen,

    ∂L/∂B = s Gᵀ h                        (out, r)
    ∂L/∂h = s G B =: H                    (N, r)      small: everything of the adapter goes through r columns
    ∂L/∂A = Hᵀ x                          (r, in)
    ∂L/∂x = G W + H A                     (N, in)     the second product is added inside the first's buffer

so x and h are all that has to be kept (W, A and B are kept anyway). Autograd's chain makes the (N, out) passes "times s" and
"plus" forward and "times s" backward and the (N, in) pass that adds the two gradients of x; here s rides on small matrices, and sums are made in place.
What it leaves out: dropout, DoRA, double backward, autocast; `can_fuse` sends those down the plain path in layer.py.
Where numerics differ: forward not at all. A gradient may differ in the last bits (s moved to the small factor, sum in the buffer).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class FusedLoRA(torch.autograd.Function):
    """y = x Wᵀ + b + ((x Aᵀ) Bᵀ) s with the backward pass derived above."""

    @staticmethod
    def forward(ctx, x, W, bias, A, B, scale):
        rows = x.reshape(-1, x.shape[-1])  # (N, in)
        a, b = A.to(x.dtype), B.to(x.dtype)  # no copy where the types agree
        h = F.linear(rows, a)  # (N, r)
        y = F.linear(rows, W, bias)  # (N, out)
        detour = F.linear(h, b)  # (N, out)
        if math.frexp(scale)[0] == 0.5:  # times a power of two is exact, so y + s·d is rounded once in any case: one pass
            y.add_(detour, alpha=scale)
        else:
            y.add_(detour.mul_(scale))
        ctx.save_for_backward(rows, h, W, A, B)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

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
            dB = (h.T @ G).T.to(B.dtype).mul_(ctx.scale)  # (out, r); few rows times many is the faster order
        if ctx.needs_input_grad[0]:
            dx = (G @ W).addmm_(H, A.to(G.dtype)).view(*grad.shape[:-1], -1)  # (..., in)
        return dx, None, None, dA, dB, None


def fused_lora(x, W, bias, A, B, scale: float) -> torch.Tensor:
    """x (..., in) -> (..., out). All of one floating type; gradients for x, A and B."""
    return FusedLoRA.apply(x, W, bias, A, B, scale)


def can_fuse(base: nn.Module, x: torch.Tensor, A: torch.Tensor) -> bool:
    """Whether base is a plain frozen nn.Linear whose weights, input and adapter share one type, outside autocast."""
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and x.dtype == base.weight.dtype and (x.dtype == A.dtype or x.dtype == torch.bfloat16)
        and not base._forward_hooks
        and not base._forward_pre_hooks
        and not torch.is_autocast_enabled(x.device.type)
    )

"""Three parts of the Llama, norm, gate and rotation, with a backward pass written by hand: fewer
bytes kept, fewer passes over memory.

What it replaces: the chains of operations that autograd records for `RMSNorm`, for silu(a) · b and
for `rotate`.
How it works: for y = x r w with r = 1/√(mean(x²) + ε) over C features, w frozen, and g = ∂L/∂y,

    ∂L/∂x = r (g ∘ w) − x r³ ⟨g ∘ w, x⟩ / C

where autograd makes a dozen passes. For y = silu(a) ∘ b, with σ' the derivative of silu,

    ∂L/∂a = g ∘ b ∘ σ'(a)        ∂L/∂b = g ∘ silu(a)

only a and b are kept and silu(a), the size of the whole inner layer, is computed again. For the
rotation y = x cos + x' sin, x' being x with its halves swapped, ∂L/∂x = g cos + (g sin)'; the
halves are read where they stand, so that nothing is copied just to swap them.
What it leaves out: a norm whose weight trains (it takes torch's own way), gradients of cos and sin,
double backward.
Where numerics differ: forward and gate not at all; the other gradients in the last bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _needs_backward(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def rms_norm(x: Tensor, weight: nn.Parameter, eps: float) -> Tensor:
    """x / √(mean(x²) + ε) · weight over the last axis, the mean taken in fp32. x: (..., C)."""
    if _needs_backward(x) and not weight.requires_grad:
        return _FrozenNorm.apply(x, weight, eps)
    if x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    return weight * (wide * _inverse_rms(wide, eps)).to(x.dtype)


def gated(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) · b, both (..., F)."""
    return _Gated.apply(a, b) if _needs_backward(a, b) else F.silu(a) * b


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) turned by its positions' angles, as `llama.rotate`; cos and sin broadcast to x
    and need no gradient.
    """
    return _Turned.apply(x, cos, sin)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)  # (..., 1)


class _FrozenNorm(torch.autograd.Function):
    """The first equation above; keeps x and r."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.float()  # x itself, if it is fp32
        r = _inverse_rms(wide, eps)
        ctx.save_for_backward(x, weight, r)
        return (wide * r).to(x.dtype) * weight

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight, r = ctx.saved_tensors
        wide, gw = x.float(), (g * weight).float()
        along = torch.linalg.vecdot(gw, wide).unsqueeze(-1) * r.pow(3) / -x.shape[-1]  # (..., 1)
        return gw.mul_(r).addcmul_(wide, along).to(x.dtype), None, None


class _Gated(torch.autograd.Function):
    """The second pair of equations above; keeps a and b."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return F.silu(a).mul_(b)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        da = torch.ops.aten.silu_backward(g * b, a) if ctx.needs_input_grad[0] else None
        db = F.silu(a).mul_(g) if ctx.needs_input_grad[1] else None
        return da, db


class _Turned(torch.autograd.Function):
    """The rotation and its gradient; keeps the tables alone."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        swapped = torch.empty_like(x)  # x' sin
        torch.mul(x[..., half:], sin[..., :half], out=swapped[..., :half])
        torch.mul(x[..., :half], sin[..., half:], out=swapped[..., half:])
        return swapped.add_(x * cos)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        cos, sin = ctx.saved_tensors
        half = g.shape[-1] // 2
        dx = g * cos
        dx[..., :half].addcmul_(g[..., half:], sin[..., half:])
        dx[..., half:].addcmul_(g[..., :half], sin[..., :half])
        return dx, None, None

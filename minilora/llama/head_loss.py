"""Cross-entropy straight from hidden vectors, a few rows at a time, when the output head is frozen.

What it replaces: `head(hidden)` followed by `F.cross_entropy`; the idea is that of the fused linear
cross-entropy kernels.
How it works: with hidden vectors x (N, C), head W (V, C), z = x Wᵀ (N, V) and targets t, the summed
loss and its gradient are

    L = Σ_n ( log Σ_v exp z_nv − z_n,t(n) )
    ∂L/∂z = softmax(z) − onehot(t)                 (N, V)
    ∂L/∂x = ∂L/∂z · W                              (N, C)

Nothing but x, W and t is needed for either, so both are computed in the forward pass, a few hundred
rows at a time: the logits of those rows become probabilities and then ∂L/∂z in the memory where
they stand, small enough for the processor's cache, and are forgotten. Autograd's chain writes four
matrices (N, V), for a vocabulary of 4,096 and 1,024 tokens 17 MB each, and keeps one.
What it leaves out: gradients of W (a trained or adapted head takes the plain path), label
smoothing, double backward.
Where numerics differ: the rows' losses are added in another order; the last bits of loss and
gradient may differ. As in the plain path, logits go to float32 before the softmax and ∂L/∂z goes
back to the head's type for the product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..system.precision import autocast_dtype
from .config import HEAD_PORTION, HEAD_ROWS
from .model import Llama


def frozen_head(model: nn.Module) -> Tensor | None:
    """The head's weight (V, C) if `model` is our Llama and its head a plain one without gradient or
    listeners, else None.
    """
    if not isinstance(model, Llama) or type(model).head is not Llama.head:
        return None
    head = model.model.embed_tokens if model.lm_head is None else model.lm_head
    plain = type(head) in (nn.Linear, nn.Embedding) and getattr(head, "bias", None) is None
    if not plain or head.weight.requires_grad or head._forward_hooks or head._forward_pre_hooks:
        return None
    # no packed or sharded ones
    usual = (
        type(head.weight) in (Tensor, nn.Parameter) or type(head.weight).__name__ == "FakeTensor"
    )
    return head.weight if usual else None


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of hidden (N, C) under the frozen head weight (V, C), summed over targets (N,).
    In autocast's type inside its region.
    """
    dtype = autocast_dtype(hidden.device.type)
    if dtype is None:
        return _HeadLoss.apply(hidden, weight.to(hidden.dtype), targets)
    with torch.autocast(hidden.device.type, enabled=False):
        return _HeadLoss.apply(hidden, weight.to(dtype), targets)


class _HeadLoss(torch.autograd.Function):
    """The equations at the top of this file; the gradient is made in the forward pass and scaled in
    the backward one.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(HEAD_ROWS, HEAD_PORTION // weight.shape[0])
        for x, t, out in zip(
            hidden.split(rows),
            targets.split(rows),
            (hidden if gradient is None else gradient).split(rows),
        ):
            z = F.linear(x.to(weight.dtype), weight).float()  # (n, V)
            z -= z.amax(1, keepdim=True)
            t = t[:, None]
            total -= z.gather(1, t).sum()
            sums = z.exp_().sum(1, keepdim=True)  # (n, 1)
            total += sums.log().sum()
            if gradient is not None:
                z /= sums
                z.scatter_add_(1, t, z.new_full(t.shape, -1.0))  # softmax − onehot
                out.copy_(z.to(weight.dtype) @ weight)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (gradient,) = ctx.saved_tensors
        return gradient * g.to(gradient.dtype), None, None

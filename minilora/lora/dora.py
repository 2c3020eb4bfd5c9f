"""DoRA: learn how long each output row of the weight is, apart from where it points.

What it replaces: `peft.tuners.lora.dora`.
How it works (Liu et al. 2024, Eq. 5): W' = m · (W + s B A) / ‖W + s B A‖, one norm and one
magnitude m per output row; m starts as ‖W‖, so the layer begins unchanged. The norm counts as a
constant in the backward pass (§4.3). As an addition to the base's output, with f = m/‖·‖:  y + (f −
1)·(W x) + f · s · B(A x).
What it leaves out: PEFT's cache of the norm between evaluation steps.
Where numerics differ: PEFT forms B A by sending an identity matrix (in × in) through both layers,
we multiply the two (n ≫ r times less work); the norms may differ in the last bit.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def row_norms(W: torch.Tensor, low_rank: torch.Tensor, scale: float) -> torch.Tensor:
    """‖W + scale · low_rank‖ of each row: (out, in), (out, in) -> (out,)."""
    return torch.linalg.norm(W + scale * low_rank, dim=1).to(W.dtype)


def dora_factor(
    W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float, magnitude: torch.Tensor
) -> torch.Tensor:
    """f = m / ‖W + s B A‖, (out,). A gradient flows into m alone."""
    with torch.no_grad():
        norms = row_norms(W.to(A.dtype), B @ A, scale)
    return magnitude / norms


def dora_addition(
    base_y: torch.Tensor, low: torch.Tensor, B: torch.Tensor, scale: float, factor: torch.Tensor
) -> torch.Tensor:
    """(f − 1)·(W x) + f · B(A x) · s, from base_y = W x (..., out) without bias and low = A x (...,
    r).
    """
    return (factor - 1) * base_y + factor * F.linear(low, B) * scale

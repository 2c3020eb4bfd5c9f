"""Where A and B start: other beginnings than random A and zero B.

What it replaces: `init_lora_weights` of peft.LoraConfig ("gaussian", "pissa", "pissa_niter_N", "loftq", False).
How it works: PiSSA (Meng et al. 2024) puts W's r largest singular directions into s·B A and leaves the rest in the
frozen weight; LoftQ (Li et al. 2023, Algorithm 1) alternates Q = quantize(W − s B A) and B A = best rank-r of (W −
Q)/s, so that the adapter begins by repairing what quantization broke. Both change the base's weight and then W ≈
base + s B A.
What it leaves out: OLoRA, EVA, CorDA, LoRA-GA.
Where numerics differ: PiSSA is bit-equal to PEFT's. PEFT's LoftQ forgets s, so its start is right for α = r alone;
ours divides by s and equals PEFT's for s = 1.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..errors import MiniloraError
from .layer import AdaptedWeight, LoRALinear


@torch.no_grad()
def start_adapter(layer: AdaptedWeight, name: str, init: str) -> None:
    """Set A and B of a fresh adapter; "kaiming" is what it has already. PiSSA and LoftQ replace the base's weight."""
    kind, _, count = init.partition("_niter_")
    if kind == "kaiming":
        return
    if kind in ("pissa", "loftq"):
        _check_splittable(layer, name, kind)
        W, scale, rank = layer.base.weight.float(), layer.scale[name], layer.A[name].shape[0]
        if kind == "pissa":
            base, A, B = pissa(W, rank, scale, int(count) if count else None)
            layer.start[name] = A.clone(), B.clone()
        else:
            base, A, B = loftq(W, rank, scale, int(count or 1))
        layer.base.weight = nn.Parameter(base.to(layer.base.weight.dtype), requires_grad=False)
        layer.A[name].copy_(A)
        layer.B[name].copy_(B)
    elif isinstance(layer, LoRALinear):
        gaussian(layer, name) if kind == "gaussian" else random(layer, name)
    elif kind == "random":
        nn.init.normal_(layer.A[name])


def gaussian(layer: LoRALinear, name: str) -> None:
    """A ~ N(0, 1/r²), B = 0."""
    nn.init.normal_(layer.A[name], std=1 / layer.A[name].shape[0])


def random(layer: LoRALinear, name: str) -> None:
    """A and B both random: changes the model's output at once; for tests and experiments."""
    nn.init.kaiming_uniform_(layer.A[name], a=math.sqrt(5))
    nn.init.kaiming_uniform_(layer.B[name], a=math.sqrt(5))


def _check_splittable(layer: AdaptedWeight, name: str, kind: str) -> None:
    if not isinstance(layer, LoRALinear) or not isinstance(layer.base, nn.Linear) or not layer.base.weight.is_floating_point():
        raise MiniloraError(f"{kind} splits a weight in floating point, not a {type(layer.base).__name__}; add the adapter before quantizing")
    if len(layer.A) > 1:
        raise MiniloraError(f"{kind} changes the base under the layer's other adapters; add {name!r} to a model without any")


def pissa(W: torch.Tensor, rank: int, scale: float, iterations: int | None = None) -> tuple[torch.Tensor, ...]:
    """W (out, in) fp32 -> residual (out, in), A (r, in), B (out, r) with residual + s B A = W up to rounding.

    `iterations`: of the randomized SVD; None for the exact one.
    """
    if iterations is None:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)  # (out, k), (k,), (k, in)
        U, S, Vh = U[:, :rank], S[:rank] / scale, Vh[:rank]
    else:
        U, S, V = torch.svd_lowrank(W, rank, niter=iterations)
        S, Vh = S / scale, V.T
    root = torch.diag(S.sqrt())
    A, B = root @ Vh, U @ root
    return W - scale * B @ A, A, B


def loftq(W: torch.Tensor, rank: int, scale: float, iterations: int = 1, code: str = "nf4") -> tuple[torch.Tensor, ...]:
    """W (out, in) fp32 -> decoded Q (out, in), A (r, in), B (out, r) with Q + s B A nearer to W than Q alone."""
    from ..quantize import quantize

    low_rank = torch.zeros_like(W)
    for _ in range(iterations):
        Q = torch.as_tensor(quantize(W - low_rank, code).dequantize())
        U, S, Vh = torch.linalg.svd((W - Q) / scale, full_matrices=False)
        root = S[:rank].sqrt()
        A, B = root[:, None] * Vh[:rank], U[:, :rank] * root
        low_rank = scale * B @ A
    return Q, A, B

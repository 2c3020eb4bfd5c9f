"""Where A and B start: other beginnings than random A and zero B.

What it replaces: `init_lora_weights` of peft.LoraConfig ("gaussian", "pissa", "pissa_niter_N",
"loftq", False).
How it works: PiSSA (Meng et al. 2024) puts W's r largest singular directions into s·B A and leaves
the rest in the frozen weight; LoftQ (Li et al. 2023, Algorithm 1) alternates Q = quantize(W − s B
A) and B A = best rank-r of (W − Q)/s, so that the adapter begins by repairing what quantization
broke. Both change the base's weight and then W ≈ base + s B A. Over a base that is quantized
already (`--method qlora`) Q is that base as it decodes: A and B start from W − Q, with the W that
stood there before, which the caller kept (`linear_weights`).
What it leaves out: OLoRA, EVA, CorDA, LoRA-GA; PiSSA, and more than one round of LoftQ, over a
quantized base.
Where numerics differ: PiSSA is bit-equal to PEFT's. PEFT's LoftQ forgets s, so its start is right
for α = r alone; ours divides by s and equals PEFT's for s = 1.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ..errors import MiniloraError
from .layer import AdaptedWeight, LoRALinear

SPLITS = ("pissa", "loftq")  # starts that change the base themselves

# what LoftQ makes of a base in floating point, here and in PEFT
LOFTQ_BASE = {"code": "nf4", "block": 64, "double": False}


@torch.no_grad()
def start_adapter(
    layer: AdaptedWeight, name: str, init: str, weight: torch.Tensor | None = None
) -> None:
    """Set A and B of a fresh adapter; "kaiming" is what it has already. PiSSA and LoftQ replace a
    base in floating point.

    `weight`: W (out, in) before the base was quantized, for LoftQ over a quantized one.
    """
    kind, _, count = init.partition("_niter_")
    if kind == "kaiming":
        return
    if (
        kind == "loftq"
        and isinstance(layer, LoRALinear)
        and (weight is not None or packed_form(layer.base))
    ):
        repair(layer, name, int(count or 1), weight)
    elif kind in ("pissa", "loftq"):
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


def repair(layer: LoRALinear, name: str, rounds: int, weight: torch.Tensor | None) -> None:
    """LoftQ over a base that is quantized already: s B A is the best of rank r to W − Q, and Q
    stays as it is.
    """
    if weight is None:
        raise MiniloraError(
            f"loftq needs the weight that this {type(layer.base).__name__} held before it was "
            "quantized: take W = linear_weights(model) "
            "before quantize_model, then add_adapter(model, config, weights=W)"
        )
    if not packed_form(layer.base):
        raise MiniloraError(
            "loftq repairs quantized layers, and a target here is a plain "
            f"{type(layer.base).__name__}; leave it (lm_head?) out of targets"
        )
    if rounds != 1:
        raise MiniloraError(
            f"loftq_niter_{rounds} quantizes the base anew, and here it is quantized already; "
            "choose loftq, or --method lora"
        )
    Q = layer.dense().float()  # (out, in)
    A, B = nearest(weight.to(Q.device).float() - Q, layer.A[name].shape[0], layer.scale[name])
    layer.A[name].copy_(A)
    layer.B[name].copy_(B)


def packed_form(base: nn.Module) -> dict | None:
    """How a layer's weight is quantized, as run.json names it; None for numbers in floating
    point.
    """
    if isinstance(base, nn.Linear) and base.weight.is_floating_point():
        return None
    quantized = getattr(base, "quantized", None)
    if quantized is not None and hasattr(quantized, "nested"):
        return {
            "code": str(quantized.code),
            "block": quantized.block,
            "double": quantized.nested is not None,
        }
    return {"code": type(base).__name__}


def linear_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Path -> weight of every nn.Linear: what LoftQ needs after quantize_model. Holds on to them;
    drop it after add_adapter.
    """
    return {
        path: module.weight.detach()
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def _check_splittable(layer: AdaptedWeight, name: str, kind: str) -> None:
    if (
        not isinstance(layer, LoRALinear)
        or not isinstance(layer.base, nn.Linear)
        or not layer.base.weight.is_floating_point()
    ):
        raise MiniloraError(
            f"{kind} splits a weight in floating point, not a {type(layer.base).__name__}; "
            "load the model unquantized (--method lora), or start with kaiming"
        )
    if len(layer.A) > 1:
        raise MiniloraError(
            f"{kind} changes the base under the layer's other adapters; add {name!r} to a "
            "model without any"
        )


def pissa(
    W: torch.Tensor, rank: int, scale: float, iterations: int | None = None
) -> tuple[torch.Tensor, ...]:
    """W (out, in) fp32 -> residual (out, in), A (r, in), B (out, r) with residual + s B A = W up to
    rounding.

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


def loftq(
    W: torch.Tensor, rank: int, scale: float, iterations: int = 1, code: str = "nf4"
) -> tuple[torch.Tensor, ...]:
    """W (out, in) fp32 -> decoded Q (out, in), A (r, in), B (out, r) with Q + s B A nearer to W
    than Q alone.
    """
    from ..quantize.blockwise import quantize

    low_rank = torch.zeros_like(W)
    for _ in range(iterations):
        Q = torch.as_tensor(quantize(W - low_rank, code).dequantize())
        A, B = nearest(W - Q, rank, scale)
        low_rank = scale * B @ A
    return Q, A, B


def nearest(rest: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A (r, in) and B (out, r) for which s B A is the best of its rank to `rest` (out, in)."""
    U, S, Vh = torch.linalg.svd(rest / scale, full_matrices=False)
    root = S[:rank].sqrt()
    return root[:, None] * Vh[:rank], U[:, :rank] * root

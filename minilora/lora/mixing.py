"""One adapter out of several, by weight.

What it replaces: PEFT's `add_weighted_adapter` ("cat", "linear", "svd").
How it works: for adapters i with weights w_i and scales s_i, the wanted change of W is Σ w_i s_i
B_i A_i. cat stacks: A = [w_1 s_1 A_1; w_2 s_2 A_2], B = [B_1, B_2], of rank Σ r_i: exact. svd takes
the best rank-r approximation of the sum. linear adds the factors, A = Σ ±√|w_i s_i| A_i, B = Σ
√|w_i s_i| B_i: cheap, with cross terms B_i A_j that nobody asked for.
What it leaves out: TIES, DARE and magnitude pruning; mixing DoRA magnitudes or full modules.
Where numerics differ: bit-equal to PEFT's for cat and linear (α/r); PEFT keeps rsLoRA's scale on
the mixture, which multiplies it by √r, ours has scale 1. svd agrees in the product, within
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ..errors import MiniloraError
from .adapters import check_name, low_rank_layers, need_adapter, place, refuse_merged, use_adapter
from .config import AdapterConfig
from .layer import AdaptedWeight
from .targets import shortest_names

METHODS = ("cat", "linear", "svd")


@torch.no_grad()
def mix_adapters(
    model: nn.Module,
    adapters: Sequence[str],
    weights: Sequence[float],
    name: str,
    method: str = "cat",
    rank: int | None = None,
) -> nn.Module:
    """Add adapter `name` that does what `adapters` do, weighted, and let it speak. In place.

    rank: for svd, the rank of the result (default: the largest of the parts). Raises MiniloraError
    for unknown names or method, linear with unequal ranks, adapters with magnitudes or full
    modules.
    """
    check_name(model, name)
    refuse_merged(model, "mix adapters")
    if method not in METHODS:
        raise MiniloraError(
            f"mixing method {method!r} is not known; choose one of {', '.join(METHODS)}"
        )
    if not adapters or len(adapters) != len(weights) or not all(math.isfinite(w) for w in weights):
        raise MiniloraError(
            f"adapters {list(adapters)} and weights {list(weights)} do not pair; give one "
            "finite weight for each adapter"
        )
    configs = [need_adapter(model, each) for each in adapters]
    for each, config in zip(adapters, configs):
        if config.dora or config.full_modules:
            raise MiniloraError(
                f"adapter {each!r} has DoRA magnitudes or full modules, which cannot be "
                "mixed; merge them instead"
            )
    layers = low_rank_layers(model, *adapters)
    ranks = [
        max(layer.A[each].shape[0] for layer in layers.values() if layer.has(each))
        for each in adapters
    ]
    if method == "linear" and len(set(ranks)) > 1:
        raise MiniloraError(
            f"linear adds matrices of one size, the ranks are {ranks}; use method cat or svd"
        )
    total = {"cat": sum(ranks), "linear": ranks[0], "svd": rank or max(ranks)}[method]
    config = AdapterConfig(
        rank=total,
        alpha=total,
        targets=shortest_names(model, list(layers)),
        base_model=configs[0].base_model,
    )
    place(model, config, name, list(layers))
    for layer in layers.values():
        parts = [(each, weight) for each, weight in zip(adapters, weights) if layer.has(each)]
        A, B = {"cat": _cat, "linear": _linear, "svd": _svd}[method](layer, parts, total)
        layer.A[name].zero_()[: A.shape[0]] = A
        layer.B[name].zero_()[:, : B.shape[1]] = B
    return use_adapter(model, name)


def _cat(
    layer: AdaptedWeight, parts: list[tuple[str, float]], rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    A = torch.cat([layer.A[each] * weight * layer.scale[each] for each, weight in parts], dim=0)
    return A, torch.cat([layer.B[each] for each, _ in parts], dim=1)


def _linear(
    layer: AdaptedWeight, parts: list[tuple[str, float]], rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    strengths = [weight * layer.scale[each] for each, weight in parts]
    roots = [math.sqrt(abs(strength)) for strength in strengths]
    signed = [math.copysign(root, strength) for root, strength in zip(roots, strengths)]
    A = _weighted_sum([layer.A[each] for each, _ in parts], signed)
    return A, _weighted_sum([layer.B[each] for each, _ in parts], roots)


def _svd(
    layer: AdaptedWeight, parts: list[tuple[str, float]], rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    change = _weighted_sum(
        [layer.delta(each) for each, _ in parts], [weight for _, weight in parts]
    )
    U, S, Vh = torch.linalg.svd(change, full_matrices=False)
    return Vh[:rank], U[:, :rank] * S[:rank]


def _weighted_sum(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    stacked = torch.stack(list(tensors))  # (n, rows, columns)
    return (
        stacked * torch.tensor(weights, dtype=stacked.dtype, device=stacked.device)[:, None, None]
    ).sum(0)

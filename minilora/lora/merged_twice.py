"""Whether an adapter is in the weights already: a few numbers of what it would merge to, kept with
it.

What it replaces: nothing; PEFT adds an adapter a second time in silence.
How it works: W and W + s·B·A differ most, beside W's own size, in a few places. Their sixteen
numbers go into the file's metadata, as they were and as a merge makes them. A weight that stands
where the merge would put it, in every one of those places, is a merged one: another base, or a
coarser copy of this one, is nowhere near in all of them.
What it leaves out: DoRA, PiSSA's and LoftQ's split bases, adapters that have learned nothing,
packed bases on loading, and adapters that were trained beside 4-bit weights and merged into the
original ones.
"""

from __future__ import annotations

import json

import torch
from torch import nn

from ..errors import MiniloraError
from ..system.json_files import parse_json
from .config import AdapterConfig
from .layer import Adapted, LoRALinear, dense_weight
from .starts import SPLITS

MERGED_KEY = "minilora_merged"

PLACES = 16

SAMPLE = {
    "type": "array",
    "prefixItems": [
        {"type": "string"},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {"type": "array", "items": {"type": "number"}},
        {"type": "array", "items": {"type": "number"}},
    ],
    "minItems": 4,
    "maxItems": 4,
}

NEAR = 0.25  # of the change; a merge that was rounded to 16 bits is nearer, by the choice of places


@torch.no_grad()
def merged_sample(layers: dict[str, Adapted], name: str, config: AdapterConfig) -> str | None:
    """[path, places, numbers before, numbers after] of the first linear layer that adapter `name`
    changes, as JSON; None where that cannot be told.
    """
    if config.dora or config.init.startswith(SPLITS):
        return None
    for path, layer in layers.items():
        if not isinstance(layer, LoRALinear) or not layer.has(name) or layer.delta(name).is_meta:
            continue
        base = layer.original
        if not hasattr(base, "dense_weight") and not base.weight.is_floating_point():
            continue  # packed by another library
        before = dense_weight(base).float().flatten()  # (out · in)
        change = layer.delta(name).float().flatten()
        places = (
            (change.abs() / (before.abs() + before.abs().mean() / 100))
            .topk(min(PLACES, len(before)))
            .indices.sort()
            .values
        )
        if bool((change[places] != 0).all()):
            old, new = before[places].tolist(), (before + change)[places].tolist()
            return json.dumps(
                [path, places.tolist(), [round(v, 9) for v in old], [round(v, 9) for v in new]]
            )
    return None


def refuse_twice(modules: dict[str, nn.Module], stored: str | None, source: str) -> None:
    """Raise MiniloraError if the model's weights are those that this adapter makes when merged.
    `modules`: by path, before any adapter.
    """
    if not stored:
        return
    path, places, old, new = parse_json(
        stored, f"{source}: its metadata", SAMPLE, "save the adapter again"
    )
    weight = getattr(modules.get(path), "weight", None)
    if (
        weight is None
        or not weight.is_floating_point()
        or weight.is_meta
        or weight.dim() != 2
        or weight.numel() <= max(places)
    ):
        return
    flat = weight.detach().flatten()
    now = flat[torch.tensor(places, device=flat.device)].float().tolist()
    if all(
        abs(here - after) < NEAR * abs(after - before) for here, before, after in zip(now, old, new)
    ):
        raise MiniloraError(
            f"{source} is merged into this model already: {path}.weight is what it makes of "
            "it; load it on the base it was made for, or use the model as it is"
        )

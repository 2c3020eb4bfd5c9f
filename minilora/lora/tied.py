"""A head that reads the token table: how an adapter stands beside it.

What it replaces: transformers' tied `lm_head`, a linear layer that shares the embedding's weight,
and what PEFT's `ensure_weight_tying` makes of it.
How it works: our tied Llama has no head module; it multiplies by the table. As soon as an adapter
wants one, it gets a linear layer whose weight is the very parameter of the table, which does the
same product. The adapter then stands on that layer as on any other. When a merge gives one of the
two ends a weight of its own, the model is tied no longer.
What it leaves out: training two tied adapters as one; they are read as two with equal numbers.
Where numerics differ: nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import MiniloraError
from .layer import Adapted

HEADS = ("lm_head", "embed_out")
ENDS = ("embed_tokens", "lm_head")  # the names by which PEFT knows them


def table_head(model: Any) -> nn.Linear | None:
    """The head that a tied model without a head module has in effect; None for other models."""
    config = getattr(model, "config", None)
    if getattr(model, "lm_head", 0) is not None:
        return None
    if not getattr(config, "tie_word_embeddings", False):
        return None
    table = model.get_submodule("model.embed_tokens").weight  # (V, C)
    head = nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
    head.weight = table
    head.is_table = True  # type: ignore[assignment]
    return head.train(model.training)


def open_head(model: Any) -> None:
    """Let the head of a tied model be a module, if it is none yet."""
    head = table_head(model)
    if head is not None:
        model.lm_head = head


def closed(model: Any, module: nn.Module) -> nn.Module | None:
    """What stands where `module` stood once no adapter needs it: None for an opened head that is
    still tied.
    """
    still = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    return None if still and getattr(module, "is_table", False) else module


def tied_ends(modules: dict[str, nn.Module]) -> tuple[str, str] | None:
    """The paths (embedding, head) of two of `modules` that read one table; None where none do."""
    for head in (path for path in modules if path.rpartition(".")[2] in HEADS):
        weight = getattr(modules[head], "weight", None)
        for path, module in modules.items():
            if isinstance(module, nn.Embedding) and module.weight is weight:
                return path, head
    return None


def check_split(modules: dict[str, nn.Module], paths: Sequence[str], init: str) -> None:
    """Raise MiniloraError if PiSSA or LoftQ would split an embedding, or a head that reads one."""
    ends = tied_ends(modules) or ()
    for path in paths:
        if path in ends or isinstance(modules[path], nn.Embedding):
            raise MiniloraError(
                f"{init} splits a linear layer's weight, and {path} is an embedding or shares its "
                "table; leave it out of targets, or start with kaiming"
            )


def untie(model: Any, layers: dict[str, Adapted]) -> None:
    """If a merge gave a tied embedding or head weights of its own, store the two apart from now
    on.
    """
    config = getattr(model, "config", None)
    ends = [
        layer
        for path, layer in layers.items()
        if path.rpartition(".")[2] in (*HEADS, "embed_tokens")
    ]
    merged = [layer for layer in ends if layer.merged]
    if not merged or config is None or not getattr(config, "tie_word_embeddings", False):
        return
    config.tie_word_embeddings = False
    if getattr(model, "lm_head", 0) is None:  # our Llama's tied head is the table itself
        table = merged[0].original.weight
        model.lm_head = nn.Linear(table.shape[1], table.shape[0], bias=False, device="meta")
        model.lm_head.weight = nn.Parameter(table.detach().clone(), requires_grad=False)

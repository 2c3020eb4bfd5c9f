"""How large the inputs of each linear layer are: column by column, and token by token.

What it replaces: hooks written in a lesson's cell.
How it works: while `run` uses the model, a hook before each linear layer keeps the largest
magnitude of every column (feature) over all tokens, and of every token over all columns. Columns
say what a threshold would take apart; tokens say how many rows of the product that touches.
What it leaves out: the signs, and which token belongs to which text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn


class Largest(NamedTuple):
    """Largest magnitudes: columns (in,), tokens (N,)."""

    columns: torch.Tensor
    tokens: torch.Tensor


@torch.no_grad()
def largest_inputs(model: nn.Module, run: Callable[[], object]) -> dict[str, Largest]:
    """Call run(), which uses the model; what each linear layer's input held, by its path."""
    found: dict[str, Largest] = {}

    def watch(path: str):
        def look(module, inputs):
            size = inputs[0].abs().flatten(0, -2)  # (N, in)
            columns, tokens = size.amax(0), size.amax(1)
            if path in found:
                columns = torch.maximum(found[path].columns, columns)
                tokens = torch.cat([found[path].tokens, tokens])
            found[path] = Largest(columns, tokens)

        return look

    layers = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    hooks = [layer.register_forward_pre_hook(watch(path)) for path, layer in layers.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found

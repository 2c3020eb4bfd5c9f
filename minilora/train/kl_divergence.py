"""How far a model has moved: the Kullback–Leibler divergence from what it predicted before.

What it replaces: "the outputs look the same".
How it works: for each position p is the old model's distribution of the next token and q the new
one's;

    KL(p ‖ q) = Σ_v p_v · (ln p_v − ln q_v)    nats a token, averaged over positions

0 means that both predict the same; it counts most where the old model was sure. The positions are
those of the answers of given rows, or of text that the old model writes itself, so that no data are
needed.
What it leaves out: intervals; a mean over a few hundred positions is enough to tell 10⁻¹² from
10⁻³.
Where numerics differ: logits go to float64 before the softmax, so that rounding there does not hide
how near zero it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import MiniloraError
from ..llama.generate import stop_ids
from ..system.precision import device_of
from ..text.rows import IGNORE, Row, collate
from .loss import pad_id_of
from .row_checks import require_vocabulary

if TYPE_CHECKING:
    from ..llama.model import Llama


@torch.no_grad()
def own_text(model: Llama, start: int, rows: int = 8, length: int = 48) -> list[Row]:
    """Rows that the model writes from the token `start` at temperature 1, always the same ones;
    every token counts but the first.

    A row ends with the model's end token; the padding that `generate` puts behind it is no text of
    the model.
    """
    ids = model.generate(
        torch.full((rows, 1), start, device=device_of(model)), length, temperature=1.0, seed=0
    )
    ends = stop_ids(model, None)
    whole = [
        row[: next((i for i, token in enumerate(row) if i and token in ends), length) + 1]
        for row in ids.tolist()
    ]
    return [(row, [IGNORE, *row[1:]]) for row in whole]


@torch.no_grad()
def log_probabilities(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """ln p of every next token at the positions that count: (N, V), float64, not on a GPU, where
    such tables fill the memory. Raises MiniloraError if no position does, and for an id that the
    model does not have.
    """
    require_vocabulary(model, rows, "data")
    found = []
    for row in rows:  # one by one: padding would change the order of additions
        ids, labels, _ = collate([row], pad_id_of(model))
        logits = model(ids.to(device_of(model)))[0, :-1]  # (T-1, V)
        found.append(
            logits[labels[0, 1:].to(logits.device) != IGNORE].double().log_softmax(-1).cpu()
        )
    if not sum(len(part) for part in found):
        raise MiniloraError("the rows hold no token to predict; give rows with answers")
    return torch.cat(found)


def kl(before: Tensor, after: Tensor) -> float:
    """Mean KL(before ‖ after) in nats a token, of two tables of log-probabilities (N, V)."""
    return (before.exp() * (before - after)).sum(-1).mean().item()

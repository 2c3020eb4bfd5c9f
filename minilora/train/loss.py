"""The loss of a model on rows of ids.

What it replaces: the loss inside `LlamaForCausalLM`, and evaluation loops.
How it works: cross-entropy is *summed* over the learned tokens and returned with their number, so
that every mean above it (a step of several micro-batches, a validation set) weights each token
alike.
What it leaves out: perplexity per word.
Where numerics differ: a minilora Llama's head is applied at learned positions only; that changes
the order of additions in the head's gradient and in the sum. Logits go to float32 before the
cross-entropy, as in transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import MiniloraError
from ..llama.head_loss import frozen_head, head_loss
from ..system.precision import autocast, device_of, mode
from ..text.rows import IGNORE, Row, collate
from .row_checks import require_vocabulary

if TYPE_CHECKING:
    from ..llama.model import Llama


def pad_id_of(model: nn.Module) -> int:
    """Any id will do for padding: its positions are never learned and lie behind what is. -1 is
    none.
    """
    given = getattr(getattr(model, "config", None), "pad_token_id", None)
    return given if given is not None and given > 0 else 0


def loss_sum(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
    """Cross-entropy summed over the learned tokens of a batch, and their number.

    A minilora Llama computes logits at these positions only, and a few at a time where its head is
    frozen (`llama.head_loss`); any other model gives logits (B, T, V), bare or `.logits`.
    """
    ids, labels, mask = batch  # (B, T) each
    wanted = labels[:, 1:] != IGNORE  # (B, T-1): position t predicts token t+1
    targets = labels[:, 1:][wanted]  # (N,)
    if hasattr(model, "head") and hasattr(model, "model"):
        llama = cast("Llama", model)
        hidden = llama.model(ids)  # (B, T, C); padding is on the right, the causal order hides it
        hidden = hidden[:, :-1][wanted]  # (N, C)
        weight = frozen_head(model)
        if weight is not None:
            return head_loss(hidden, weight, targets), targets.numel()
        logits = llama.head(hidden)  # (N, V)
    else:
        output = model(ids, attention_mask=mask)
        logits = getattr(output, "logits", output)[:, :-1][wanted]  # (N, V)
    return F.cross_entropy(logits.float(), targets, reduction="sum"), targets.numel()


def tensors(rows: Sequence[Row], model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    device = device_of(model)
    return tuple(tensor.to(device) for tensor in collate(rows, pad_id_of(model)))


@torch.no_grad()
def evaluate_loss(
    model: nn.Module, rows: Sequence[Row], batch_size: int = 32, precision: str = "auto"
) -> float:
    """Mean cross-entropy per learned token, in nats. Leaves the model in the mode it was in.

    Raises RowFailed for an id that the model does not have, MiniloraError where no token is
    learned.
    """
    require_vocabulary(model, rows, "rows")
    total, count = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row[0]))
    with mode(model, False), autocast(model, precision):
        for start in range(0, len(ordered), batch_size):
            loss, tokens = loss_sum(model, tensors(ordered[start : start + batch_size], model))
            total, count = total + loss.item(), count + tokens
    if count == 0:
        raise MiniloraError(
            "no token of these rows is learned, so there is no loss; give examples with answers"
        )
    return total / count

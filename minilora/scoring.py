"""How good is a model: the loss on rows of ids, the share of exact answers to questions.

What it replaces: the loss inside `LlamaForCausalLM`, evaluation loops, exact match of
lm-evaluation-harness.
How it works: cross-entropy is *summed* over the learned tokens and returned with their number, so
that every mean above it (a step of several micro-batches, a validation set) weights each token
alike. Questions are answered greedily in batches of like length, padded on the left, and compared
as texts.
What it leaves out: perplexity per word, sampling, scores other than equality.
Where numerics differ: a minilora Llama's head is applied at learned positions only; that changes
the order of additions in the head's gradient and in the sum. Logits go to float32 before the
cross-entropy, as in transformers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import MiniloraError
from .headloss import frozen_head, head_loss
from .text import IGNORE, Row, Tokenizer, collate, question_and_answer


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def pad_id_of(model: nn.Module) -> int:
    """Any id will do for padding: its positions are never learned and lie behind what is."""
    return getattr(getattr(model, "config", None), "pad_token_id", None) or 0


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def settle_precision(model: nn.Module, precision: str) -> str:
    """What "auto" means on the model's device: bf16 on a GPU that has it, fp16 on an older one such
    as the T4, else fp32.
    """
    device = device_of(model)
    if precision != "auto" or device.type != "cuda":
        return "fp32" if precision == "auto" else precision
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def autocast(model: nn.Module, precision: str):
    """Products in bf16 or fp16 where asked for, or where "auto" means that; else nothing."""
    half = HALVES.get(settle_precision(model, precision))
    return (
        contextlib.nullcontext()
        if half is None
        else torch.autocast(device_of(model).type, dtype=half)
    )


def loss_sum(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
    """Cross-entropy summed over the learned tokens of a batch, and their number.

    A minilora Llama computes logits at these positions only, and a few at a time where its head is
    frozen (`headloss`); any other model gives logits (B, T, V), bare or `.logits`.
    """
    ids, labels, mask = batch  # (B, T) each
    wanted = labels[:, 1:] != IGNORE  # (B, T-1): position t predicts token t+1
    targets = labels[:, 1:][wanted]  # (N,)
    if hasattr(model, "head") and hasattr(model, "model"):
        hidden = model.model(ids)  # (B, T, C); padding is on the right, the causal order hides it
        hidden = hidden[:, :-1][wanted]  # (N, C)
        weight = frozen_head(model)
        if weight is not None:
            return head_loss(hidden, weight, targets), targets.numel()
        logits = model.head(hidden)  # (N, V)
    else:
        output = model(ids, attention_mask=mask)
        logits = getattr(output, "logits", output)[:, :-1][wanted]  # (N, V)
    return F.cross_entropy(logits.float(), targets, reduction="sum"), targets.numel()


def tensors(rows: Sequence[Row], model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    device = device_of(model)
    return tuple(tensor.to(device) for tensor in collate(rows, pad_id_of(model)))


@contextlib.contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


@torch.no_grad()
def evaluate_loss(
    model: nn.Module, rows: Sequence[Row], batch_size: int = 32, precision: str = "auto"
) -> float:
    """Mean cross-entropy per learned token, in nats. Leaves the model in the mode it was in."""
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


def left_pad(prompts: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])  # (B, T)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])  # (B, T)
    return ids, mask


def exact_match(
    model: nn.Module,
    tokenizer: Tokenizer,
    examples: Sequence[dict],
    batch_size: int = 32,
    progress: bool = False,
) -> tuple[int, int, list[str]]:
    """Greedy answers beside the expected ones: `(hits, number, answers)`; outer white space does
    not count.

    An answer is broken off a few tokens after the longest expected one of its batch: by then it is
    wrong anyway.
    """
    from tqdm.auto import tqdm

    pairs = [question_and_answer(example, tokenizer) for example in examples]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
    answers = [""] * len(pairs)
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    with mode(model, False), torch.no_grad():
        for chunk in tqdm(chunks, disable=not progress, leave=False):
            ids, mask = left_pad([pairs[i][0] for i in chunk], tokenizer.pad_id)
            ids, mask = ids.to(device_of(model)), mask.to(device_of(model))
            new = max(len(tokenizer.encode(pairs[i][1])) for i in chunk) + 4
            out = model.generate(ids, new, attention_mask=mask, stop=tokenizer.eos_id)
            for i, row in zip(chunk, out[:, ids.shape[1] :].tolist()):
                row = row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row
                answers[i] = tokenizer.decode(row)
    hits = sum(answer.strip() == expected.strip() for answer, (_, expected) in zip(answers, pairs))
    return hits, len(pairs), answers

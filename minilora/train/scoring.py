"""Exact match: greedy answers beside the wanted ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..system.precision import device_of, mode
from ..text.ends import answer_ends, end_of, require_ids
from ..text.prompts import question_and_answer
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..llama.model import Llama


def left_pad(prompts: Sequence[list[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])  # (B, T)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])  # (B, T)
    return ids, mask


def is_hit(answer: str, expected: str) -> bool:
    """Whether an answer is the wanted one: all of it, outer white space aside."""
    return answer.strip() == expected.strip()


def exact_match(
    model: Llama,
    tokenizer: Tokenizer,
    examples: Sequence[dict],
    batch_size: int = 32,
    progress: bool = False,
) -> tuple[int, int, list[str]]:
    """Greedy answers beside the expected ones: `(hits, number, answers)`; outer white space does
    not count. An answer ends where text/ends.py says.

    It is broken off a few tokens after the longest expected one of its batch: by then it is
    wrong anyway.
    """
    from tqdm.auto import tqdm

    require_ids(model, tokenizer)
    ends = answer_ends(model, tokenizer)
    pairs = [question_and_answer(example, tokenizer) for example in examples]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]))
    answers = [""] * len(pairs)
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    with mode(model, False), torch.no_grad():
        for chunk in tqdm(chunks, disable=not progress, leave=False):
            ids, mask = left_pad([pairs[i][0] for i in chunk], tokenizer.pad_id)
            ids, mask = ids.to(device_of(model)), mask.to(device_of(model))
            new = max(len(tokenizer.encode(pairs[i][1])) for i in chunk) + 4
            out = model.generate(ids, new, attention_mask=mask, stop=ends)
            for i, row in zip(chunk, out[:, ids.shape[1] :].tolist()):
                answers[i] = tokenizer.decode(row[: end_of(row, ends)])
    hits = sum(is_hit(answer, expected) for answer, (_, expected) in zip(answers, pairs))
    return hits, len(pairs), answers

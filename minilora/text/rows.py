"""From an example to a row of token ids with labels, and from rows to batches: padded, or packed.

What it replaces: TRL's data collators and packing.
How it works: the pieces of an example (prompts.py) are encoded one by one, so no token ever
straddles the border between prompt and response. The label of a given token is -100, which
cross-entropy skips; every learned answer ends with EOS, and that EOS is learned even where the
padding token is the same token: padding is masked by length, not by id.
What it leaves out: `pack` puts no mask between the documents that share a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import MiniloraError
from .prompts import messages_of, pieces_of
from .tokenizer import Tokenizer

IGNORE = -100  # the label that torch's cross_entropy skips


Row = tuple[list[int], list[int]]  # ids and labels, of equal length, not shifted


def _learned_ids(text: str, tokenizer: Tokenizer) -> Row:
    """Ids and labels of an answer: learned up to and with its EOS; what a template adds behind it
    is given.
    """
    ids = tokenizer.encode(text)
    if tokenizer.eos_id not in ids:
        ids.append(tokenizer.eos_id)
    end = len(ids) - ids[::-1].index(tokenizer.eos_id)  # just behind the last EOS
    return ids, ids[:end] + [IGNORE] * (len(ids) - end)


def encode_example(example: dict, tokenizer: Tokenizer, max_length: int | None = None) -> Row:
    """`(ids, labels)` of one example, of equal length and not shifted; labels are -100 on
    everything given.

    A row longer than `max_length` loses the oldest tokens of its prompt (BOS stays); a bare `text`
    loses its end. Raises MiniloraError if the answer alone is too long: cutting it would teach the
    model to stop in the middle.
    """
    if "text" in example and "prompt" not in example and "messages" not in example:
        ids = tokenizer.encode(example["text"], bos=True, eos=True)[:max_length]
        given = 1 if tokenizer.bos_id is not None else 0
        return ids, [IGNORE] * given + ids[given:]
    ids, labels = [], []
    for text, learned in pieces_of(messages_of(example), tokenizer):
        new_ids, new_labels = (
            _learned_ids(text, tokenizer) if learned else (tokenizer.encode(text), None)
        )
        ids += new_ids
        labels += new_labels or [IGNORE] * len(new_ids)
    if max_length is None or len(ids) <= max_length:
        return ids, labels
    head = 1 if tokenizer.bos_id is not None and ids[0] == tokenizer.bos_id else 0
    first = next(i for i, label in enumerate(labels) if label != IGNORE)
    cut = len(ids) - max_length
    if "messages" not in example and head + cut >= first:
        needed = len(ids) - first + head + 1
        raise MiniloraError(
            f"the answer {example['response'][:30]!r}… needs {needed} tokens, the limit is "
            f"{max_length}; "
            f"raise --seq to {needed} or more, or shorten the answer"
        )
    ids, labels = ids[:head] + ids[head + cut :], labels[:head] + labels[head + cut :]
    if all(label == IGNORE for label in labels):
        raise MiniloraError(
            f"no answer is left of a conversation cut to {max_length} tokens; raise --seq"
        )
    return ids, labels


def encode_rows(
    examples: Sequence[dict], tokenizer: Tokenizer, max_length: int | None = None
) -> list[Row]:
    """`encode_example` for each; an error says which example it was, counted from 1."""
    rows = []
    for number, example in enumerate(examples, start=1):
        try:
            rows.append(encode_example(example, tokenizer, max_length))
        except MiniloraError as error:
            raise MiniloraError(f"example {number}: {error}") from error
    return rows


# ---------------------------------------------------------------------------------- rows to tensors


def collate(rows: Sequence[Row], pad_id: int):
    """Pad on the right to the longest row: `ids, labels, attention_mask`, all (B, T) int64."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)  # (B, T)
    labels = torch.full((len(rows), width), IGNORE, dtype=torch.long)  # (B, T)
    mask = torch.zeros((len(rows), width), dtype=torch.long)  # (B, T)
    for i, (row_ids, row_labels) in enumerate(rows):
        ids[i, : len(row_ids)] = torch.tensor(row_ids)
        labels[i, : len(row_ids)] = torch.tensor(row_labels)
        mask[i, : len(row_ids)] = 1
    return ids, labels, mask


def pack(rows: Iterable[Row], length: int) -> list[Row]:
    """Join the rows into one stream and cut it into rows of `length`; the last may be shorter. No
    token is lost.
    """
    if length < 2:
        raise MiniloraError(
            f"packing to a length of {length} leaves nothing to predict; give 2 or more"
        )
    rows = list(rows)
    ids = [token for row_ids, _ in rows for token in row_ids]
    labels = [label for _, row_labels in rows for label in row_labels]
    return [(ids[i : i + length], labels[i : i + length]) for i in range(0, len(ids), length)]

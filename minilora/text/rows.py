"""From an example to a row of token ids with labels, and from rows to batches: padded, or packed.

What it replaces: TRL's data collators and packing.
How it works: the pieces of an example (prompts.py) are encoded as one text (encoding.py). The label
of a given token is -100, which cross-entropy skips; every learned answer ends with EOS, and that
EOS is learned even where the padding token is the same token: padding is masked by length, not by
id. A text or an answer that brings a BOS or EOS of its own has one in its row, not two.
What it leaves out: `pack` puts no mask between the documents that share a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..errors import MiniloraError
from .encoding import encode_pieces
from .prompts import messages_of, pieces_of
from .tokenizer import Piece, Tokenizer

IGNORE = -100  # the label that torch's cross_entropy skips


Row = tuple[list[int], list[int]]  # ids and labels, of equal length, not shifted


def _text_row(text: str, tokenizer: Tokenizer) -> Row:
    """All of a text is learned, but for what the tokenizer puts before it."""
    ids = tokenizer.encode_text(text)
    while ids[-1:] == [tokenizer.eos_id] and len(ids) > 1:
        ids = ids[:-1]
    ids = [*ids, tokenizer.eos_id]
    given = len(tokenizer.opening)
    return ids, [IGNORE] * given + ids[given:]


def _chat_row(pieces: Sequence[Piece], tokenizer: Tokenizer) -> Row:
    """The pieces as one row; an answer is learned up to and with its EOS, and what a template adds
    behind that is given.
    """
    eos = tokenizer.eos
    ended = [
        (text + eos if learned and eos not in text else text, learned) for text, learned in pieces
    ]
    ids, places = encode_pieces(ended, tokenizer)
    labels = [IGNORE] * len(ids)
    twice: list[int] = []  # places of an EOS in front of another
    for start, end, (_, learned) in zip(places, places[1:], ended):
        if not learned:
            continue
        last = max((i for i in range(start, end) if ids[i] == tokenizer.eos_id), default=None)
        if last is None:
            raise MiniloraError(
                f"the tokenizer does not read its own eos_token {eos!r} as the one token of that "
                "name, so no answer would end; take tokenizer.json from where it came"
            )
        labels[start : last + 1] = ids[start : last + 1]
        first = last
        while first > start and ids[first - 1] == tokenizer.eos_id:
            first -= 1
        if first == start:
            raise MiniloraError(
                "the chat template leaves nothing of an answer but its end; leave the answer out, "
                "or give its message `weight: 0`"
            )
        twice += range(first, last)
    kept = [i for i in range(len(ids)) if i not in twice]
    front = len(kept) - len(tokenizer.one_bos([ids[i] for i in kept]))
    return [ids[i] for i in kept[front:]], [labels[i] for i in kept[front:]]


def _without_oldest(messages: Sequence[dict]) -> list[dict] | None:
    """The conversation without its first question and what answers it; None where only one is left.
    What a system says first stays.
    """
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if len(users) < 2 or users[1] >= len(messages) - 1:
        return None
    return [*messages[: users[0]], *messages[users[1] :]]


def _conversation_row(example: dict, tokenizer: Tokenizer, max_length: int | None) -> Row:
    """A conversation that is too long loses whole turns, the oldest first."""
    left: Sequence[dict] | None = example["messages"]
    while left is not None:
        row = _chat_row(pieces_of(left, tokenizer), tokenizer)
        if max_length is None or len(row[0]) <= max_length:
            if all(label == IGNORE for label in row[1]):
                raise MiniloraError(
                    "no answer of the conversation is learned; give one of those that fit into "
                    "--seq a weight of 1, or leave the conversation out"
                )
            return row
        left = _without_oldest(left)
    raise MiniloraError(
        f"the last question of a conversation and its answer need {len(row[0])} tokens, the limit "
        f"is {max_length}; raise --seq to {len(row[0])} or more, or shorten them"
    )


def encode_example(example: dict, tokenizer: Tokenizer, max_length: int | None = None) -> Row:
    """`(ids, labels)` of one example, of equal length and not shifted; labels are -100 on
    everything given.

    A question longer than `max_length` loses its oldest tokens (BOS stays), a conversation its
    oldest turns, a bare `text` its end. Raises MiniloraError if what is left is too long: cutting
    an answer would teach the model to stop in the middle.
    """
    if "text" in example and "prompt" not in example and "messages" not in example:
        ids, labels = _text_row(example["text"], tokenizer)
        return ids[:max_length], labels[:max_length]
    if "messages" in example:
        return _conversation_row(example, tokenizer, max_length)
    ids, labels = _chat_row(pieces_of(messages_of(example), tokenizer), tokenizer)
    if max_length is None or len(ids) <= max_length:
        return ids, labels
    head = 1 if tokenizer.bos_id is not None and ids[0] == tokenizer.bos_id else 0
    first = next(i for i, label in enumerate(labels) if label != IGNORE)
    cut = len(ids) - max_length
    if head + cut >= first:
        needed = len(ids) - first + head + 1
        raise MiniloraError(
            f"the answer {example['response'][:30]!r}… needs {needed} tokens, the limit is "
            f"{max_length}; "
            f"raise --seq to {needed} or more, or shorten the answer"
        )
    return ids[:head] + ids[head + cut :], labels[:head] + labels[head + cut :]


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

"""What can be wrong with rows of ids and labels, looked for in each of them.

What it replaces: a run that breaks in its third epoch, or a model that never stops.
How it works: a row is (ids, labels), not shifted and without its padding; labels are -100 where a
token is given. Every row is held against the model's ids and positions, must begin with one BOS and
end with one EOS, and its answers must end with an EOS that is learned. A row without given tokens
is text, which may end anywhere, and so may a piece of a packed stream.
What it leaves out: what the answers say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import MiniloraError
from ..text.ends import model_ends
from ..text.rows import IGNORE, Row


class CheckFailed(MiniloraError):
    """The run would train nothing, or not what was meant."""


class RowFailed(CheckFailed):
    """`number`: the row, counted from 1, of which `problem` tells; `among`: the rows it is of."""

    def __init__(self, number: int, problem: str, among: str):
        self.number, self.problem, self.among = number, problem, among
        super().__init__(f"row {number} of the {among} {problem}")


def require_vocabulary(model: Any, rows: Sequence[Row], among: str) -> None:
    """Raise RowFailed for an id that the model does not have."""
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    for number, (ids, _) in enumerate(rows, 1):
        if size is not None and ids and (min(ids) < 0 or max(ids) >= size):
            raise RowFailed(
                number,
                f"holds token id {max(ids) if max(ids) >= size else min(ids)}, the model knows 0 "
                f"to {size - 1}; use the tokenizer of this model, or give the model rows for "
                "tokens that were added (transformers' resize_token_embeddings)",
                among,
            )


def require_fit(model: Any, rows: Sequence[Row], among: str) -> None:
    """Raise RowFailed for an id or a length that the model does not have, and for labels that are
    not the ids at their own place.
    """
    require_vocabulary(model, rows, among)
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for number, (ids, labels) in enumerate(rows, 1):
        if positions is not None and len(ids) > positions:
            raise RowFailed(
                number,
                f"has {len(ids)} tokens, the model was made for {positions}; lower --seq to "
                f"{positions}",
                among,
            )
        if not _unshifted(ids, labels):
            raise RowFailed(
                number,
                "has labels that differ from the ids at their own position: they are shifted "
                "already; the loss shifts them, pass them unshifted",
                among,
            )


def require_answers(rows: Sequence[Row], among: str) -> None:
    """Raise RowFailed for a row of which nothing is learned: alone in its step it would count as a
    loss of zero.
    """
    for number, row in enumerate(rows, 1):
        if not _learns(row):
            raise RowFailed(
                number,
                "has nothing to learn, all its labels are masked (-100); leave it out, or put "
                "the answer in `response`",
                among,
            )


def require_borders(model: Any, rows: Sequence[Row], among: str) -> None:
    """Raise RowFailed for two BOS or two EOS where one belongs, and for answers that do not end
    with an EOS that is learned.
    """
    begins = getattr(getattr(model, "config", None), "bos_token_id", None)
    starts = set(begins if isinstance(begins, (list, tuple)) else [begins])
    ends = set(model_ends(model))
    for number, (ids, labels) in enumerate(rows, 1):
        if len(ids) > 1 and ids[0] == ids[1] and ids[0] in starts:
            raise RowFailed(
                number,
                f"starts with two BOS tokens (id {ids[0]}); leave out the one that the text "
                "brings along",
                among,
            )
        if len(labels) > 2 and labels[-1] == labels[-2] and labels[-1] in ends:
            raise RowFailed(
                number,
                f"ends with two EOS tokens (id {labels[-1]}); leave out the one that the text "
                "brings along",
                among,
            )
    if ends:
        _require_ends(rows, ends, among)


def check_rows(model: Any, rows: Sequence[Row], among: str = "data") -> None:
    """Raise CheckFailed for what is wrong in any of the rows, which would show only when its turn
    comes, or never. among: what the rows are called.
    """
    require_fit(model, rows, among)
    require_answers(rows, among)
    require_borders(model, rows, among)


def _unshifted(ids: list[int], labels: list[int]) -> bool:
    given = labels.count(IGNORE)
    if len(ids) == len(labels) and ids[given:] == labels[given:]:
        return True  # all that is given stands in front, as in most rows
    return len(ids) == len(labels) and all(
        label in (IGNORE, each) for each, label in zip(ids, labels)
    )


def _learns(row: Row) -> bool:
    predicted = row[1][1:]  # nothing predicts a row's first token
    return predicted.count(IGNORE) < len(predicted)


def _require_ends(rows: Sequence[Row], ends: set[int], among: str) -> None:
    """Rows with a masked prompt are questions and answers: each must end with an EOS that is
    learned.
    """
    asked = [
        (number, row) for number, row in enumerate(rows, 1) if IGNORE in row[1][1:] and _learns(row)
    ]
    # rows that were packed are of one length, and one begins in the middle of an answer
    even = len({len(ids) for ids, _ in rows[:-1]}) <= 1
    stream = any(labels and labels[0] != IGNORE for _, labels in rows)
    open_rows = [
        number for number, row in asked if _open(row, ends, even and (stream or _any(row, ends)))
    ]
    if not open_rows:
        return
    named = " or ".join(map(str, sorted(ends)))
    remedy = (
        "end each answer with EOS and keep its label, also where PAD is the same token; if the "
        "tokenizer's EOS is another, tell the model by text.tell_end(model, tokenizer)"
    )
    if len(open_rows) < len(rows):
        raise RowFailed(
            open_rows[0],
            f"has an answer whose EOS (id {named}) is not learned, as {len(open_rows)} of "
            f"{len(rows)} rows have, so the model would never stop there; {remedy}",
            among,
        )
    raise CheckFailed(
        f"no answer's EOS (id {named}) is learned, so the model would never stop; {remedy}"
    )


def _any(row: Row, ends: set[int]) -> bool:
    return not ends.isdisjoint(row[1][1:])


def _open(row: Row, ends: set[int], may_be_cut: bool) -> bool:
    """Whether the last answer has no end that is learned, or another has lost its own to the mask.
    may_be_cut: an answer that runs to the end of the row goes on in the next one.
    """
    ids, labels = row
    last = next(place for place in reversed(range(len(labels))) if labels[place] != IGNORE)
    if not _ended(labels, last, ends) and not (may_be_cut and last == len(labels) - 1):
        return True
    masked = (
        place
        for place in _places(ids, ends)
        if labels[place] == IGNORE and place > 0 and labels[place - 1] != IGNORE
    )
    return any(not _ended(labels, place - 1, ends) for place in masked)


def _places(ids: Sequence[int], ends: Iterable[int]) -> Iterable[int]:
    for end in ends:
        place = -1
        for _ in range(ids.count(end)):
            yield (place := ids.index(end, place + 1))


def _ended(labels: Sequence[int], last: int, ends: set[int]) -> bool:
    """Whether the learned tokens that reach up to `last` hold an end."""
    while last >= 0 and labels[last] != IGNORE:
        if labels[last] in ends:
            return True
        last -= 1
    return False

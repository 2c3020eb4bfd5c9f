"""Pieces of text to the ids of one row, and where in it each piece begins.

What it replaces: transformers' `return_assistant_tokens_mask`, and TRL's prompt and completion
encoded apart.
How it works: the whole text is encoded at once, since many tokenizers (Llama 2's, TinyLlama's) put
a space before whatever they are given, and join letters across a border. The tokens' offsets say
where an answer begins. The ids before it must be those of the prompt alone, after which `generate`
asks. Where they are not, since a token would straddle the border, the row is cut there: the
prompt as it is asked with, then the answer as it would go on behind a line's end, without a space
of the tokenizer's own.
What it leaves out: a token that straddles the end of an answer; EOS stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from .tokenizer import Piece, Tokenizer, no_panic


def encode_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The row of ids, and for each piece the place of its first token; the row's length last."""
    text = "".join(piece for piece, _ in pieces)
    ends = list(accumulate(len(piece) for piece, _ in pieces))
    borders = [end - len(piece) for end, (piece, learned) in zip(ends, pieces) if learned]
    asked = {}  # the number of ids that `generate` is given, by the border behind them
    row: list[int] = []
    starts: list[int] = []  # of each token, the place in the text
    cut = 0
    ids, offsets = _encode(text, tokenizer)
    for border in borders:
        given, where = _before(text[cut:border], ids, offsets, tokenizer, behind=cut > 0)
        if ids[: len(given)] != given:
            row, starts = row + given, starts + [cut + start for start, _ in where]
            cut, given = border, []
            ids, offsets = _encode(text[cut:], tokenizer, behind=True)
        asked[border] = len(row) + len(given)
    row += ids
    starts += [cut + start for start, _ in offsets]
    places = [
        asked.get(place, next((i for i, start in enumerate(starts) if start >= place), len(row)))
        for place in [0, *ends[:-1]]
    ]
    return row, [*places, len(row)]


def _encode(
    text: str, tokenizer: Tokenizer, behind: bool = False
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets; behind: as what goes on in the middle of a text."""
    with no_panic("a text is encoded"):
        if behind and _adds_space(tokenizer):
            lead = tokenizer.backend.encode("\n", add_special_tokens=False).ids
            found = tokenizer.backend.encode("\n" + text, add_special_tokens=False)
            if found.ids[: len(lead)] == lead:
                return found.ids[len(lead) :], [
                    (a - 1, b - 1) for a, b in found.offsets[len(lead) :]
                ]
        found = tokenizer.backend.encode(text, add_special_tokens=False)
        return found.ids, found.offsets


def _adds_space(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a space before what it is given."""
    whole = tokenizer.backend.encode("\na", add_special_tokens=False).ids
    apart = tokenizer.backend.encode("a", add_special_tokens=False).ids
    return whole[-len(apart) :] != apart


def _before(
    prompt: str,
    ids: list[int],
    offsets: list[tuple[int, int]],
    tokenizer: Tokenizer,
    behind: bool,
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and offsets of the prompt alone: those before the border in nearly every row."""
    place = next((i for i, (start, _) in enumerate(offsets) if start >= len(prompt)), len(ids))
    # a text is cut at a special token before anything else: what stands before it is the same
    last = tokenizer.special.get(ids[place - 1]) if place else None
    if last and offsets[place - 1][1] == len(prompt) and prompt.endswith(last):
        return ids[:place], offsets[:place]
    return _encode(prompt, tokenizer, behind)

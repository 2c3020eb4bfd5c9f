"""Tokens that a small model was never trained on, and the warning where data use them.

What it replaces: a run that ends with exit 0 and writes "cho" wherever the data say "step".
How it works: a token that never came in training keeps almost the vector that all of them were
pushed to, so the untrained ones lie beside one another: the largest group of rows of the token
table within a cosine of NEAR of one row (Land & Bartolo, "Fishing for Magikarp", 2024, find
untrained tokens of large models likewise). The model can neither tell them apart nor, with tied
tables, say one rather than another; an adapter on its linear layers does not change that.
What it leaves out: tables of more than LARGEST tokens; there is room for unused ones in each of
them, and the rest has been trained.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import printed
from ..text.rows import IGNORE
from ..text.tokenizer import Tokenizer

NEAR, FEWEST, LARGEST = 0.9, 16, 8192
SHARE = 0.01  # of all tokens or of those to be learned; below it nothing is said
SHOWN = 3


@torch.no_grad()
def untrained_tokens(table: Tensor) -> list[int]:
    """Ids of the rows (V, D) of a token table that lie within a cosine of NEAR of the row with most
    such neighbours; [] if there are fewer than FEWEST of them or V is above LARGEST.
    """
    if len(table) > LARGEST:
        return []
    directions = torch.nn.functional.normalize(table.detach().float().cpu(), dim=1)
    # some rows at a time: all cosines at once would be V² numbers, more than the model has
    near = torch.cat([(part @ directions.T >= NEAR).sum(1) for part in directions.split(256)])
    found = (directions @ directions[near.argmax()] >= NEAR).nonzero().flatten().tolist()
    return found if len(found) >= FEWEST else []


def warn(
    model: torch.nn.Module, tokenizer: Tokenizer, rows: Sequence, name: str, data: str
) -> None:
    """One line on standard error if 1 % of the tokens of rows (ids, labels), or of those that are
    to be learned, were never trained. A table that learns itself is passed over.
    """
    frozen = (
        table
        for path, table in model.named_parameters()
        if path.endswith("embed_tokens.weight") and not table.requires_grad
    )
    unknown = {token for table in frozen for token in untrained_tokens(table)}
    ids = Counter(token for row, _ in rows for token in row)
    labels = Counter(label for _, row in rows for label in row if label != IGNORE)
    shares = {"tokens": _share(ids, unknown), "tokens to be learned": _share(labels, unknown)}
    what, share = max(shares.items(), key=lambda each: each[1])
    if share < SHARE:
        return
    often = [token for token, _ in (ids + labels).most_common() if token in unknown][:SHOWN]
    pieces = ", ".join(repr(tokenizer.decode([token])) for token in often)
    print(
        f"minilora: warning: {100 * share:.0f} % of the {what} in {printed(data)} are pieces that "
        f"{printed(name)} was never trained on ({pieces}): it cannot tell them apart and will "
        "write one for another; take a model that knows the words, such as --model smollm2-135m",
        file=sys.stderr,
        flush=True,
    )


def _share(counted: Counter, unknown: set[int]) -> float:
    total = sum(counted.values())
    return sum(counted[token] for token in unknown) / total if total else 0.0

"""The mixture: how often each family is drawn, and an endless stream of documents.

What it replaces: a data-loading pipeline with weights.
How it works: `documents(seed)` draws a family by its weight and yields (family, document); the held-out stream is
the same with another seed, and no story comes twice because names, things and events are drawn anew.
What it leaves out: curricula; the mixture stays the same from the first step to the last.
Where numerics differ: nowhere.
"""

from __future__ import annotations

from random import Random
from typing import Iterator

from . import lookups, small, stories
from .stories import Document

# Weights are shares of documents; the comment says roughly what a document is worth in tokens.
FAMILIES = {
    "story": (stories.story, 10),  # 110
    "reading": (stories.reading, 34),  # 130
    "retelling": (stories.retelling, 6),  # 120
    "dictionary": (lookups.dictionary, 9),  # 130
    "codes": (lookups.codes, 7),  # 90
    "record": (lookups.record, 8),  # 70
    "sums": (small.sums, 12),  # 60
    "lists": (small.lists, 6),  # 50
    "ordering": (small.ordering, 4),  # 40
    "instruction": (small.instruction, 16),  # 50
}


def documents(seed: int) -> Iterator[tuple[str, Document]]:
    """An endless, deterministic stream of (family, document)."""
    rng = Random(f"minilora corpus {seed}")
    makers, weights = zip(*FAMILIES.values())
    kinds = list(FAMILIES)
    while True:
        i = rng.choices(range(len(kinds)), weights)[0]
        yield kinds[i], makers[i](rng)


def held_out(family: str, count: int, seed: int = 1_000_003) -> list[Document]:
    """`count` documents of one family from a stream that the training never draws from."""
    rng = Random(f"minilora held out {family} {seed}")
    return [FAMILIES[family][0](rng) for _ in range(count)]

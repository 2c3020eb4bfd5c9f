"""The mixtures: how often each family is drawn, and an endless stream of documents.

What it replaces: a data-loading pipeline with weights.
How it works: `documents(seed, mixture)` draws a family by its weight and yields (family, document);
the held-out stream is the same with another seed, and no story comes twice because names, things
and events are drawn anew. The first stage of the pretraining takes the mixture `first`, the second
`second`: most of its questions are answered later in the text than what they name (`looking`),
since after the first stage those to be answered backwards were guessed.
What it leaves out: a curriculum finer than two stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from . import lookups, small, stories
from .stories import Document

FAMILIES = {
    "story": stories.story,
    "reading": stories.reading,
    "retelling": stories.retelling,
    "dictionary": lookups.dictionary,
    "codes": lookups.codes,
    "record": lookups.record,
    "sums": small.sums,
    "lists": small.lists,
    "ordering": small.ordering,
    "instruction": small.instruction,
    "looking": stories.looking,
}

# Shares of documents. A document is worth 40 (ordering) to 150 (reading) tokens.
MIXTURES = {
    "first": {
        "story": 10,
        "reading": 34,
        "retelling": 6,
        "dictionary": 9,
        "codes": 7,
        "record": 8,
        "sums": 12,
        "lists": 6,
        "ordering": 4,
        "instruction": 16,
    },
    "second": {
        "story": 4,
        "reading": 8,
        "retelling": 6,
        "dictionary": 9,
        "codes": 5,
        "record": 8,
        "sums": 22,
        "lists": 5,
        "ordering": 3,
        "instruction": 20,
        "looking": 34,
    },
}


def documents(seed: int, mixture: str = "first") -> Iterator[tuple[str, Document]]:
    """An endless, deterministic stream of (family, document)."""
    rng = Random(f"minilora corpus {seed}" + (f" {mixture}" if mixture != "first" else ""))
    kinds, weights = list(MIXTURES[mixture]), list(MIXTURES[mixture].values())
    while True:
        i = rng.choices(range(len(kinds)), weights)[0]
        yield kinds[i], FAMILIES[kinds[i]](rng)


def held_out(family: str, count: int, seed: int = 1_000_003) -> list[Document]:
    """`count` documents of one family from a stream that the training never draws from."""
    rng = Random(f"minilora held out {family} {seed}")
    return [FAMILIES[family](rng) for _ in range(count)]

"""Examples to learn from, wherever they lie: a folder with three splits, one JSONL file, or a data
set on the hub.

What it replaces: `datasets.load_dataset`, `map` and `train_test_split`, for question and answer.
How it works: a folder is read split by split. A single file is shuffled by a seed and cut into
train, valid and test: the cut is a function of the seed and the number of examples. A data set on
the hub is one file of it, JSON Lines or a list in JSON, of which the named fields are taken: the
last is the answer, those before it, put below each other, are the question. Without a network
nothing is asked of the hub for what lies in a folder.
What it leaves out: Parquet, streaming, data sets that run code of their own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MiniloraError
from ..system.fetch import fetch_file
from ..system.json_files import parse_json, read_bytes
from .examples import read_examples, read_split
from .prompts import messages_of
from .rows import encode_example
from .tokenizer import Tokenizer

SPLITS = ("train", "valid", "test")
OTHER = "where it is neither JSON Lines nor a list in JSON, name another of its files"
MEGABYTES = 2000  # of a data set's file


@dataclass(frozen=True)
class OnTheHub:
    """A file of a data set on the hub, and its fields: those of the question, the last one the
    answer.
    """

    name: str
    file: str
    fields: Sequence[str] = ("prompt", "response")


def splits(
    source: str | os.PathLike | OnTheHub, seed: int = 0, held_back: float = 0.1
) -> dict[str, list[dict]]:
    """{"train": …, "valid": …, "test": …}. What has no splits is cut: `held_back` of it for each of
    valid and test.

    Raises MiniloraError for what cannot be read, cannot be fetched, or is too little to be cut.
    """
    if not isinstance(source, OnTheHub) and Path(source).is_dir():
        return {split: read_split(source, split) for split in SPLITS}
    found = from_hub(source) if isinstance(source, OnTheHub) else read_examples(source)
    if not 0 < held_back < 0.5:
        raise MiniloraError(
            f"held_back is {held_back!r}; give a share above 0 and below a half, such as 0.1"
        )
    each = round(held_back * len(found))
    if each < 1 or len(found) - 2 * each < 1:
        raise MiniloraError(
            f"{len(found)} examples are too few to hold back {held_back:g} of them twice; add "
            f"some, or give a folder with {', '.join(SPLITS)}.jsonl"
        )
    random.Random(seed).shuffle(found)
    return {"valid": found[:each], "test": found[each : 2 * each], "train": found[2 * each :]}


def short_enough(
    found: dict[str, list[dict]], tokenizer: Tokenizer, most: int
) -> dict[str, list[dict]]:
    """The examples of each split that need at most `most` tokens, question and answer together.
    Raises MiniloraError where a split loses all.
    """
    kept = {
        split: [each for each in examples if len(encode_example(each, tokenizer)[0]) <= most]
        for split, examples in found.items()
    }
    for split in (split for split, examples in kept.items() if not examples):
        raise MiniloraError(
            f"no example of {split} fits into {most} tokens; allow more, or give shorter ones"
        )
    return kept


def asked(examples: Sequence[dict]) -> list[tuple[str, str]]:
    """Of each example the last question, "" where nothing is asked, and the answer that is wanted.
    Raises MiniloraError for a bare `text`.
    """
    turns = [messages_of(example) for example in examples]
    return [(each[-2]["content"] if len(each) > 1 else "", each[-1]["content"]) for each in turns]


def from_hub(source: OnTheHub) -> list[dict]:
    """Its examples as prompt and response. Raises MiniloraError with the remedy where it cannot be
    fetched or has other fields.
    """
    path = fetch_file(source.name, source.file)
    name, remedy = f"{source.file} of {source.name}", OTHER
    data = read_bytes(path, remedy=remedy, megabytes=MEGABYTES)
    if path.suffix == ".json":
        rows = parse_json(data, name, {"type": "array"}, remedy)
    else:
        lines = enumerate(data.split(b"\n"), 1)
        rows = [parse_json(x, f"{name}, line {n}", None, remedy) for n, x in lines if x.strip()]
    return [example(row, source) for row in rows]


def example(row: dict, source: OnTheHub) -> dict:
    """One row's named fields as prompt and response; empty parts of a question are left out."""
    for field in source.fields:
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise MiniloraError(
                f"a row of {source.name} has no text in field {field!r}; it has: {there}"
            )
    *question, answer = (row[field] for field in source.fields)
    return {"prompt": "\n".join(part for part in question if part.strip()), "response": answer}

"""`minilora evaluate`: greedy answers to the questions of a split, scored by equality.

What it replaces: a loop around `generate`. How it works: see train/scoring.py; the one line with
the score goes to standard output. What it leaves out: other scores.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from ..errors import MiniloraError
from ..recipes import load
from ..system import outputs
from ..system.ranges import ROWS, whole
from . import options

EXAMPLE = """example:
  minilora evaluate --adapter runs/extract --data extract --limit 50"""


def add_arguments(parser) -> None:
    parser.usage, parser.epilog = "minilora evaluate --data DATA [options]", EXAMPLE
    options.add_model_arguments(parser)
    add = parser.add_argument_group("the questions").add_argument
    add(
        "--data",
        required=True,
        help="a data folder, a .jsonl file, or a shipped task: extract, facts, mood, style, sums "
        "(default: none: it is needed)",
    )
    add(
        "--split",
        choices=["train", "valid", "test"],
        help="which file of the folder (default: test)",
    )
    add(
        "--limit",
        type=options.within("--limit", whole(1, 10**9)),
        metavar="N",
        help="score the first N examples only (default: all)",
    )
    add(
        "--batch",
        type=options.within("--batch", ROWS),
        default=32,
        metavar="N",
        help="questions answered at once (default: 32)",
    )
    add(
        "--out",
        metavar="FILE.jsonl",
        help="write prompt, expected answer, answer and hit, one line each (default: no)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the file --out where it is there already (default: no)",
    )


def note(line: str) -> None:
    """To standard error: standard output is the score's."""
    print(f"minilora: {line}", file=sys.stderr)


def place(args, data: Path) -> Path | None:
    """The file that --out names, or None. Raises MiniloraError where nothing may be written."""
    if args.out is None:
        if args.overwrite:
            raise MiniloraError("--overwrite says nothing without --out FILE.jsonl; leave it out")
        return None
    read = [("--data", path) for path in (data, *(data.iterdir() if data.is_dir() else ()))]
    for option, folder in (("--model", load.place(args.model)), ("--adapter", args.adapter)):
        if folder is not None and Path(folder).is_dir():
            there = sorted(Path(folder).iterdir())
            # answers of before may lie beside an adapter, and be replaced
            made = [file for file in there if file.suffix != ".jsonl" or file.stem == "metrics"]
            read += [(option, file) for file in made]
    return outputs.require_file(args.out, "--out", read, args.overwrite)


def split_of(data: Path, asked: str | None) -> str:
    """The split to ask: test, if none is named. Raises MiniloraError where a folder has others
    alone.
    """
    if asked is None and data.is_dir() and not (data / "test.jsonl").is_file():
        there = [each for each in ("valid", "train") if (data / f"{each}.jsonl").is_file()]
        if there:
            raise MiniloraError(
                f"no test.jsonl in {data}; to ask what is there, add --split {there[0]}"
            )
    return asked or "test"


def run(args) -> int:
    from ..text.examples import read_split
    from ..text.prompts import messages_of

    data = load.find_data(args.data, note)
    if data.is_file() and args.split is not None:
        raise MiniloraError(
            f"--split {args.split} says nothing for the one file {data}; leave it out, or give a "
            "folder"
        )
    out = place(args, data)
    with outputs.alone(out) if out is not None else contextlib.nullcontext():
        if out is not None:
            place(args, data)  # another may have written it meanwhile
        examples = read_split(data, split_of(data, args.split))[: args.limit]
        for example in examples:
            messages_of(example)  # a bare text cannot be scored: say so before a model is loaded

        from ..train.scoring import exact_match

        model, tokenizer = load.load(args.model, args.adapter, args.code, args.device)
        hits, number, answers = exact_match(
            model, tokenizer, examples, args.batch, progress=sys.stderr.isatty()
        )
        if out is not None:
            write(out, examples, answers)
    print(f"exact match {hits / number:.2f} ({hits} of {number})")
    return 0


def write(path: Path, examples: list[dict], answers: list[str]) -> None:
    """One line of JSON for each example."""
    from ..system.files import atomic_write
    from ..text.prompts import messages_of
    from ..train.scoring import is_hit

    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for example, answer in zip(examples, answers):
            *before, last = messages_of(example)
            line = {
                "prompt": before[-1]["content"] if before else "",
                "expected": last["content"],
                "answer": answer,
                "hit": is_hit(answer, last["content"]),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

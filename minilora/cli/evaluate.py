"""`minilora evaluate`: greedy answers to the questions of a split, scored by equality.

What it replaces: a loop around `generate`. How it works: see train/scoring.py; the one line with
the score goes to standard output. What it leaves out: other scores.
"""

from __future__ import annotations

import json
import sys

from ..errors import MiniloraError
from ..recipes import load
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
        help="a data folder, a .jsonl file, or a shipped task: extract, mood, style, sums "
        "(default: none: it is needed)",
    )
    add(
        "--split",
        default="test",
        choices=["train", "valid", "test"],
        help="which file of the folder (default: test)",
    )
    add("--limit", type=int, metavar="N", help="score the first N examples only (default: all)")
    add(
        "--batch",
        type=int,
        default=32,
        metavar="N",
        help="questions answered at once (default: 32)",
    )
    add(
        "--out",
        metavar="FILE.jsonl",
        help="write prompt, expected answer, answer and hit, one line each (default: no)",
    )


def note(line: str) -> None:
    """To standard error: standard output is the score's."""
    print(f"minilora: {line}", file=sys.stderr)


def run(args) -> int:
    for name in ("limit", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise MiniloraError(f"--{name} is {value}; give 1 or more")
    from ..text.examples import read_split
    from ..text.prompts import messages_of

    examples = read_split(load.find_data(args.data, note), args.split)[: args.limit]
    for example in examples:
        messages_of(example)  # a bare text cannot be scored: say so before a model is loaded

    from ..train.scoring import exact_match

    model, tokenizer = load.load(args.model, args.adapter, args.code, args.device)
    hits, number, answers = exact_match(
        model, tokenizer, examples, args.batch, progress=sys.stderr.isatty()
    )
    if args.out:
        write(args.out, examples, answers)
    print(f"exact match {hits / number:.2f} ({hits} of {number})")
    return 0


def write(path: str, examples: list[dict], answers: list[str]) -> None:
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

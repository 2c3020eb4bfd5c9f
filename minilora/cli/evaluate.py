"""`minilora evaluate`: greedy answers to the questions of a split, scored by equality.

What it replaces: a loop around `generate`. How it works: see scoring.exact_match; the one line with
the score goes to standard output. What it leaves out: other scores. Where numerics differ: nowhere.
"""

from __future__ import annotations

import json

from ..cli import options
from ..errors import MiniloraError
from ..recipes import load


def add_arguments(parser) -> None:
    options.add_model_arguments(parser)
    parser.add_argument("--data", required=True, help="a data folder, or a .jsonl file")
    parser.add_argument("--split", default="test", choices=["train", "valid", "test"])
    parser.add_argument("--limit", type=int, help="score the first N examples only")
    parser.add_argument("--batch", type=int, default=32, help="questions answered at once")
    parser.add_argument(
        "--out",
        metavar="FILE.jsonl",
        help="write prompt, expected answer, answer and hit, one line each",
    )


def run(args) -> int:
    for name in ("limit", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise MiniloraError(f"--{name} is {value}; give 1 or more")
    from ..text.examples import read_split
    from ..text.prompts import messages_of

    examples = read_split(args.data, args.split)[: args.limit]
    for example in examples:
        messages_of(example)  # a bare text cannot be scored: say so before a model is loaded

    import sys

    from ..system.files import atomic_write
    from ..train.scoring import exact_match

    model, tokenizer = load.load(args)
    hits, number, answers = exact_match(
        model, tokenizer, examples, args.batch, progress=sys.stderr.isatty()
    )
    if args.out:
        with atomic_write(args.out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for example, answer in zip(examples, answers):
                expected = messages_of(example)[-1]["content"]
                line = {
                    "prompt": messages_of(example)[-2]["content"]
                    if len(messages_of(example)) > 1
                    else "",
                    "expected": expected,
                }
                file.write(
                    json.dumps(
                        {**line, "answer": answer, "hit": answer.strip() == expected.strip()},
                        ensure_ascii=False,
                    )
                    + "\n"
                )
    print(f"exact match {hits / number:.2f} ({hits} of {number})")
    return 0

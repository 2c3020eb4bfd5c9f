"""`minilora pretrain`: the options, and what is printed."""

from __future__ import annotations

import argparse

from ..system.outputs import require_folder
from ..system.ranges import ROWS, SEED, number, whole
from .options import within

EXAMPLE = """example:
  minilora pretrain --out base --share 0.01    a quick try of everything"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `minilora pretrain`."""
    from ..recipes import pretrain

    plan = pretrain.Plan()
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder for the base (Hugging Face layout)")
    add(
        "--share",
        type=within("--share", number(0, 1000, above=True)),
        default=1.0,
        help="share of the plan's steps, for a quick try (default: %(default)s)",
    )
    add(
        "--stage",
        type=within("--stage", whole(1, len(pretrain.STAGES))),
        default=1,
        help="begin at this stage, from the weights that --out holds (default: 1)",
    )
    add(
        "--rows",
        type=within("--rows", ROWS),
        default=plan.rows,
        help="rows of a step (default: %(default)s)",
    )
    add(
        "--rate",
        type=within("--rate", number(0, 100, above=True)),
        default=plan.rate,
        help="peak learning rate (default: %(default)s)",
    )
    add(
        "--seed",
        type=within("--seed", SEED),
        default=plan.seed,
        help="seed of data and weights (default: %(default)s)",
    )
    add(
        "--every",
        type=within("--every", whole(1, 10**8)),
        default=400,
        help="steps between checkpoints (default: %(default)s)",
    )
    add(
        "--no-compile",
        action="store_true",
        help="do without torch.compile (no C++ compiler needed; default: no)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the base that an earlier pretraining left in --out (default: no)",
    )


def run(args: argparse.Namespace) -> int:
    """Raises MiniloraError for a place where nothing may be written."""
    from ..recipes import pretrain

    out = require_folder(args.out)
    plan = pretrain.Plan(rows=args.rows, rate=args.rate, seed=args.seed)
    last = pretrain.run(
        plan,
        out,
        args.share,
        args.stage,
        args.every,
        compiled=not args.no_compile,
        overwrite=args.overwrite,
    )
    print(f"saved {out}: look-up {last['lookup']:.3f}, held-out loss {last['loss']:.4f}")
    pretrain.require_learned(last, plan)
    return 0

"""`minilora pretrain`: the options, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import MiniloraError

EXAMPLE = """example:
  minilora pretrain --out base --share 0.01    a quick try of everything"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `minilora pretrain`."""
    from ..recipes import pretrain

    plan = pretrain.Plan()
    parser.epilog = EXAMPLE
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for the base (Hugging Face layout)")
    add(
        "--share",
        type=float,
        default=1.0,
        help="share of the plan's steps, for a quick try (default: %(default)s)",
    )
    add(
        "--stage",
        type=int,
        default=1,
        help="begin at this stage, from the weights that --out holds (default: 1)",
    )
    add("--rows", type=int, default=plan.rows, help="rows of a step (default: %(default)s)")
    add("--rate", type=float, default=plan.rate, help="peak learning rate (default: %(default)s)")
    add(
        "--seed",
        type=int,
        default=plan.seed,
        help="seed of data and weights (default: %(default)s)",
    )
    add("--every", type=int, default=400, help="steps between checkpoints (default: %(default)s)")
    add(
        "--no-compile",
        action="store_true",
        help="do without torch.compile (no C++ compiler needed; default: no)",
    )


def run(args: argparse.Namespace) -> int:
    """Raises MiniloraError on numbers that cannot be."""
    from ..recipes import pretrain

    for name in ("rows", "every"):
        if getattr(args, name) < 1:
            raise MiniloraError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    for name in ("rate", "share"):
        if not getattr(args, name) > 0:
            raise MiniloraError(f"--{name} is {getattr(args, name)}; it must be above 0")
    if not 1 <= args.stage <= len(pretrain.STAGES):
        raise MiniloraError(f"--stage is {args.stage}; there are {len(pretrain.STAGES)} stages")
    if args.stage > 1 and not (args.out / "training.json").exists():
        raise MiniloraError(f"{args.out} holds no earlier stage; begin with --stage 1")
    plan = pretrain.Plan(rows=args.rows, rate=args.rate, seed=args.seed)
    last = pretrain.run(
        plan, args.out, args.share, args.stage, args.every, compiled=not args.no_compile
    )
    print(f"saved {args.out}: look-up {last['lookup']:.3f}, held-out loss {last['loss']:.4f}")
    return 0

"""`minilora pretrain`: the options, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import MiniloraError
from ..recipes.pretrain import (
    POSITIONS,
    STAGES,
    Plan,
    corpus,
    describe,
    learn,
    products_as_attention,
    shrink,
)
from ..system.files import atomic_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `minilora pretrain`."""
    plan = Plan()
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the base (Hugging Face layout)"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="share of the plan's steps, for a quick try (default %(default)s)",
    )
    parser.add_argument(
        "--stage",
        type=int,
        default=1,
        help="begin at this stage, from the weights that --out holds (default 1)",
    )
    parser.add_argument(
        "--rows", type=int, default=plan.rows, help="rows of a step (default %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=plan.rate, help="peak learning rate (default %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=plan.seed, help="seed of data and weights (default %(default)s)"
    )
    parser.add_argument(
        "--every", type=int, default=400, help="steps between checkpoints (default %(default)s)"
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="do without torch.compile (no C++ compiler needed)",
    )


def run(args: argparse.Namespace) -> int:
    """`minilora pretrain`: tokenizer, training, checkpoint. Raises MiniloraError on numbers that
    cannot be.
    """
    for name in ("rows", "every"):
        if getattr(args, name) < 1:
            raise MiniloraError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    for name in ("rate", "share"):
        if not getattr(args, name) > 0:
            raise MiniloraError(f"--{name} is {getattr(args, name)}; it must be above 0")
    if not 1 <= args.stage <= len(STAGES):
        raise MiniloraError(f"--stage is {args.stage}; there are {len(STAGES)} stages")
    if args.stage > 1 and not (args.out / "training.json").exists():
        raise MiniloraError(f"{args.out} holds no earlier stage; begin with --stage 1")
    stages = tuple(shrink(stage, args.share) if args.share != 1 else stage for stage in STAGES)
    plan = Plan(stages=stages, rows=args.rows, rate=args.rate, seed=args.seed)
    made = corpus()
    tokenizer = made.tokens.train_tokenizer(plan.vocabulary)
    with atomic_folder(args.out) as folder:
        made.tokens.save_tokenizer(tokenizer, folder, POSITIONS)
    with products_as_attention():
        curve = learn(
            plan, tokenizer, args.out, args.every, compiled=not args.no_compile, first=args.stage
        )
    describe(args.out)
    print(
        f"saved {args.out}: look-up {curve['examined'][-1]['lookup']:.3f}, held-out loss "
        f"{curve['examined'][-1]['loss']:.4f}"
    )
    return 0

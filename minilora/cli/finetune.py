"""`minilora finetune`: the options, and what is printed."""

from __future__ import annotations

from ..errors import Interrupted, MiniloraError
from ..recipes import finetune
from ..recipes.settings import Settings, settle
from ..train.config import declared
from . import options

EXAMPLE = """example:
  minilora finetune --data extract --steps 300 --out runs/extract
  minilora evaluate --data extract --adapter runs/extract"""


def add_arguments(parser) -> None:
    parser.usage, parser.epilog = "minilora finetune --data DATA --out DIR [options]", EXAMPLE
    groups = options.groups(parser)
    for name, each in declared(Settings).items():
        options.add_setting(groups[each.metadata["group"]], name)
    add = groups["the run"].add_argument
    add(
        "--out",
        metavar="DIR",
        help="the run's folder: adapter or model, metrics.jsonl, loss.png, run.json (default: "
        "none: it is needed)",
    )
    add(
        "--resume",
        action="store_true",
        help="go on from the last good state in --out, with its settings (default: no)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="begin anew where --out holds a run already (default: no)",
    )


def require(args, typed: dict) -> None:
    """Raise MiniloraError that names at once all that a run cannot do without."""
    wanted = {
        "data": "a .jsonl file, a folder or a shipped task such as extract",
        "out": "a folder",
    }
    given = {**typed, "out": args.out}
    if args.resume:
        del wanted["data"]  # the run that goes on has its own
    missing = [name for name in wanted if given.get(name) is None]
    if missing:
        flags = " and ".join(f"--{name}" for name in missing)
        what = ", ".join(f"--{name}: {wanted[name]}" for name in missing)
        raise MiniloraError(f"{flags} {'are' if len(missing) > 1 else 'is'} missing; give {what}")


def run(args) -> int:
    typed = {name: value for name, value in vars(args).items() if name in declared(Settings)}
    require(args, typed)
    if args.resume and args.overwrite:
        raise MiniloraError(
            "--resume goes on with a run and --overwrite begins it anew; leave one of them out"
        )
    try:
        if args.resume:
            result = finetune.resume(args.out, typed)
        else:
            result = finetune.run(settle(typed), args.out, overwrite=args.overwrite)
    except KeyboardInterrupt as error:
        raise Interrupted(_how_to_go_on(args.out)) from error
    for line in result.told():
        print(line)
    if result.history.diverged:
        raise MiniloraError(f"{result.history.diverged} (--overwrite does that in {args.out})")
    return 0


def _how_to_go_on(out: str) -> str:
    from ..train.run_folder import RunFolder

    if RunFolder(out).found():
        return f"interrupted; go on with: minilora finetune --out {out} --resume"
    return "interrupted before the first step was done; nothing is lost"

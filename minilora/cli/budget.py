"""`minilora budget`: what a run will need in memory, time and money, before anything is loaded or
rented.

What it replaces: `accelerate estimate-memory`, spreadsheets, and a trial run that ends in "out of
memory".
How it works: the defaults are those of `finetune`, so that the same words mean the same run: its
rows at once, no checkpointing, its precision there, and our Llama. More can be asked than it has
options for (--optimizer, --fused, --attention, --library, --gpu; --method mixed, full-bf16,
inference). With `--gpu` it says whether the card holds the run and what to change if not, and gives
a lower bound of the time, or of inference the tokens a second; without, it names the smallest card
of the catalogue that does. How long the run is, says `--steps`, or `--examples` and `--epochs`;
`--devices` cards share its rows, each with the whole model.
What it leaves out: running anything; several cards that share a model, and what cards send one
another.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..errors import MiniloraError
from ..recipes.memory_warning import targets_of
from ..recipes.settings import MAX_SEQ, Settings, flag
from ..system import outputs
from ..train.config import declared
from . import budget_answer as words
from . import options
from .budget_answer import DECODING, STEPS, UTILISATION, Asked, Length

# of steps, examples and cards; of the utilisation: what lies beyond is a slip of the keyboard
MOST, LEAST = 10**12, 1e-6

EXAMPLE = """examples:
  minilora budget                             the run of `minilora finetune --data DATA`, on a card
  minilora budget --model llama-7b --rank 64 --batch 8 --checkpointing --gpu T4
  minilora budget --model llama-7b --method inference --gpu "RTX 4090" --explain"""


class Typed(argparse.Action):
    """Keeps the value, and that it was typed: in the namespace's set `typed`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, values)
        namespace.typed = {*getattr(namespace, "typed", ()), self.dest}


def add_arguments(parser) -> None:
    parser.usage, parser.epilog = "minilora budget [options]", EXAMPLE
    parser.description = (
        "Say what a run will need in memory, time and money. Defaults are finetune's: what it\n"
        "would run is counted, in our Llama (for what that cannot run, in transformers')."
    )
    _as_finetune(parser.add_argument_group("as finetune has them"))
    _beyond_finetune(parser.add_argument_group("what finetune has no option for"))
    _time(parser.add_argument_group("time and cost"))
    _output(parser.add_argument_group("what is printed"))


def _as_finetune(group) -> None:
    """The settings that finetune has, with its defaults."""

    def add(name: str, **more) -> None:
        default = declared(Settings)[name].default
        options.add_setting(group, name, unbounded=True, default=default, **more)

    add(
        "model",
        meaning="tiny, a name such as llama-7b or qwen2.5-1.5b, a Hugging Face folder, its "
        "config.json, or a GGUF",
    )
    add(
        "method",
        meaning="qlora, lora, int8, full; and beyond finetune mixed, full-bf16: all weights with "
        "products in 16 bits, or all in 16; inference: no training",
        choices=None,
    )
    add("code", action=Typed)
    add("rank", action=Typed)
    add("batch")
    add(
        "targets",
        meaning="all, or names such as q_proj,v_proj; what else finetune takes is all",
        action=Typed,
    )
    add("seq", meaning="tokens in a row")
    add("checkpointing")
    add(
        "precision",
        meaning="auto: as finetune computes there; fp32, bf16, fp16: weights and products; "
        "autocast: weights in 32 bits, products in 16",
        choices=None,
    )
    group.add_argument("--device", default="cuda", help="cuda or cpu (default: cuda)")


def _beyond_finetune(group) -> None:
    add = group.add_argument
    add(
        "--gpu",
        help="a card such as T4, 'RTX 4090', A100: does it hold the run, and if not, what to "
        "change (default: the smallest that does is named)",
    )
    add(
        "--optimizer",
        default="adamw",
        help="adamw, adamw8bit, paged_adamw8bit, sgd (default: adamw)",
    )
    add(
        "--fused",
        action="store_true",
        help="AdamW in one kernel instead of foreach: one parameter-sized temporary less "
        "(default: no)",
    )
    add("--attention", default="sdpa", help="sdpa or eager (default: sdpa)")
    add(
        "--library",
        help="whose Llama runs: minilora or transformers, our LoRA in both (default: minilora, "
        "where it can run the model)",
    )


def _time(group) -> None:
    add = group.add_argument
    add(
        "--steps",
        type=int,
        metavar="N",
        help=f"updates (default: {STEPS}, where no --examples are given)",
    )
    add(
        "--examples",
        type=int,
        metavar="N",
        help="rows of the data, in place of --steps (default: none)",
    )
    add(
        "--epochs",
        type=float,
        metavar="X",
        help="how often all examples are seen (default: 1)",
    )
    add(
        "--devices",
        type=int,
        metavar="N",
        help="cards that share the rows of an update, each with the whole model; --batch is of "
        "each (default: 1)",
    )
    add(
        "--utilisation",
        type=float,
        metavar="X",
        help=f"share of the card's bound that the run reaches (default: {UTILISATION}, for "
        f"inference {DECODING})",
    )


def _output(group) -> None:
    add = group.add_argument
    add("--explain", action="store_true", help="the formula behind each number (default: no)")
    add("--json", action="store_true", help="everything as JSON (default: no)")
    add(
        "--picture",
        metavar="FILE",
        help="draw the parts beside the cards' memory: a .svg or a .png (default: no)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace the file --picture where it is there already (default: no)",
    )


def length_of(args) -> Length:
    """The options that say how long. Raises MiniloraError for those that cannot be, or tell nothing
    here.
    """
    from ..budget.setup import LARGEST

    asked = {
        name: getattr(args, name)
        for name in ("steps", "examples", "epochs", "devices", "utilisation")
        if getattr(args, name) is not None
    }
    for name in ("steps", "examples", "devices"):
        if asked.get(name, 1) < 1:
            raise MiniloraError(f"--{name} is {asked[name]}; give 1 or more")
        if asked.get(name, 1) > MOST:
            raise MiniloraError(
                f"--{name} is {asked[name]:.3g}; give at most {MOST:,}"
                if asked[name] < 1e300
                else f"--{name} has {len(str(asked[name]))} digits; give at most {MOST:,}"
            )
    if not 0 < asked.get("epochs", 1) <= LARGEST:
        raise MiniloraError(
            f"--epochs is {asked['epochs']:g}; give a number above 0 and at most {LARGEST:,}"
        )
    if not LEAST <= asked.get("utilisation", 1) <= 1:
        raise MiniloraError(
            f"--utilisation is {asked['utilisation']:g}; give a share from {LEAST:g} to at "
            f"most 1, such as {UTILISATION}"
        )
    if "steps" in asked and "examples" in asked:
        raise MiniloraError(
            "--steps and --examples both say how long the run is; leave one of them out"
        )
    if "epochs" in asked and "examples" not in asked:
        raise MiniloraError(
            "--epochs counts how often all examples are seen; say how many with --examples"
        )
    for name in asked:
        if not args.gpu:
            raise MiniloraError(
                f"--{name} is for time and cost, which depend on the card; add --gpu NAME"
            )
        if args.method == "inference" and name != "utilisation":
            raise MiniloraError(
                f"--{name} is for training; --method inference is told in tokens a second"
            )
    return Length(**asked)


def refuse_idle(args) -> None:
    """Raise MiniloraError for an option that says nothing for the method, or beside another."""
    from ..budget.setup import METHODS

    adapts = ("lora", "qlora", "int8")
    typed = {
        name: f"for --method {args.method}"
        for name in getattr(args, "typed", ())
        if args.method in METHODS and args.method not in (("qlora",) if name == "code" else adapts)
    }
    if args.method == "inference":
        told = {"checkpointing": args.checkpointing, "fused": args.fused}
        told["optimizer"] = args.optimizer != "adamw"
        typed |= {name: "for --method inference" for name, value in told.items() if value}
    elif args.fused and args.optimizer != "adamw":
        typed["fused"] = f"for --optimizer {args.optimizer}, which is no AdamW of torch's"
    elif args.fused and args.device == "cpu":
        typed["fused"] = "for --device cpu, where nothing is taken at once"
    if args.overwrite and args.picture is None:
        typed["overwrite"] = "without --picture FILE"
    if args.explain and args.json:
        typed["explain"] = "for --json, which tells everything"
    for name in sorted(typed):
        raise MiniloraError(f"{flag(name)} says nothing {typed[name]}; leave it out")


def whose(shape, asked: str | None) -> str:
    """Whose Llama runs: ours, as in `finetune`, unless another is asked for or it cannot."""
    from ..budget.setup import make

    if asked is not None:
        return asked
    try:
        make(shape, method="inference", library="minilora")
    except MiniloraError:
        return "transformers"
    return "minilora"


def question(args) -> tuple:
    """(budget, card or None, Asked) of the options. Raises MiniloraError for what cannot be."""
    from .. import budget

    card = budget.catalog.gpu(args.gpu) if args.gpu is not None else None
    if card and args.device == "cpu":
        raise MiniloraError(
            f"--gpu {args.gpu} asks of a card and --device cpu of a processor; leave one of "
            "them out"
        )
    shape = budget.catalog.model(args.model)
    if shape.family != "llama" and args.method != "inference":
        raise MiniloraError(
            f"{shape.name} is no Llama, and the activations of its family are not counted; "
            "--method inference counts its weights and cache"
        )
    cuda = args.device == "cuda"
    bf16 = card is None or "bf16" in card.rates
    asked = Asked(args.precision, whose(shape, args.library), cuda, bf16)
    method, precision = asked.in_words(args.method)
    same = ("rank", "batch", "checkpointing", "optimizer", "attention", "code", "device")
    told = budget.estimate(
        shape,
        method=method,
        precision=precision,
        seq=min(MAX_SEQ, shape.context) if args.seq is None else args.seq,
        library=asked.library,
        targets=targets_of(args.targets),
        foreach=cuda and not args.fused,  # as torch takes AdamW's parameters all at once there
        **{name: getattr(args, name) for name in same},
    )
    return told, card, asked


def run(args) -> int:
    from ..budget import table

    length = length_of(args)
    refuse_idle(args)
    picture = _picture(args)
    told, card, asked = question(args)
    if picture is not None:
        _draw(args, told, picture, card)
    if args.json:
        found = words.as_json(told, card, length, asked)
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    print(table.headline(told))
    print(table.table(told, args.explain, card))
    for note in words.told_notes(told):
        print(f"note: {note}")
    if args.library is None and asked.library != "minilora":
        print(f"note: counted in {asked.library}' Llama: ours cannot run {told.setup.shape.name}")
    for line in words.lines(told, card, length, asked):
        print(line)
    if picture is not None:
        print(f"{picture} written")
    return 0


def _picture(args) -> Path | None:
    """The file that --picture names, or None. Raises MiniloraError where none may be written."""
    if args.picture is None:
        return None
    model = Path(args.model)
    read = [("--model", file) for file in ([*model.iterdir()] if model.is_dir() else [model])]
    what = "file, such as budget.svg"
    return outputs.require_file(args.picture, "--picture", read, args.overwrite, what)


def _draw(args, told, path: Path, card) -> None:
    from ..budget import picture
    from ..course.explore.palette import HUES

    with outputs.alone(path, "--picture"):
        _picture(args)  # another may have drawn there meanwhile
        picture.write(told, path, HUES, [card] if card else [])

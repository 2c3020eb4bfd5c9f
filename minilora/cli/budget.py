"""`minilora budget`: what a run will need in memory, time and money, before anything is loaded or
rented.

What it replaces: `accelerate estimate-memory`, spreadsheets, and a trial run that ends in "out of
memory".
How it works: the options are named as `finetune`'s where both have them, but more can be asked
(--optimizer, --fused, --attention, --library, --gpu; --method mixed, full-bf16, inference) and the
defaults differ: one row at once, checkpointing, transformers' Llama on a card, where `finetune`
takes 16 rows, no checkpointing and our Llama. Advice that only this command can follow is marked.
`minilora.budget` counts, this file prints. With `--gpu` it says whether the card holds the run and
what to change if not, and gives a lower bound of the time, or of inference the tokens a second;
without, it names the smallest card of the catalogue that does. How long the run is, says `--steps`,
or `--examples` and `--epochs`; `--devices` cards share its rows, each with the whole model.
What it leaves out: running anything; several cards that share a model, and what cards send one
another.
Where numerics differ: see `minilora.budget`; here numbers are only rounded to be read.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass

from ..errors import MiniloraError

ONLY_HERE = ("optimizer", "foreach", "attention")  # settings for which `finetune` has no option

UTILISATION = 0.4  # of the roofline; what well-made training loops reach

DECODING = 0.6  # the same of inference: `compute.DECODING`, which is not read before it is needed

STEPS = 300

# of steps, examples and cards; of the utilisation: what lies beyond is a slip of the keyboard
MOST, LEAST = 10**12, 1e-6

# as in Setup
PLAIN = (
    "method",
    "rank",
    "targets",
    "batch",
    "seq",
    "checkpointing",
    "optimizer",
    "precision",
    "attention",
    "code",
    "device",
    "library",
)


ABOUT = (
    "`finetune` has no --optimizer, --fused, --attention, --library, --gpu, and no --method "
    "mixed, full-bf16 or inference (its full is mixed where it computes in 16 bits). Its "
    "defaults are others: 16 rows at "
    "once, no checkpointing, our Llama; what it will need is told by --batch 16 "
    "--no-checkpointing --library minilora, with --device cpu where there is no card."
)


def add_arguments(parser) -> None:
    parser.epilog = ABOUT
    add = parser.add_argument
    add(
        "--model",
        default="tiny",
        help="tiny, a name such as llama-7b or qwen2.5-1.5b, a Hugging Face folder, or its "
        "config.json (default tiny)",
    )
    add(
        "--method",
        default="qlora",
        help="qlora, lora, int8; full, mixed, full-bf16: all weights; inference: no training "
        "(default qlora)",
    )
    add("--rank", type=int, default=8, help="columns of B, rows of A (default 8)")
    add("--targets", default="all", help="all, or names such as q_proj,v_proj (default all)")
    add("--batch", type=int, default=1, help="rows at once (default 1)")
    add("--seq", type=int, default=512, help="tokens in a row (default 512)")
    add(
        "--checkpointing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compute activations again in backward (default: yes)",
    )
    add(
        "--optimizer",
        default="adamw",
        help="adamw, adamw8bit, paged_adamw8bit, sgd (default adamw)",
    )
    add("--precision", help="fp32, bf16, fp16, autocast (default: the method's)")
    add("--attention", default="sdpa", help="sdpa or eager (default sdpa)")
    add("--code", default="nf4", help="qlora's number format (default nf4)")
    add(
        "--library",
        default="transformers",
        help="whose Llama runs: transformers or minilora (default transformers)",
    )
    add("--device", default="cuda", help="cuda or cpu (default cuda)")
    add(
        "--fused",
        action="store_true",
        help="AdamW in one kernel instead of foreach: one parameter-sized temporary less",
    )
    add(
        "--gpu",
        help="a card such as T4, 'RTX 4090', A100: does it hold the run, and if not, what to change",
    )
    add(
        "--steps",
        type=int,
        help=f"updates, for time and cost of training (default {STEPS}, where no --examples are "
        "given)",
    )
    add("--examples", type=int, help="rows of the data, in place of --steps")
    add("--epochs", type=float, help="how often all examples are seen (default 1)")
    add(
        "--devices",
        type=int,
        help="cards that share the rows of an update, each with the whole model; --batch is of "
        "each (default 1)",
    )
    add(
        "--utilisation",
        type=float,
        help=f"share of the card's bound that the run reaches (default {UTILISATION}; for "
        f"inference {DECODING}, as in minilora.budget.compute)",
    )
    add("--explain", action="store_true", help="the formula behind each number")
    add("--json", action="store_true", help="print everything as JSON")
    add(
        "--picture",
        metavar="FILE",
        help="draw the parts beside the cards' memory: a .svg or a .png",
    )


FLAGS = {
    "checkpointing": "--checkpointing",
    "batch": "--batch {}",
    "precision": "--precision {}",
    "optimizer": "--optimizer {}",
    "method": "--method {}",
    "rank": "--rank {}",
    "seq": "--seq {}",
    "attention": "--attention {}",
    "foreach": "--fused",
}


def smallest(told):
    """The smallest card of the catalogue that holds the run, or None."""
    from ..budget.catalog import GPUS

    enough = [card for card in GPUS.values() if told.needs(card) <= card.usable]
    return min(enough, key=lambda card: (card.memory, card.usable)) if enough else None


def flag(settings: dict) -> str:
    """The option of this command that makes a change: {"rank": 4} → "--rank 4"."""
    ((name, value),) = settings.items()
    return FLAGS[name].format(value)


def only_here(settings: dict) -> bool:
    """Whether `finetune` has no option for that change."""
    ((name, value),) = settings.items()
    return name in ONLY_HERE or value == "full-bf16"


def mark(change) -> str:
    """A remark on a change that `finetune` cannot make."""
    return " (`budget` only; `finetune` has no such option)" if only_here(change.settings) else ""


def told_notes(told) -> list[str]:
    """What to know of a run on whatever card."""
    setup = told.setup
    limit = setup.shape.context
    if setup.seq <= limit or setup.shape.family == "mt5":  # relative positions have no limit
        return []
    return [
        f"{setup.seq:,} tokens are more than the {limit:,} that {setup.shape.name} was made for"
    ]


def option(change, asked: str | None) -> str:
    """The change as it must be typed: a --precision that was asked for stays, so another method
    names its own beside it.
    """
    words, precision = flag(change.settings), change.budget.setup.precision
    return (
        f"{words} --precision {precision}"
        if asked and "method" in change.settings and precision != asked
        else words
    )


def verdict(found, asked: str | None = None) -> list[str]:
    """Lines that say whether the card holds the run, and if not, what to change; `found` is an
    Advice, `asked` the --precision that was typed.
    """
    from ..budget.table import binary, decimal

    card = found.card
    room = (
        f"{card.name} has {decimal(found.room)} ({binary(found.room)}) usable, sold as "
        f"{card.memory / 1e9:g} GB"
    )
    lines = [f"note: {note}" for note in found.notes]
    if found.fits:
        return [f"{room}: the run fits, {decimal(found.room - found.need)} stay free", *lines]
    lines.insert(0, f"{room}: the run does not fit, {decimal(found.need - found.room)} are missing")
    if found.combination is None:
        best = {
            next(iter(change.settings)): change
            for change in sorted(found.changes, key=lambda change: change.saves)
        }
        single = sorted(best.values(), key=lambda change: -change.saves)[:3]
        much = "".join(
            f"\n  {option(change, asked):28} saves {decimal(change.saves)}{mark(change)}"
            for change in single
        )
        return [
            *lines,
            "nothing that this command can change makes it fit; take a larger card or a "
            f"smaller model{'; what saves most:' if much else ''}{much}",
        ]
    lines.append("what makes it fit:")
    lines += [
        f"  {option(change, asked):28} saves {decimal(change.saves)}: {change.text}{mark(change)}"
        for change in found.combination
    ]
    return [*lines, f"then {decimal(found.room - found.fitting.needs(card))} stay free"]


def without_card(told) -> str:
    """One line that names the smallest card."""
    from ..budget.table import decimal

    card = smallest(told)
    if card is None:
        return "no single card of the catalogue holds this run; --gpu NAME says what to change"
    return (
        f"the smallest card that holds it: {card.name}, {decimal(card.usable)} usable; --gpu NAME "
        "asks for another"
    )


@dataclass(frozen=True)
class Length:
    """How long a run is and how fast: updates, or examples for so many epochs, on so many cards, at
    which share of the bound.
    """

    steps: int = STEPS
    examples: int | None = None
    epochs: float = 1
    devices: int = 1
    utilisation: float | None = None

    def rows(self, batch: int) -> int:
        """Rows of the data, where `batch` of them are on each card in each update."""
        return self.examples or self.steps * batch * self.devices

    def told(self, plan) -> str:
        """The run's length in words: "300 steps", or the examples and what follows from them."""
        steps = f"{plan.updates:,} steps"
        if self.examples:
            steps += (
                f" ({self.examples:,} "
                f"examples{f' × {self.epochs:g} epochs' if self.epochs != 1 else ''})"
            )
        return steps + (f" on {self.devices} cards" if self.devices > 1 else "")


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
        if name != "steps" and not args.gpu:
            raise MiniloraError(
                f"--{name} is for time and cost, which depend on the card; add --gpu NAME"
            )
        if args.method == "inference" and name not in ("steps", "utilisation"):
            raise MiniloraError(
                f"--{name} is for training; --method inference is told in tokens a second"
            )
    return Length(**asked)


def plan_of(found, length: Length):
    """The time of the run as asked or, if only changes make it fit, of the changed run; None if
    nothing does.
    """
    from ..budget.forms import compute

    if found.fitting is None:
        return None
    asked, rows = found.budget.setup.batch, found.fitting.setup.batch
    return compute.plan(
        found.fitting.setup,
        found.card,
        length.rows(asked),
        length.epochs,
        max(1, asked // rows),
        length.devices,
        length.utilisation or UTILISATION,
    )


def time_line(found, length: Length) -> str:
    """A bound of the time and, where the catalogue has a price, of the cost."""
    plan, card = plan_of(found, length), found.card
    changed = "" if found.fits else "so changed, "
    share = f"at {100 * (length.utilisation or UTILISATION):.3g} % of the card's {plan.bound} bound"
    text = (
        f"{changed}{length.told(plan)}: {duration(plan.seconds)} {share}, "
        f"{duration(plan.step_seconds)} a step"
    )
    if length.devices > 1:
        text += "; what the cards send one another is not counted"
    if plan.cost is None:
        return text + "; the catalogue has no price for it"
    low, high = plan.cost
    return (
        text + f"; ${low:,.2f} to ${high:,.2f} at prices of {card.price.date} ({card.price.source})"
    )


def pace_of(found, length: Length) -> float | None:
    """Tokens a second of inference on the card, all rows together; None if it does not fit whatever
    is changed.
    """
    from ..budget.forms import compute

    return (
        compute.decode_rate(found.fitting.setup, found.card, length.utilisation or compute.DECODING)
        if found.fitting
        else None
    )


def pace_line(found, length: Length) -> str:
    """Tokens a second: of inference, the time that matters."""
    setup = found.fitting.setup
    changed = "" if found.fits else "so changed, "
    rows = f" in all {setup.batch} rows together" if setup.batch > 1 else ""
    share = f"at {100 * (length.utilisation or DECODING):.3g} % of the card's bandwidth"
    return (
        f"{changed}about {told_rate(pace_of(found, length))} tokens a second{rows}, {share}: "
        f"weights and the cache of {setup.seq:,} tokens are read for each"
    )


def told_rate(rate: float) -> str:
    """A rate to be read: "2.4", "57", "12,300"."""
    return f"{rate:.1f}" if rate < 10 else f"{float(f'{rate:.3g}'):,.0f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: "0.41 s", "12 min", "3.4 h", "12 days"."""
    for size, unit in ((172800, "days"), (7200, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def as_json(told, card, length: Length, asked: str | None = None) -> dict:
    """Everything that the text says, and more: bytes, formulas, moments, the card's verdict and the
    time.
    """
    from ..budget.advice import advise

    found = {**told.to_dict(), "notes": told_notes(told)}
    if card:
        advised = advise(told.setup, card)
        changes = [
            {
                "option": option(change, asked),
                "text": change.text,
                "saves": change.saves,
                "finetune": not only_here(change.settings),
            }
            for change in advised.combination or []
        ]
        found["gpu"] = {
            **asdict(card),
            "need": advised.need,
            "fits": advised.fits,
            "free": advised.room - advised.need,
            "advice": changes,
            "notes": advised.notes,
        }
        found["time"] = time_of(advised, length)
    return found


def time_of(advised, length: Length) -> dict | None:
    """The time as JSON: of a training run its plan, of inference the tokens a second."""
    if advised.fitting is None:
        return None
    if not advised.budget.setup.trains:
        return {
            "tokens_per_second": pace_of(advised, length),
            "bound": "bandwidth",
            "utilisation": length.utilisation or DECODING,
        }
    told = {
        **asdict(plan_of(advised, length)),
        "utilisation": length.utilisation or UTILISATION,
        "devices": length.devices,
    }
    return told | (
        {"examples": length.examples, "epochs": length.epochs} if length.examples else {}
    )


def answer(args) -> tuple:
    """(budget, card or None) of the options. Raises MiniloraError for what cannot be."""
    from .. import budget

    card = budget.catalog.gpu(args.gpu) if args.gpu is not None else None
    if card and args.device == "cpu":
        raise MiniloraError(
            f"--gpu {args.gpu} asks of a card and --device cpu of a processor; leave one of "
            "them out"
        )
    settings = {name: getattr(args, name) for name in PLAIN}
    shape = budget.catalog.model(args.model)
    if shape.family != "llama" and args.method != "inference":
        raise MiniloraError(
            f"{shape.name} is no Llama, and the activations of its family are not counted; "
            "--method inference counts its weights and cache"
        )
    return budget.estimate(shape, **settings, foreach=not args.fused), card


def run(args) -> int:
    from ..budget import table
    from ..budget.advice import advise

    length = length_of(args)
    told, card = answer(args)
    if args.picture is not None:
        from ..budget import picture
        from ..course.explore.palette import HUES

        picture.write(told, args.picture, HUES, [card] if card else [])
    if args.json:
        print(json.dumps(as_json(told, card, length, args.precision), indent=1, ensure_ascii=False))
        return 0
    print(table.headline(told))
    print(table.table(told, args.explain, card))
    for note in told_notes(told):
        print(f"note: {note}")
    if card:
        found = advise(told.setup, card)
        print(
            "\n".join(
                [
                    *verdict(found, args.precision),
                    *(
                        [
                            time_line(found, length)
                            if told.setup.trains
                            else pace_line(found, length)
                        ]
                        if found.fitting
                        else []
                    ),
                ]
            )
        )
    elif told.setup.device == "cuda":
        print(without_card(told))
    if args.picture:
        print(f"{args.picture} written")
    return 0

"""What `minilora budget` prints: the card's verdict, what to change, time and cost, or all as JSON.

How it works: `minilora.budget` counts; here numbers are only rounded to be read. Advice that
`finetune` has no option for is marked.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from ..recipes.memory_warning import in_budget_words
from ..recipes.settings import METHODS, Settings
from ..train.config import declared

if TYPE_CHECKING:
    from ..budget.catalog import GPU

ONLY_HERE = ("optimizer", "foreach", "attention")  # settings for which `finetune` has no option

UTILISATION = 0.4  # of the roofline; what well-made training loops reach

DECODING = 0.6  # the same of inference: `compute.DECODING`, which is not read before it is needed

STEPS = declared(Settings)["steps"].default

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


@dataclass(frozen=True)
class Asked:
    """What was typed that a change of method does not change: --precision, whose Llama, where."""

    precision: str
    library: str
    cuda: bool
    bf16: bool

    def in_words(self, method: str) -> tuple[str, str | None]:
        """(method, precision) as the budget names them; precision None: the method's own. With
        `auto`, what `finetune` does there.
        """
        if self.precision != "auto":
            return method, self.precision
        if method not in METHODS:
            return method, None
        return in_budget_words(method, "auto", self.library, self.cuda, self.bf16)


def smallest(told):
    """The smallest card of the catalogue that holds the run, or None."""
    from ..budget.catalog import GPUS

    enough = [card for card in GPUS.values() if told.needs(card) <= card.usable]
    return min(enough, key=lambda card: (card.memory, card.usable)) if enough else None


def flag(settings: dict) -> str:
    """The option of this command that makes a change: {"rank": 4} → "--rank 4"."""
    ((name, value),) = settings.items()
    return FLAGS[name].format(value)


def only_here(settings: dict, card: GPU | None = None) -> bool:
    """Whether `finetune` has no option for that change, or keeps its base in 32 bits all the same:
    on a card without bf16.
    """
    ((name, value),) = settings.items()
    without = name == "precision" and card is not None and "bf16" not in card.rates
    return name in ONLY_HERE or value == "full-bf16" or without


def mark(change, card: GPU | None = None) -> str:
    """A remark on a change that `finetune` cannot make."""
    here = only_here(change.settings, card)
    return " (`budget` only; `finetune` has no such option)" if here else ""


def told_notes(told) -> list[str]:
    """What to know of a run on whatever card."""
    setup = told.setup
    limit = setup.shape.context
    if setup.seq <= limit or setup.shape.family == "mt5":  # relative positions have no limit
        return []
    return [
        f"{setup.seq:,} tokens are more than the {limit:,} that {setup.shape.name} was made for"
    ]


def option(change, asked: Asked) -> str:
    """The change as it must be typed: another method names its precision beside it where it would
    get another one.
    """
    from ..budget.setup import METHODS as OWN

    words = flag(change.settings)
    if "method" not in change.settings:
        return words
    method, precision = asked.in_words(change.settings["method"])
    wanted = change.budget.setup.precision
    return words if (precision or OWN[method][1]) == wanted else f"{words} --precision {wanted}"


def verdict(found, asked: Asked) -> list[str]:
    """Lines that say whether the card holds the run, and if not, what to change; `found` is an
    Advice.
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
            f"\n  {option(change, asked):28} saves {decimal(change.saves)}{mark(change, card)}"
            for change in single
        )
        return [
            *lines,
            "nothing that this command can change makes it fit; take a larger card or a "
            f"smaller model{'; what saves most:' if much else ''}{much}",
        ]
    lines.append("what makes it fit:")
    lines += [
        f"  {option(change, asked):28} saves {decimal(change.saves)}: {change.text}"
        f"{mark(change, card)}"
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


def as_json(told, card: GPU | None, length: Length, asked: Asked) -> dict:
    """Everything that the text says, and more: bytes, formulas, moments, the card's verdict and the
    time.
    """
    from ..budget.advice import advise
    from ..budget.process import process

    found = {**told.to_dict(), "notes": told_notes(told)}
    if told.setup.device == "cpu":
        found["process"] = process(told).to_dict()
    if card:
        advised = advise(told.setup, card)
        changes = [
            {
                "option": option(change, asked),
                "text": change.text,
                "saves": change.saves,
                "finetune": not only_here(change.settings, card),
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


def lines(told, card: GPU | None, length: Length, asked: Asked) -> list[str]:
    """What is said below the table: of a card the verdict and the time, else the smallest card."""
    from ..budget.advice import advise

    if card is None:
        return [without_card(told)] if told.setup.device == "cuda" else []
    found = advise(told.setup, card)
    said = verdict(found, asked)
    if found.fitting:
        said.append((time_line if told.setup.trains else pace_line)(found, length))
    return said

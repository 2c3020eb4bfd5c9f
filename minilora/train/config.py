"""The settings that decide a run's numbers: each declared once, with its default, what it means and
whether a run that goes on may change it.

What it replaces: the hundred fields of transformers' `TrainingArguments`, whose help stands a
second time in every script's parser.
How it works: a field's metadata carries what a reader needs. `minilora.recipes.settings` takes
these fields over for `minilora finetune`; its parser, run.json and the memory warning read that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import MiniloraError

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# What --resume allows of a setting. A free one decides no number; those whose product stays give
# each step the same rows; any other makes it another run.
FREE, SAME_PRODUCT = "free", "same product"


def setting(
    default: Any,
    meaning: str,
    group: str = "training",
    *,
    choices: tuple[str, ...] | None = None,
    resume: str | None = None,
    shown: str | None = None,
    metavar: str | None = None,
) -> Any:
    """A dataclass field that says of itself what a parser has to know. shown: the default in words,
    where it follows from other settings.
    """
    told = dict(
        meaning=meaning, group=group, choices=choices, resume=resume, shown=shown, metavar=metavar
    )
    return field(default=default, metadata=told)


@dataclass
class TrainConfig:
    """Everything that decides the numbers of a run. Raises MiniloraError on values that cannot
    be.
    """

    steps: int = setting(300, "updates")
    batch_size: int = setting(16, "rows at once", resume=SAME_PRODUCT)
    lr: float = setting(3e-3, "highest learning rate")
    warmup: int | None = setting(
        None,
        "steps of rising learning rate",
        shown="a twentieth of the run, at most 100",
    )
    final_lr: float = setting(0.0, "the cosine ends at this share of the learning rate")
    weight_decay: float = setting(0.0, "AdamW's")
    betas: tuple[float, float] = setting((0.9, 0.999), "AdamW's")
    clip: float = setting(1.0, "largest gradient norm, 0: none")
    accumulate: int = setting(1, "such batches per update", resume=SAME_PRODUCT)
    checkpointing: bool = setting(
        False,
        "compute activations again in backward: less memory, a third more time",
        resume=FREE,
    )
    precision: str = setting(
        "auto",
        "auto: bf16 on a GPU that has it, fp16 with loss scaling on an older one such as the T4, "
        "fp32 on a processor",
        choices=PRECISIONS,
    )
    eval_every: int = setting(0, "steps between validations, 0: at start and end only", "the run")
    save_every: int = setting(50, "steps between saved states", "the run", resume=FREE)
    seed: int = setting(0, "of the adapter's start, the order of the data and dropout")
    lora_plus: float | None = setting(
        None,
        "B learns at RATIO times the rate of A, such as 16",
        "the adapter",
        shown="at the same",
        metavar="RATIO",
    )

    def __post_init__(self) -> None:
        for name, least in {
            "steps": 1,
            "batch_size": 1,
            "accumulate": 1,
            "eval_every": 0,
            "save_every": 1,
        }.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise MiniloraError(f"{name} is {value!r}; give a whole number of {least} or more")
        for name in ("lr", "weight_decay", "clip", "final_lr"):
            value = getattr(self, name)
            if (
                not isinstance(value, (int, float))
                or not math.isfinite(value)
                or value < 0
                or (name == "lr" and value == 0)
            ):
                allowed = "above 0, such as 1e-3" if name == "lr" else "of 0 or more"
                raise MiniloraError(f"{name} is {value!r}; give a number {allowed}")
        if self.precision not in PRECISIONS:
            raise MiniloraError(f"precision is {self.precision!r}; choose auto, fp32, bf16 or fp16")
        if self.lora_plus is not None and not (
            isinstance(self.lora_plus, (int, float)) and 1 <= self.lora_plus < math.inf
        ):
            raise MiniloraError(
                f"lora_plus is {self.lora_plus!r}; B learns faster than A, so give 1 or more, "
                "such as 16"
            )
        if not 0 <= self.warmup_steps <= self.steps:
            raise MiniloraError(
                f"warmup is {self.warmup!r}; give 0 to {self.steps}, the number of steps"
            )

    @property
    def warmup_steps(self) -> int:
        """How many steps the rate rises: `warmup`, or its default."""
        return min(100, math.ceil(self.steps / 20)) if self.warmup is None else self.warmup


def declared(kind: type) -> dict[str, dataclasses.Field]:
    """The settings of a dataclass by name; what each carries stands in its `metadata`."""
    return {each.name: each for each in dataclasses.fields(kind)}


def another_run(kind: type, began: Mapping, now: Mapping) -> str | None:
    """The first setting of `now` with which a run that began with `began` would be another one, or
    None. A setting that `began` does not hold is from after its time.
    """
    may = {name: each.metadata["resume"] for name, each in declared(kind).items()}
    together = [name for name, rule in may.items() if rule == SAME_PRODUCT]
    before, after = (
        math.prod(side.get(name, 1) for name in together) for side in (began, {**began, **now})
    )
    for name, value in now.items():
        changed = began.get(name, value) != value
        free = may[name] == FREE or (may[name] == SAME_PRODUCT and before == after)
        if changed and not free:
            return name
    return None


def settled(config: TrainConfig | None, settings: dict) -> TrainConfig:
    """`config` with some settings changed, or one of these settings alone. Raises MiniloraError for
    a name that is none.
    """
    names = list(declared(TrainConfig))
    for name in settings:
        if name not in names:
            raise MiniloraError(f"fit knows no setting {name!r}; there are {', '.join(names)}")
    return dataclasses.replace(config, **settings) if config else TrainConfig(**settings)

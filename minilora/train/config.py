"""The settings that decide a run's numbers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ..errors import MiniloraError
from ..system.precision import HALVES


@dataclass
class TrainConfig:
    """Everything that decides the numbers of a run. Raises MiniloraError on values that cannot
    be.
    """

    steps: int = 300
    batch_size: int = 16
    lr: float = 2e-3
    warmup: int | None = None  # steps; None: a twentieth of the run, at most 100
    final_lr: float = 0.0  # the cosine ends at final_lr * lr
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0  # largest gradient norm; 0: no clipping
    accumulate: int = 1
    checkpointing: bool = False
    # "fp32", "bf16" or "fp16" (autocast), or "auto": bf16 on a GPU that has it, fp16 on an older
    # one
    precision: str = "auto"
    eval_every: int = 0  # steps; 0: at start and end only
    save_every: int = 50  # steps; used when `out` is given
    seed: int = 0
    # B learns at this many times the rate of A (lora/rates.py); None: at the same
    lora_plus: float | None = None

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
                raise MiniloraError(f"{name} is {value!r}; give a number above 0, such as 1e-3")
        if self.precision not in ("auto", "fp32", *HALVES):
            raise MiniloraError(f"precision is {self.precision!r}; choose auto, fp32, bf16 or fp16")
        if self.lora_plus is not None and not (
            isinstance(self.lora_plus, (int, float)) and 1 <= self.lora_plus < math.inf
        ):
            raise MiniloraError(
                f"lora_plus is {self.lora_plus!r}; B learns faster than A, so give 1 or more, "
                "such as 16"
            )
        if self.warmup is None:
            self.warmup = min(100, math.ceil(self.steps / 20))
        if not 0 <= self.warmup <= self.steps:
            raise MiniloraError(
                f"warmup is {self.warmup!r}; give 0 to {self.steps}, the number of steps"
            )


# ----------------------------------------------------------------------------------------- the loop


def _settings(config: TrainConfig | None, settings: dict) -> TrainConfig:
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    for name in settings:
        if name not in names:
            raise MiniloraError(f"fit knows no setting {name!r}; there are {', '.join(names)}")
    return dataclasses.replace(config, **settings) if config else TrainConfig(**settings)

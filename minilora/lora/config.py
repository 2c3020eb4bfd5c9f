"""What an adapter is made of: its rank, its scale, where it sits, how it starts.

What it replaces: `peft.LoraConfig`, about fifty fields of which these are the ones the lessons use.
How it works: a frozen dataclass that checks itself, and answers for one module path which rank,
alpha and scale hold there (a pattern for a layer overrides the number for the whole adapter,
matched as PEFT matches it).
What it leaves out: PEFT's other methods and inits (EVA, CorDA, OLoRA, ...), convolutions, LoRA
biases.
Where numerics differ: nowhere. Scale is α/r (Hu et al. 2021, §4.1) or α/√r for rsLoRA
(Kalajdzievski 2023).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from reprlib import repr as short

from ..errors import MiniloraError
from .patterns import bounded, fullmatch

PREFIX = "base_model.model."  # before each module's path in PEFT's files
VARIANTS = ("lora", "rslora", "dora", "rsdora")

INITS = ("kaiming", "gaussian", "random", "pissa", "loftq")
ROUNDS = 100  # of pissa_niter_N and loftq_niter_N; the papers take 16 and 5

LARGEST_ALPHA = 1e9  # beyond it α/r leaves what 32 bits hold, or overflows before


@dataclass(frozen=True)
class AdapterConfig:
    """One adapter's settings. `targets`: "all", a list of names, or a regular expression on the
    whole path.

    `rank_pattern` and `alpha_pattern` map a name (or regular expression for the end of a path) to a
    number; `full_modules` are trained whole beside the adapter (PEFT: modules_to_save);
    `base_model` names the base. Raises MiniloraError on any value that cannot work.
    """

    rank: int = 8
    alpha: float = 16
    targets: str | Sequence[str] = "all"
    dropout: float = 0.0
    init: str = "kaiming"
    variant: str = "lora"
    rank_pattern: dict = field(default_factory=dict)
    alpha_pattern: dict = field(default_factory=dict)
    full_modules: Sequence[str] = ()
    base_model: str | None = None

    def __post_init__(self):
        for where, rank in [
            ("rank", self.rank),
            *((f"rank_pattern[{k!r}]", v) for k, v in self.rank_pattern.items()),
        ]:
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise MiniloraError(
                    f"{where} is {short(rank)}; it must be a whole number from 1 up, such as 8"
                )
        for where, alpha in [
            ("alpha", self.alpha),
            *((f"alpha_pattern[{k!r}]", v) for k, v in self.alpha_pattern.items()),
        ]:
            if (
                isinstance(alpha, bool)
                or not isinstance(alpha, (int, float))
                or not 0 < alpha <= LARGEST_ALPHA
            ):
                raise MiniloraError(
                    f"{where} is {short(alpha)}; it must be a positive number, such as 2 * rank"
                )
        if (
            isinstance(self.dropout, bool)
            or not isinstance(self.dropout, (int, float))
            or not 0 <= self.dropout < 1
        ):
            raise MiniloraError(
                f"dropout is {short(self.dropout)}; it must be at least 0 and below 1"
            )
        if self.variant not in VARIANTS:
            raise MiniloraError(
                f"variant {self.variant!r} is not known; choose one of {', '.join(VARIANTS)}"
            )
        counted = re.fullmatch("(pissa|loftq)_niter_([1-9][0-9]*)", str(self.init))
        if self.init not in INITS and not counted:
            raise MiniloraError(
                f"init {short(self.init)} is not known; choose one of {', '.join(INITS)} or "
                "pissa_niter_16, loftq_niter_5"
            )
        if counted and (len(counted[2]) > 9 or int(counted[2]) > ROUNDS):
            raise MiniloraError(
                f"init {short(self.init)} asks for more than {ROUNDS} rounds; after a few they "
                "change nothing, give 16 or less"
            )
        self._check_names()

    def _check_names(self):
        for pattern in [
            *self.rank_pattern,
            *self.alpha_pattern,
            *([self.targets] if isinstance(self.targets, str) else []),
        ]:
            bounded(pattern)
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", list(self.targets))
            if not self.targets or not all(isinstance(name, str) and name for name in self.targets):
                raise MiniloraError(
                    f"targets is {short(self.targets)}; "
                    'give "all" or names such as ["q_proj", "v_proj"]'
                )
        object.__setattr__(self, "full_modules", list(self.full_modules))

    @property
    def dora(self) -> bool:
        """Whether the adapter learns a magnitude for each output row as well."""
        return self.variant in ("dora", "rsdora")

    @property
    def rslora(self) -> bool:
        """Whether the scale is α/√r."""
        return self.variant in ("rslora", "rsdora")

    def rank_of(self, path: str) -> int:
        """The rank at one module path."""
        return _by_pattern(self.rank_pattern, path, self.rank)

    def alpha_of(self, path: str) -> float:
        """The alpha at one module path."""
        return _by_pattern(self.alpha_pattern, path, self.alpha)

    def scale_of(self, path: str) -> float:
        """What B(Ax) is multiplied by at one module path."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.rslora else rank)


def _by_pattern(pattern: dict, path: str, otherwise):
    for key, value in pattern.items():
        if fullmatch(rf"(.*\.)?({key})", path):
            return value
    return otherwise

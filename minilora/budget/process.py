"""What a whole process takes on a processor: a run's bytes beside the libraries', moment by moment.

What it replaces: reading `top` while a run goes on.
How it works: two moments are compared. While the weights are read, the file's pages stand beside
the model in the type in which it will compute; a base in 4 or 8 bits is packed when all of it is
there, and the packed layers stand beside it. In a step stands what `estimate` counts. Interpreter,
libraries and tokenizer stand beside both.
What it leaves out: holes in the C library's heap, which are no one's bytes and hang on the order of
all requests (docs/budget.md says how large they were); what is held while a state is written; rows
of the data.
Where numerics differ: weights are taken to be stored in 16 bits; the libraries' share was measured
with our own backend, and is more with transformers, PEFT and bitsandbytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..system.memory import LIBRARIES
from .estimate import Budget
from .forms import memory
from .setup import Setup

STORED = 2  # bytes of a weight in the file


@dataclass(frozen=True)
class Process:
    """Bytes of the process at each moment, and what stands beside the run in all of them."""

    libraries: int
    moments: dict[str, int]

    @property
    def moment(self) -> str:
        return max(self.moments, key=lambda name: self.moments[name])

    @property
    def peak(self) -> int:
        return self.moments[self.moment]

    def to_dict(self) -> dict:
        return {**asdict(self), "moment": self.moment, "peak": self.peak}


def loading(setup: Setup) -> int:
    """The most bytes that stand while the base is read, and packed where it will be packed."""
    whole = setup.width * setup.shape.parameters
    packed = 0
    if setup.base != "dense":
        rest = setup.width * memory.dense_rest(setup)
        packed = sum(part.bytes for part in memory.weights(setup).values()) - rest
    return whole + max(STORED * setup.shape.parameters, packed)


def process(told: Budget, more: int = 0) -> Process:
    """The process of a run on a processor. more: bytes of a step that the budget does not count,
    as DoRA's and dropout's.
    """
    found = {
        "loading": LIBRARIES + loading(told.setup),
        "training" if told.setup.trains else "generation": LIBRARIES + told.peak_allocated + more,
    }
    return Process(LIBRARIES, found)

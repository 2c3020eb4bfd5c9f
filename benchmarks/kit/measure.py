"""How the benchmarks measure: time side by side, bytes kept for backward, peak memory of a step.

What it replaces: a stopwatch around one run.
How it works: the contenders take turns, in an order that turns too, so that a change of the
machine's pace hits all of them; times are medians, and a ratio is the median of the ratios of
neighbouring runs. Bytes kept for backward are the memory blocks behind the tensors that autograd
saves, each counted once, the model's own parameters and buffers left out. Peak memory is the
highest sum of what a step asks of torch's allocator, temporaries of its kernels included, read from
torch's profiler, plus that of Python and NumPy, read from tracemalloc; what the model holds at rest
is not in it.
What it leaves out: memory that a library takes past these allocators (MKL's packing buffers).
Where numerics differ: times depend on the machine; believe the ratios. Bytes are exact.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch


@dataclass
class Row:
    """One line of the table. `ours` and `peer` are in `unit`; `ratio` is told by `told` ("{:.1f} ×
    as fast"), and met where it is at least (`goal` > 1) or at most (`goal` ≤ 1) the goal.
    """

    what: str
    threads: int
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    told: str
    goal: float | None = None
    beside: str = ""  # the floor, in words
    spread: tuple[float, float] | None = None  # the quarter and three-quarter marks of the ratio

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        shown = round(self.ratio, 2)  # as the table shows it
        return shown >= self.goal if self.goal > 1 else shown <= self.goal

    def record(self) -> dict:
        return asdict(self) | {"met": self.met}


Seconds = dict[str, list[float]]


def interleaved(functions: dict[str, Callable], rounds: int) -> Seconds:
    """Seconds of each function, called in turn `rounds` times after one warm-up."""
    seconds: Seconds = {name: [] for name in functions}
    names = list(functions)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            functions[name]()
            spent = time.perf_counter() - start
            if number:
                seconds[name].append(spent)
    return seconds


def ratio(seconds: Seconds, above: str, below: str) -> tuple[float, tuple[float, float]]:
    """Median of the ratios of neighbouring runs, and their quarter marks."""
    ratios = [a / b for a, b in zip(seconds[above], seconds[below])]
    if len(ratios) == 1:
        return ratios[0], (ratios[0], ratios[0])
    quarters = statistics.quantiles(ratios, method="inclusive")
    return statistics.median(ratios), (quarters[0], quarters[2])


def median_ms(seconds: Seconds, name: str) -> float:
    return statistics.median(seconds[name]) * 1e3


def saved_bytes(step: Callable[[], torch.Tensor], model: torch.nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of `step`, which returns the loss."""
    own = {
        tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]
    }
    kept: dict[int, int] = {}
    held = []  # so that no address is given out twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that `work` has at any one time from torch's CPU allocator, plus the most
    from Python and NumPy.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events = [
        event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    tracemalloc.start()
    try:
        work()
        return most + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

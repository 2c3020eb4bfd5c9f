"""The exact peak of a training step, measured without the machine that could hold it.

What it replaces: `torch.cuda.max_memory_allocated()` after a trial run on a rented GPU, and
guessing.
How it works: the step of `fake_run` runs under FakeTensorMode: tensors have shapes, types and
storages, but no memory. A `TorchDispatchMode` sees the result of every operation. The first time it
meets a storage it books its bytes; a weak reference books them back when the storage is freed,
which Python and autograd do at the same moments as in a real run. So the ledger knows every
allocation in order, the peak of each phase, and what stood there at the peak. Two steps are run:
the first makes the optimizer's memory, the second finds it there.
What it leaves out: what kernels take for themselves inside one operation (workspaces, the fp32 copy
of ∂L/∂q in flash attention's backward pass), the context of the driver (`allocator` adds workspaces
and rounding). Fake `cuda` aborts in a build of torch without it, so the device is a fake `cpu`:
SDPA is its fused kernel, which keeps what flash attention keeps.
Where numerics differ: bytes are whole numbers; the same step on real tensors, watched in the same
way, gives the same events.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..setup import Setup, make
from ..shapes import Shape
from .fake_run import (
    Plan,
    batch_of,
    build,
    layers_of,
    loss_of,
    optimizer_of,
    prepared,
    remember,
    update,
)

PHASES = ("rest", "forward", "backward", "step")

KINDS = ("weights", "constants", "gradients", "optimizer", "activations", "temporaries")


@dataclass
class Ledger:
    """What a step allocates. `events`: (number of the storage, bytes), negative where it is freed,
    in order.
    """

    plan: Plan
    events: list[tuple[int, int]]
    marks: list[tuple[int, str]]  # from which event on a phase lasts
    kind_of: dict[int, str]  # storage → one of KINDS; what is not named is a temporary
    seconds: float = 0.0
    steps: int = 2
    _peak_at: int = field(default=-1, repr=False)

    def phase_at(self, index: int) -> str:
        """The phase that event `index` belongs to."""
        return next(name for start, name in reversed(self.marks) if start <= index)

    def timeline(self) -> list[int]:
        """Bytes that stand after each event."""
        return list(itertools.accumulate(size for _, size in self.events))

    @property
    def peak_at(self) -> int:
        """The event at which most bytes stand."""
        if self._peak_at < 0:
            line = self.timeline()
            self._peak_at = max(range(len(line)), key=line.__getitem__)
        return self._peak_at

    @property
    def peak(self) -> int:
        """The most bytes that stood at one time."""
        return sum(size for _, size in self.events[: self.peak_at + 1])

    @property
    def phase(self) -> str:
        """In which phase that was."""
        return self.phase_at(self.peak_at)

    @property
    def phases(self) -> dict[str, int]:
        """The most bytes in each phase, over both steps."""
        line, ends = self.timeline(), [start for start, _ in self.marks[1:]] + [len(self.events)]
        most: dict[str, int] = {}
        for (start, name), end in zip(self.marks, ends):
            most[name] = max([most.get(name, 0), *line[max(start - 1, 0) : end]])
        return most

    @property
    def kinds(self) -> dict[str, int]:
        """The peak by what it is made of."""
        return self.kinds_at(self.peak_at)

    def kinds_at(self, index: int) -> dict[str, int]:
        """What stands after event `index`, by kind."""
        sums = dict.fromkeys(KINDS, 0)
        for number, size in self.events[: index + 1]:
            sums[self.kind_of.get(number, "temporaries")] += size
        return sums


class Watch(TorchDispatchMode):
    """Books each storage when an operation first returns it, and books it back when it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []
        # address of the storage object → its number
        self.living: dict[int, tuple[int, weakref.ref]] = {}
        self.numbers = itertools.count()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = _known_length(func, args) if func is torch.ops.aten.index.Tensor else None
        if out is None:
            out = func(*args, **(kwargs or {}))
        self.see(out)
        return out

    def see(self, out: Any) -> None:
        """Book what is new in the result of an operation."""
        if isinstance(out, Tensor):
            self.number(out)
        elif isinstance(out, (list, tuple)):
            for each in out:
                self.see(each)

    def number(self, tensor: Tensor) -> int:
        """The number of the tensor's storage, which is booked if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.living:
            number, size = next(self.numbers), storage.nbytes()

            def freed(_, key=key, number=number, size=size) -> None:
                del self.living[key]
                self.events.append((number, -size))

            self.living[key] = number, weakref.ref(storage, freed)
            self.events.append((number, size))
        return self.living[key][0]


def _known_length(func, args) -> Tensor | None:
    """x[mask] on fake tensors: its length depends on numbers, but here every token is learned, so
    the mask is all True.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    x, indices = args
    if isinstance(x, FakeTensor) and len(indices) == 1 and indices[0].dtype == torch.bool:
        mask = indices[0]
        return x.new_empty(mask.numel(), *x.shape[mask.ndim :])
    return None


class _Labels:
    """Says of what kind each storage is. A later word counts only where none was said before."""

    def __init__(self, watch: Watch) -> None:
        self.watch, self.kind_of = watch, {}
        self.before: set[int] = set()  # what lived when a layer began to be computed again

    def say(self, kind: str, tensors) -> None:
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self.kind_of.setdefault(self.watch.number(tensor), kind)

    def living(self) -> set[int]:
        return {number for number, _ in self.watch.living.values()}

    def kept(self, kind: str, numbers: set[int]) -> None:
        for number in numbers:
            self.kind_of.setdefault(number, kind)

    def model(self, model: nn.Module) -> None:
        """Parameters and packed weights, which a buffer called `weight` holds; other buffers are
        constants.
        """
        self.say("weights", model.parameters())
        for name, buffer in model.named_buffers():
            self.say("weights" if name.rpartition(".")[2] == "weight" else "constants", [buffer])


@contextlib.contextmanager
def _gradients_noted(model: nn.Module, labels: _Labels) -> Iterator[None]:
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda p: labels.say("gradients", [p.grad]))
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _recomputing_noted(model: nn.Module, labels: _Labels, phase: dict) -> Iterator[None]:
    """In the backward pass of a checkpointed model: what a layer computed again and keeps is an
    activation.
    """

    def begin(module, args) -> None:
        labels.before = labels.living()

    def end(module, args, output) -> None:
        if phase["now"] == "backward":
            labels.kept("activations", labels.living() - labels.before)

    handles = []
    for layer in layers_of(model):
        handles += [
            layer.register_forward_pre_hook(begin),
            layer.register_forward_hook(end, always_call=True),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def watch_steps(model: nn.Module, plan: Plan, steps: int = 2, optimizer: Any = None) -> Ledger:
    """Train `model`, real or fake, for `steps` steps and write down what it allocates.

    With one step alone the optimizer's memory is made beforehand, so that this step finds what a
    second one would: half the work. optimizer: another one than the plan's AdamW, torch's or ours,
    for a plan without clipping.
    """
    began, watch, phase, setup = time.perf_counter(), Watch(), {"now": "rest"}, plan.setup
    labels, marks = _Labels(watch), [(0, "rest")]
    labels.model(model)

    def enter(name: str) -> None:
        phase["now"] = name
        marks.append((len(watch.events), name))

    def say_averages() -> None:
        # ours, torch's
        states = optimizer.state if isinstance(optimizer.state, list) else optimizer.state.values()
        labels.say("optimizer", (value for state in states for value in state.values()))

    gc.collect()
    was_on = gc.isenabled()
    gc.disable()  # what only a collection would free stands, as it does between two of them
    try:
        with (
            watch,
            prepared(model, setup),
            _gradients_noted(model, labels),
            _recomputing_noted(model, labels, phase),
        ):
            batch, optimizer = batch_of(setup), optimizer or optimizer_of(model, setup)
            if steps == 1:
                enter("step")
                remember(optimizer)
                say_averages()
            for _ in range(steps):
                enter("forward")
                loss = loss_of(model, setup, batch)
                labels.kept("activations", labels.living())
                enter("backward")
                loss.backward()
                enter("step")
                update(plan, optimizer)
                say_averages()
                del loss
        return Ledger(
            plan, list(watch.events), marks, labels.kind_of, time.perf_counter() - began, steps
        )
    finally:
        if was_on:
            gc.enable()


def measure(model: Setup | Shape | str, clip: float = 1.0, steps: int = 2, **settings) -> Ledger:
    """The ledger of a training step, without the memory it would take.

    model: a Setup, or a name of the catalogue, a config.json or a Shape, with the settings of
    `estimate`. Raises MiniloraError for what is unknown, cannot be, or cannot be measured without
    the hardware.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    began = time.perf_counter()
    plan = Plan(model if isinstance(model, Setup) else make(model, **settings), clip)
    with FakeTensorMode():
        ledger = watch_steps(build(plan), plan, steps)
    ledger.seconds = time.perf_counter() - began
    return ledger

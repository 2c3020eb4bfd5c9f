"""Where the time of a training step goes: torch's profiler, each moment counted to one part.

What it replaces: reading a trace of ten thousand lines.
How it works: the steps that have a name of their own (decoding 4 bits, the head with its loss, the
optimizer) are marked; every operation counts, with the time that it spends itself, to the marked
step that it happens in, else to the part that its own name says. What is left is what Python and
autograd take between operations.
What it leaves out: waiting for memory inside an operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch.profiler import ProfilerActivity, profile, record_function

DECODING, OPTIMIZER, STEP = "decoding 4 bits", "optimizer", "step"
PRODUCTS, REST = "matrix products", "Python, autograd, other operations"
# part → how names of its operations begin; the first that fits an operation or what it is in
PARTS = {
    DECODING: (DECODING,),
    "head and loss": ("_HeadLoss",),
    OPTIMIZER: (OPTIMIZER, "Optimizer."),
    "attention": ("aten::scaled_dot_product", "aten::_scaled_dot_product", "ScaledDotProduct"),
    "norms, rotation, gates": ("_FrozenNorm", "_Gated", "_Turned"),
}
MULTIPLIES = ("aten::mm", "aten::addmm", "aten::bmm", "aten::matmul", "aten::linear")


@contextlib.contextmanager
def marked() -> Iterator[None]:
    """QLinear's decoding under a name of its own."""
    from minilora.qlora import QLinear

    plain = QLinear.decode

    def decode(self, dtype):
        with record_function(DECODING):
            return plain(self, dtype)

    QLinear.decode = decode
    try:
        yield
    finally:
        QLinear.decode = plain


def part_of(event) -> str:
    """The part that an operation counts to: that of the outermost step around it, else its own."""
    names, at = [], event
    while at is not None:
        names.append(at.name)
        at = at.cpu_parent
    for name in reversed(names):
        for part, beginnings in PARTS.items():
            if name.startswith(beginnings):
                return part
    inside = any(name.startswith(MULTIPLIES) for name in names)
    return PRODUCTS if inside else REST


def parts(step: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each part of one call of `step`, the largest first."""
    with marked():
        step()
        with profile(activities=[ProfilerActivity.CPU]) as watched, record_function(STEP):
            step()
    found: dict[str, float] = {}
    for event in watched.events():
        part = part_of(event)
        found[part] = found.get(part, 0.0) + event.self_cpu_time_total / 1e3
    return {part: round(ms, 2) for part, ms in sorted(found.items(), key=lambda each: -each[1])}

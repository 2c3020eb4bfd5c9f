"""The peak of a training step: how many bytes stand at the worst moment of forward, backward and
the optimizer's step.

What it replaces: adding up all parts, which never stand at the same time: activations are gone when
the optimizer works.
How it works: the tape of `record` is walked on paper. Forward: what is kept grows, and each
result lives until its last reader. Backward, in reverse: each node needs the gradient of its
result, makes those of its inputs and of its weights, and lets go of what it kept. Under
checkpointing a layer's forward is walked once more before its backward. The optimizer's step then
finds weights, gradients and averages, and AdamW over all tensors at once makes one more temporary
of the size of the parameters (√v̂).
What it leaves out: what kernels take inside (the fp32 sum of dQ in flash attention), and rounding
by the allocator.
Where numerics differ: a sum on paper; within 1 % of the peak that the ledger sees (see tests).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..setup import Setup
from . import activations, memory
from .record import Record, record
from .tape import Op, Value


@dataclass(frozen=True)
class Moment:
    """Bytes that stand at the worst instant of one phase, and of what they are."""

    bytes: int
    formula: str
    what: str


@dataclass(eq=False)
class _Gradient:
    """A gradient's memory, which several nodes may hold."""

    bytes: int
    holders: int = 1


class _Walk:
    """The bytes that stand beside weights and optimizer, step by step."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self.holders: dict[int, int] = {}  # kept value → nodes that still need it
        self.gradients: dict[int, _Gradient] = {}

    def stand(self, more: int = 0) -> None:
        self.peak = max(self.peak, self.live + more)

    def forward(self, ops: list[Op], keep: bool) -> None:
        """Results live until their last reader; what backward needs lives on if `keep`."""
        last = {id(x): i for i, op in enumerate(ops) for x in op.inputs}
        alive: dict[int, int] = {}
        for i, op in enumerate(ops):
            made = op.out.bytes
            for value in op.keeps if keep else ():
                if id(value) not in self.holders:
                    if value is not op.out and id(value) not in alive:
                        self.live += value.bytes
                    elif value is op.out:
                        made = 0
                        self.live += value.bytes
                    else:
                        del alive[id(value)]
                self.holders[id(value)] = self.holders.get(id(value), 0) + 1
            if made:
                alive[id(op.out)] = made
                self.live += made
            self.stand(op.forward)
            for value in {id(x): x for x in (*op.inputs, op.out)}.values():
                if (
                    id(value) in alive
                    and last.get(id(value), -1) <= i
                    and (value is not op.out or i + 1 < len(ops))
                ):
                    self.live -= alive.pop(id(value))
        self.live -= sum(alive.values())

    def backward(self, ops: list[Op]) -> None:
        """Every node in reverse. What it kept is freed when nobody needs it any more."""
        for op in reversed(ops):
            incoming = self.gradients.pop(id(op.out), None) or _Gradient(0)
            made = [
                (x, incoming if op.shares and x.bytes == incoming.bytes else _Gradient(x.bytes))
                for x in op.inputs
            ]
            new = sum(g.bytes for _, g in made if g is not incoming) + sum(op.weights)
            self.stand(new + op.temp)
            self.live += new
            incoming.holders += sum(g is incoming for _, g in made)
            self._release(incoming)
            for value in op.keeps:
                self.holders[id(value)] -= 1
                if not self.holders[id(value)]:
                    del self.holders[id(value)]
                    self.live -= value.bytes
            for x, gradient in made:
                self._add(x, gradient)

    def _add(self, x: Value, gradient: _Gradient) -> None:
        """A second gradient of x is added into the first, or into new memory if somebody else holds
        that.
        """
        first = self.gradients.get(id(x))
        if first is None:
            self.gradients[id(x)] = gradient
        elif first.holders == 1:
            self._release(gradient)
        else:
            self.live += x.bytes
            self.stand()
            self._release(first)
            self._release(gradient)
            self.gradients[id(x)] = _Gradient(x.bytes)

    def _release(self, gradient: _Gradient) -> None:
        gradient.holders -= 1
        if not gradient.holders:
            self.live -= gradient.bytes


WALKED = 4  # layers that are walked; the others only add what they keep, or their gradients


def step_peaks(setup: Setup) -> tuple[int, int]:
    """(forward, backward): most bytes beside weights and averages, gradients included, in a
    training step.

    Layers from the second on are equal, so what stands grows evenly from one to the next, and the
    worst is at one end.
    """
    if (
        setup.shape.family != "llama"
    ):  # a rule of thumb: what is kept, gradients, and two more matrices of logits
        kept = activations.kept(setup).bytes
        return kept, kept + 8 * setup.tokens * setup.shape.vocab + memory.gradients(setup).bytes
    layers = min(setup.shape.layers, WALKED)
    found, others = record(setup, layers), setup.shape.layers - layers
    middle = found.tape.ops[found.starts[-2] : found.starts[-1]]
    inner = sum(
        value.bytes
        for value in dict.fromkeys(v for op in middle for v in op.keeps)
        if value not in found.tables
    )
    gradients = others * sum(sum(op.weights) for op in middle)
    if setup.checkpointing:
        return _checkpointed(found, others * found.inputs[-1].bytes, gradients)
    return _plain(found, others * inner, gradients)


def _plain(found: Record, kept: int, gradients: int) -> tuple[int, int]:
    """kept: what the layers keep that are not walked; gradients: of their weights."""
    walk, ops = _Walk(), found.tape.ops
    half = found.starts[len(found.inputs) // 2]
    walk.forward(ops[:half], keep=True)
    walk.live += kept
    walk.forward(ops[half:], keep=True)
    forward, walk.peak = walk.peak, 0
    walk.backward(ops[half:])
    walk.live += gradients - kept
    walk.backward(ops[:half])
    return forward, walk.peak


def _checkpointed(found: Record, kept: int, gradients: int) -> tuple[int, int]:
    """As `_plain`; each layer keeps its input, and its forward is walked again before its
    backward.
    """
    walk, ops, starts = _Walk(), found.tape.ops, found.starts
    passed = handed_on(found.tape.setup)
    walk.holders.update((id(table), 1) for table in found.tables)  # held from outside until the end
    walk.forward(ops[: starts[0]], keep=True)
    walk.live += passed + kept
    for x, start, stop in zip(found.inputs, starts, starts[1:]):
        walk.live += x.bytes
        walk.forward(ops[start:stop], keep=False)
    walk.forward(ops[starts[-1] :], keep=True)
    forward, walk.peak = walk.peak, 0
    walk.backward(ops[starts[-1] :])
    for number in reversed(range(len(found.inputs))):
        layer = ops[starts[number] : starts[number + 1]]
        if number + 1 == len(found.inputs) // 2:
            walk.live += gradients - kept
        if number or found.tape.setup.whole:
            # counted again where the layer keeps it; frozen token vectors are kept by no node
            walk.live -= found.inputs[number].bytes
        # what follows keeps nothing, so it goes back before anything is computed again
        again = max(i for i, op in enumerate(layer) if op.keeps) + 1
        walk.backward(layer[again:])
        walk.forward(layer[:again], keep=True)
        walk.backward(layer[:again])
    if len(found.inputs) == 1:
        walk.live += gradients - kept
    walk.live -= passed
    walk.backward(ops[: starts[0]])
    return forward, walk.peak


def leaf(setup: Setup) -> bool:
    """Whether token vectors are a leaf of the graph: transformers asks for their gradient, and both
    stay with the loss.
    """
    return setup.adapters and setup.input_grads


def left_over(setup: Setup) -> int:
    """What the loss still holds while the optimizer works."""
    return handed_on(setup) + (
        2 * setup.width * setup.tokens * setup.shape.hidden if leaf(setup) else 0
    )


def handed_on(setup: Setup) -> int:
    """What the closures of checkpointed layers hold until the loss is let go: rotary tables, and
    eager attention's mask.
    """
    if not setup.checkpointing:
        return 0
    own = setup.library == "minilora"
    tables = 0 if own and setup.width == 4 else 2 * setup.width * setup.seq * setup.shape.head_dim
    return tables + (
        setup.width * setup.tokens * setup.seq if setup.attention == "eager" and not own else 0
    )


def optimizer_temporary(setup: Setup) -> memory.Part:
    """What the optimizer's step makes beside averages that stay."""
    width, n = memory.trained_width(setup), setup.trainable
    if setup.optimizer == "adamw" and setup.foreach:
        return memory.Part(
            width * n,
            f"{width} B × {n:,} trained parameters",
            "√v̂ of all parameters at once (foreach AdamW)",
        )
    return memory.Part(0, "none", "one kernel updates each number where it stands")

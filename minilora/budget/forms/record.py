"""The tape of a whole training step, and where its layers begin."""

from __future__ import annotations

from dataclasses import dataclass

from ..setup import Setup
from .layers import embed, head, layer, tables
from .tape import Tape, Value, tape


@dataclass
class Record:
    """The tape of a whole step and where its parts begin: `starts[i]` is the first operation of
    layer i, then of the head.
    """

    tape: Tape
    inputs: list[Value]  # of each layer: what checkpointing keeps
    tables: tuple[Value, Value]
    starts: list[int]

    def sections(self) -> list[tuple[str, int, list[Value]]]:
        """(name, how often, what is kept there) for embedding, layers and head; equal layers
        together, tensors counted once.
        """
        t, seen, found = self.tape, set(), []
        bounds = [0, *self.starts, len(t.ops)]
        for number, (start, stop) in enumerate(zip(bounds, bounds[1:])):
            inside = 0 < number < len(bounds) - 2 and t.setup.checkpointing
            values = (
                [self.inputs[number - 1], *self._passed()]
                if inside
                else [v for op in t.ops[start:stop] for v in op.keeps]
            )
            new = [value for value in dict.fromkeys(values) if id(value) not in seen and value.size]
            seen.update(map(id, new))
            name = "embedding" if number == 0 else "head" if number == len(bounds) - 2 else "layer"
            found.append((name, 1, new))
        return found

    def _passed(self) -> list[Value]:
        """What a checkpointed layer of our Llama is handed beside its input; transformers hides it
        in a closure.
        """
        return (
            [table for table in self.tables if table.size]
            if self.tape.setup.library == "minilora"
            else []
        )


def record(setup: Setup, layers: int | None = None) -> Record:
    """The tape of a training step, with as many layers as asked for (all of them if None)."""
    t = tape(setup)
    x, both, inputs, starts = embed(t), tables(t), [], []
    for _ in range(setup.shape.layers if layers is None else layers):
        inputs.append(x)
        starts.append(len(t.ops))
        x = layer(t, x, both)
    starts.append(len(t.ops))
    head(t, x)
    return Record(t, inputs, both, starts)

"""A small language for an autograd graph on paper: tensors by their letters, operations by what
their backward pass needs.

How it works: every operation says of which sizes its result is and which tensors its backward pass
needs (`keeps`); a tensor is kept once, however many need it, and parameters do not count. N = batch
· seq tokens, h hidden, q and k the widths of queries and keys, f the MLP, a heads, d of which size,
V vocabulary, S the length of a row, r the rank, M the tokens whose loss counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..setup import Setup


@dataclass(eq=False)
class Value:
    """A tensor on paper. dims: letters whose sizes multiply ("N h"); width: bytes of an element."""

    dims: str
    size: int
    width: int
    grad: bool = False  # whether a gradient flows into it

    @property
    def bytes(self) -> int:
        return self.size * self.width


OUT = Value("", 0, 0)  # stands for an operation's own result among what it keeps


@dataclass(eq=False)
class Op:
    """One node of the backward pass: `inputs` get gradients, `keeps` are needed for them, `weights`
    are trained here (bytes of each gradient as it is made). temp: bytes that live inside the node
    only, `forward`: the same on the way there; shares: inputs get the incoming gradient itself.
    """

    inputs: tuple[Value, ...]
    out: Value
    keeps: tuple[Value, ...]
    weights: tuple[int, ...] = ()
    temp: int = 0
    shares: bool = False
    forward: int = 0


@dataclass
class Tape:
    """Operations in order, and what they keep, each tensor once."""

    setup: Setup
    sizes: dict[str, int]
    ops: list[Op] = field(default_factory=list)

    def value(self, dims: str, width: int, grad: bool = False) -> Value:
        size = 1
        for letter in dims.split():
            size *= self.sizes[letter] if letter in self.sizes else int(letter)
        return Value(dims, size, width, grad)

    def op(
        self,
        inputs,
        dims: str,
        width: int,
        keeps=(),
        weights=(),
        temp=0,
        shares=False,
        forward=0,
    ) -> Value:
        """Record an operation if a gradient flows through it; returns its result, for which OUT
        stands among `keeps`.
        """
        flows = tuple(x for x in inputs if x.grad)
        out = self.value(dims, width, bool(flows or weights))
        if out.grad:
            kept = tuple(out if value is OUT else value for value in keeps)
            self.ops.append(Op(flows, out, kept, tuple(weights), temp, shares, forward))
        return out

    def cast(self, x: Value, width: int) -> Value:
        """x in another type; x itself if it has that type."""
        return x if x.width == width else self.op([x], x.dims, width)

    def kept(self, start: int = 0) -> list[Value]:
        """What the operations from `start` on keep, in order, each once."""
        return list(dict.fromkeys(value for op in self.ops[start:] for value in op.keeps))


def tape(setup: Setup) -> Tape:
    """An empty tape with the sizes of a setup."""
    shape = setup.shape
    learned = setup.learned or (
        setup.batch * (setup.seq - 1) if setup.library == "minilora" else setup.tokens
    )
    return Tape(
        setup,
        {
            "N": setup.tokens,
            "h": shape.hidden,
            "f": shape.ffn,
            "q": shape.query,
            "k": shape.key,
            "a": shape.heads,
            "V": shape.vocab,
            "S": setup.seq,
            "d": shape.head_dim,
            "r": setup.rank,
            "M": learned,
        },
    )

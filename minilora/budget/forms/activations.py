"""What autograd keeps between forward and backward, operation by operation.

What it replaces: Megatron's s·b·h·(34 + 5·a·s/h) (Korthikanti et al. 2022), which counts a GPT with
dropout, not a Llama.
How it works: a `Tape` goes through the Llama on paper. Every operation says of which sizes its
result is and which tensors its backward pass needs; a tensor is kept once, however many need it,
and parameters do not count. With N = batch · seq tokens, h hidden, q and k the widths of queries
and keys, f the MLP, a heads, V vocabulary, one layer of transformers' Llama trained in 16 bits with
SDPA keeps, in bytes,

    20·N·h + 4·N·q + 4·N·k + 8·N·f + 4·N·a + 8·N        (queries as wide as the hidden vector:
    24·N·h + 4·N·k + …)

`kept(setup)` gives this sum for any setup, with a formula. The same tape, read backward, gives the
peak (`moments`).
What it leaves out: families other than Llama (`megatron` answers for them, roughly); dropout;
padded batches.
Where numerics differ: nowhere; equal to the storages that `saved_tensors_hooks` sees (see
tests/parity).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..catalog import Linear
from ..setup import Setup
from .memory import Part

# our frozen head makes so many rows of logits at a time (`headloss`)
HEAD_ROWS, HEAD_PORTION = 256, 1 << 20


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
        keep_out=False,
        weights=(),
        temp=0,
        shares=False,
        forward=0,
    ) -> Value:
        """Record an operation if a gradient flows through it; returns its result."""
        flows = tuple(x for x in inputs if x.grad)
        out = self.value(dims, width, bool(flows or weights))
        if out.grad:
            kept = (*keeps, out) if keep_out else tuple(keeps)
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


# ----------------------------------------------------------------------------- the parts of a layer


def norm(t: Tape, x: Value) -> Value:
    """RMSNorm. Trained: x in fp32, 1/rms and the normalized x; frozen in our Llama: x and 1/rms."""
    setup, wide = t.setup, x.bytes * 4 // x.width
    own = setup.library == "minilora"
    if own and not setup.whole:
        r = t.value("N", 4)
        return t.op([x], x.dims, x.width, [x, r], temp=(2 if x.width == 4 else 4) * wide)
    if own and x.width == 4 and setup.device == "cuda":  # one fused kernel
        return t.op(
            [x], x.dims, 4, [x, t.value("N", 4)], weights=[4 * setup.shape.hidden] * setup.whole
        )
    x32 = t.cast(x, 4)
    square = t.op([x32], x.dims, 4, [x32], temp=2 * wide)
    mean = t.op([square], "N", 4)
    r = t.op([mean], "N", 4, keep_out=True)
    n = t.cast(t.op([x32, r], x.dims, 4, [x32, r], temp=wide), x.width)
    weights = [x.width * setup.shape.hidden] * setup.whole
    return t.op(
        [n],
        x.dims,
        x.width,
        [n] if setup.whole else [],
        weights=weights,
        temp=n.bytes if setup.whole else 0,
    )


def linear(t: Tape, x: Value, each: Linear, rows: str, sides: tuple[str, str]) -> Value:
    """A linear layer with or without an adapter. rows: "N"; sides: the letters of its input and
    output.
    """
    setup = t.setup
    adapted = setup.adapters and each.name in setup.targets
    if (
        adapted
        and setup.detour == "fused"
        and (setup.base == "4bit" or (setup.base == "dense" and not setup.autocast))
    ):
        return _fused(t, x, each, rows, sides)
    y = _plain(t, x, each, rows, sides)
    return _detour(t, x, y, each, rows, sides) if adapted else y


def _plain(t: Tape, x: Value, each: Linear, rows: str, sides: tuple[str, str]) -> Value:
    """x Wᵀ + b. Trained: keeps x. Frozen: keeps only what is no parameter, a 16-bit copy of W under
    autocast.
    """
    setup, c = t.setup, t.setup.product
    dims, size = f"{rows} {sides[1]}", each.size
    if setup.base != "dense" and each.name != "lm_head":
        # int8: casts inside its own function
        packed = x if setup.base == "int8" and setup.autocast else t.cast(x, c)
        decoded = size * (packed.width if setup.base == "int8" else c)
        return t.op([packed], dims, c, temp=decoded, forward=decoded)
    x = t.cast(x, c)
    if not setup.whole:
        copy = [t.value(f"{sides[0]} {sides[1]}", c)] if setup.autocast and x.grad else []
        return t.op([x], dims, c, copy)
    bias = [setup.width * each.outputs] if each.bias else []
    if setup.autocast:  # ∂L/∂W comes in 16 bits and is cast when the product's backward is over
        copy = t.op([], f"{sides[0]} {sides[1]}", c, weights=[setup.width * size])
        return t.op([x, copy], dims, c, [x, copy], weights=bias)
    return t.op([x], dims, c, [x], weights=[setup.width * size, *bias])


def _fused(t: Tape, x: Value, each: Linear, rows: str, sides: tuple[str, str]) -> Value:
    """W and adapter in one node (`lora.fused`, `qlora`): keeps x and x Aᵀ; over 4 bits also A and B
    where they were cast.
    """
    setup, c, r = t.setup, t.setup.product, t.setup.rank
    packed = setup.base == "4bit"
    x = t.cast(x, c)
    low = t.value(f"{rows} r", c)
    casts = [t.value(f"r {side}", c) for side in sides] if c != 4 else []
    trained = [4 * r * each.inputs, 4 * r * each.outputs]
    decoded = c * each.size if packed else 0
    temp = low.bytes + sum(cast.bytes for cast in casts) + decoded
    return t.op(
        [x],
        f"{rows} {sides[1]}",
        c,
        [x, low, *(casts if packed else [])],
        weights=trained,
        temp=temp,
        forward=decoded,
    )


def _detour(t: Tape, x: Value, y: Value, each: Linear, rows: str, sides: tuple[str, str]) -> Value:
    """y + ((x Aᵀ) Bᵀ) · s as autograd records it: x in fp32, or under autocast cast there and back,
    a copy for each layer.

    7B over 4 bits, rank 8 on queries and values, B = 1, S = 512: 6.34 GiB; `_fused` 5.97. Were both
    given one copy of x in fp32, as by norms that PEFT's prepare_model_for_kbit_training keeps in
    fp32, one vector N·h in 16 bits more than `_fused` in each layer: 6.09 (tests/parity).
    """
    setup, c, r = t.setup, t.setup.product, t.setup.rank
    inner = c if setup.autocast else 4
    x = t.cast(t.cast(x, 4), inner)
    casts = [t.value(f"r {side}", c) for side in sides] if setup.autocast else [None, None]
    down = [casts[0]] if casts[0] and x.grad else []
    low = t.op([x], f"{rows} r", inner, [x, *down], weights=[4 * r * each.inputs])
    up = t.op(
        [low],
        f"{rows} {sides[1]}",
        inner,
        [low] + [casts[1]] * setup.autocast,
        weights=[4 * r * each.outputs],
    )
    scaled = t.op([up], up.dims, inner)
    return t.cast(t.op([y, scaled], up.dims, max(inner, y.width), shares=True), y.width)


def rotate(t: Tape, x: Value, tables: tuple[Value, Value]) -> Value:
    """Rotary positions: the tables are kept, once for all layers; transformers' chain makes fp32 of
    x under autocast.
    """
    if t.setup.library == "minilora":
        return t.op([x], x.dims, x.width, [table for table in tables if table.size])
    wide = tables[0].width
    turned = t.op([x], x.dims, wide, tables[:1])
    swapped = t.op([x], x.dims, x.width, temp=3 * x.bytes)
    other = t.op([swapped], x.dims, wide, tables[1:])
    return t.op([turned, other], x.dims, wide, shares=True)


def attend(t: Tape, q: Value, k: Value, v: Value) -> Value:
    """softmax(q kᵀ/√d) v. SDPA keeps its inputs, its output and one fp32 number for each token and
    head; eager the scores, too.
    """
    setup, c = t.setup, t.setup.product
    if setup.attention == "sdpa":
        q, k, v = (t.cast(x, c) for x in (q, k, v))
        return t.op([q, k, v], "N q", c, [q, k, v, t.value("N a", 4)], keep_out=True)
    handed = q.bytes + k.bytes + v.bytes  # the caller's, beside the copies that are multiplied
    q, k, v = t.cast(q, c), _repeated(t, k), _repeated(t, v)
    scores = t.op([q, k], "N a S", c, [q] * k.grad + [k] * q.grad)
    mask = [t.value("S S", 1)] if setup.library == "minilora" else []
    # scaled, then masked
    scores = t.op([t.op([scores], "N a S", c)], "N a S", c, mask, shares=True)
    # scores live as long as their name does
    named = scores.bytes if setup.library == "minilora" or c != 4 else 0
    chances = t.op([t.cast(scores, 4)], "N a S", 4, keep_out=True, forward=named + handed)
    chances = t.cast(t.cast(chances, setup.width), c)
    y = t.op([chances, v], "N q", c, [chances] * v.grad + [v] * chances.grad)
    return t.op([y], "N q", c)  # heads side by side again: a copy


def _repeated(t: Tape, x: Value) -> Value:
    """Keys or values once for each query head, in the type of products."""
    setup, c = t.setup, t.setup.product
    shape = setup.shape
    if shape.heads == shape.kv_heads:
        return t.cast(x, c)
    # One key head of one row transformers reads again and again where it stands, unless a cast
    # copies it.
    stays = (shape.kv_heads, setup.batch) == (1, 1) and setup.library == "transformers"
    return x if stays and x.width == c else t.cast(t.op([x], "N q", x.width), c)


def mlp(t: Tape, x: Value) -> Value:
    """down(silu(gate x) · up x): transformers keeps gate, silu(gate), which it makes before up, and
    up; our Llama gate and up.
    """
    named = {each.name: each for each in t.setup.shape.linears()}
    own = t.setup.library == "minilora"
    a = linear(t, x, named["gate_proj"], "N", ("h", "f"))
    s = a if own else t.op([a], "N f", a.width, [a])
    b = linear(t, x, named["up_proj"], "N", ("h", "f"))
    if own:
        # g · b is gone when ∂L/∂b is made
        y = t.op([a, b], "N f", a.width, [a, b], temp=0 if b.grad else a.bytes)
    else:
        y = t.op([s, b], "N f", a.width, [s] * b.grad + [b] * s.grad)
    return linear(t, y, named["down_proj"], "N", ("f", "h"))


def layer(t: Tape, x: Value, tables: tuple[Value, Value]) -> Value:
    """One block: x (N, h) → (N, h)."""
    named = {each.name: each for each in t.setup.shape.linears()}
    n = norm(t, x)
    q, k, v = (
        linear(t, n, named[f"{side}_proj"], "N", ("h", "q" if side == "q" else "k"))
        for side in "qkv"
    )
    y = attend(t, rotate(t, q, tables), rotate(t, k, tables), v)
    y = linear(t, y, named["o_proj"], "N", ("q", "h"))
    x = t.op([x, y], "N h", x.width, shares=True)
    y = mlp(t, norm(t, x))
    return t.op([x, y], "N h", x.width, shares=True)


def embed(t: Tape) -> Value:
    """Token vectors; training the table keeps the ids. A tied table has a gradient from the head
    already: both and their sum.
    """
    setup = t.setup
    if not setup.whole:
        return t.value("N h", setup.width, setup.input_grads)
    table = setup.width * setup.shape.table
    weights, temp = ([0], 2 * table) if setup.shape.tied else ([table], 0)
    return t.op([], "N h", setup.width, [t.value("N", 8)], weights=weights, temp=temp)


def head(t: Tape, x: Value) -> Value:
    """Last norm, output head and cross-entropy, which keeps log-softmax in fp32; our frozen head
    keeps ∂L/∂x alone.
    """
    setup = t.setup
    x, rows = norm(t, x), "N"
    if setup.library == "minilora":
        rows = "M"
        x = t.op(
            [x], "M h", x.width, [t.value(f"{setup.batch} {setup.seq - 1}", 1)], temp=2 * x.bytes
        )
        if not setup.whole:
            return t.op([x], "1", 4, [t.value("M h", x.width)], forward=_portions(t))
    each = Linear("lm_head", setup.shape.hidden, setup.shape.vocab, False, 1)
    given = _plain(t, x, each, rows, ("h", "V"))
    logits = t.cast(given, 4)
    chances = t.op(
        [logits], f"{rows} V", 4, keep_out=True, forward=given.bytes if logits is not given else 0
    )
    return t.op([chances], "1", 4, [chances, t.value(rows, 8), t.value("1", 4)])


def _portions(t: Tape) -> int:
    """Bytes that pass through our frozen head: two portions of logits in turn, and under autocast
    the head in 16 bits.
    """
    setup, vocab, c = t.setup, t.setup.shape.vocab, t.setup.product
    rows = min(t.sizes["M"], max(HEAD_ROWS, HEAD_PORTION // vocab))
    second = min(rows, t.sizes["M"] - rows)  # made while the first, in fp32, still stands
    copy = c if c != 4 else 0
    logits = max(rows * (4 + copy), rows * 4 + second * (4 + copy)) * vocab
    return logits + (c * setup.shape.table if setup.autocast else 0)


def tables(t: Tape) -> tuple[Value, Value]:
    """cos and sin. Our Llama's own fp32 tables are buffers of the model and do not count (size
    0).
    """
    setup = t.setup
    counts = setup.library == "transformers" or setup.width != 4
    return tuple(t.value("S d" if counts else "0", setup.width) for _ in range(2))


# ---------------------------------------------------------------------------------- the whole model


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


def _counted(found: Record, layers: int) -> list[tuple[str, int, list[Value]]]:
    """(label, how often, what is kept): layers after the second keep what the second keeps."""
    labelled = []
    for number, (name, _, values) in enumerate(found.sections()):
        times = layers - 2 if name == "layer" and number == 3 else 1
        label = name if name != "layer" else f"layer {number}" if times == 1 else f"{times} × layer"
        labelled += [(label, times, values)] if values else []
    return labelled


def kept(setup: Setup) -> Part:
    """The bytes that autograd keeps from forward to backward, with the sum by sizes in the formula.

    16-bit copies of weights under autocast are among them (`copies` counts them alone).
    """
    if setup.shape.family != "llama":
        return megatron(setup)
    found = record(setup, min(setup.shape.layers, 3))
    counted = _counted(found, setup.shape.layers)
    total = sum(times * value.bytes for _, times, values in counted for value in values)
    letters = {
        letter for _, _, values in counted for value in values for letter in value.dims.split()
    }
    sizes = ", ".join(
        f"{letter} = {size}" for letter, size in found.tape.sizes.items() if letter in letters
    )
    terms = "; ".join(f"{label}: {formula(values)}" for label, _, values in counted)
    return Part(total, f"{terms}, where {sizes}", "what backward needs from forward")


def copies(setup: Setup) -> Part:
    """Of what is kept: weights in 16 bits, which autocast casts anew for every step."""
    c = setup.product
    if not setup.autocast or setup.shape.family != "llama":
        return Part(0, "none", "no autocast, no copies")
    counted = _counted(record(setup, min(setup.shape.layers, 3)), setup.shape.layers)
    size = sum(
        times * value.bytes
        for _, times, values in counted
        for value in values
        if not set(value.dims.split()) & {"N", "M", "S", "1"}
    )
    return Part(
        size,
        f"{c} B × {size // c:,} weights in products",
        "weights in 16 bits, from forward to backward",
    )


def megatron(setup: Setup) -> Part:
    """A rule of thumb for other families: 34·h bytes a token and layer in 16 bits, and 5·a·S where
    scores are written out.

    Korthikanti et al. 2022, arXiv:2205.05198, equation 1: a GPT with dropout. Checkpointed: 2·h a
    token and layer, and one whole layer.
    """
    shape, n = setup.shape, setup.tokens
    layers = shape.layers * (2 if shape.family == "mt5" else 1)
    layer = (
        n
        * (34 * shape.hidden + (5 * shape.heads * setup.seq if setup.attention == "eager" else 0))
        * setup.product
        // 2
    )
    total = layers * 2 * n * shape.hidden + layer if setup.checkpointing else layers * layer
    scores = 4 * n * shape.vocab
    return Part(
        total + scores,
        f"{total:,} B in {layers} layers by s·b·h·(34 + 5·a·s/h), + 4 B × {n} × {shape.vocab} "
        "log-softmax",
        "a rule of thumb",
    )


def formula(values: list[Value]) -> str:
    """Coefficient by sizes: "24·N·h + 8·N·f"; integers are spelled out as they are."""
    sums: dict[str, int] = {}
    for value in values:
        sums[value.dims] = sums.get(value.dims, 0) + value.width
    return " + ".join(f"{width}·{dims.replace(' ', '·')}" for dims, width in sums.items())

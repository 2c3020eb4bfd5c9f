"""A Llama's layers on the tape: norm, linear layers and their adapters, attention, MLP, head.

How it works: each function follows the forward pass of our Llama or of transformers', as the setup
says, and names what its operations keep.
What it leaves out: families other than Llama; dropout; padded batches.
Where numerics differ: the sums are equal to the storages that `saved_tensors_hooks` sees.
"""

from __future__ import annotations

from ...llama.config import HEAD_PORTION, HEAD_ROWS
from ..shapes import Linear
from .tape import OUT, Tape, Value


def norm(t: Tape, x: Value, rows: str = "N", size: int = 0) -> Value:
    """RMSNorm over `rows` of `size` numbers (0: the hidden size). Trained: x in fp32, 1/rms and the
    normalized x; frozen in our Llama: x and 1/rms.
    """
    setup, wide = t.setup, x.bytes * 4 // x.width
    size = size or setup.shape.hidden
    own = setup.library == "minilora"
    if own and not setup.whole:
        r = t.value(rows, 4)
        return t.op([x], x.dims, x.width, [x, r], temp=(2 if x.width == 4 else 4) * wide)
    if own and x.width == 4 and setup.device == "cuda":  # one fused kernel
        return t.op([x], x.dims, 4, [x, t.value(rows, 4)], weights=[4 * size] * setup.whole)
    x32 = t.cast(x, 4)
    square = t.op([x32], x.dims, 4, [x32], temp=2 * wide)
    mean = t.op([square], rows, 4)
    r = t.op([mean], rows, 4, [OUT])
    n = t.cast(t.op([x32, r], x.dims, 4, [x32, r], temp=wide), x.width)
    weights = [x.width * size] * setup.whole
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
    """W and adapter in one node (`lora.fused`): keeps x and x Aᵀ; over 4 bits also A and B
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
    fp32, one vector N·h in 16 bits more than `_fused` in each layer: 6.09.
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
        return t.op([q, k, v], "N q", c, [q, k, v, t.value("N a", 4), OUT])
    handed = q.bytes + k.bytes + v.bytes  # the caller's, beside the copies that are multiplied
    q, k, v = t.cast(q, c), _repeated(t, k), _repeated(t, v)
    scores = t.op([q, k], "N a S", c, [q] * k.grad + [k] * q.grad)
    mask = [t.value("S S", 1)] if setup.library == "minilora" else []
    # scaled, then masked
    scores = t.op([t.op([scores], "N a S", c)], "N a S", c, mask, shares=True)
    # scores live as long as their name does
    named = scores.bytes if setup.library == "minilora" or c != 4 else 0
    chances = t.op([t.cast(scores, 4)], "N a S", 4, [OUT], forward=named + handed)
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
    shape = t.setup.shape
    if shape.qk_norm:
        q = norm(t, q, "N a", shape.head_dim)
        k = norm(t, k, f"N {shape.kv_heads}", shape.head_dim)
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
        [logits], f"{rows} V", 4, [OUT], forward=given.bytes if logits is not given else 0
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

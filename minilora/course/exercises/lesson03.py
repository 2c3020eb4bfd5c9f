"""The exercises of lesson 03: count, compute, step, bound, store.

What it replaces: rules of thumb that are right by a factor of two.
How it works: see `course.exercises`. No wrong answer can hide: heads differ from key/value heads,
heads times head size from the hidden width, the last batch of an epoch is never full, and
operations lie on both sides of the ridge.
What it leaves out: biases, learned positions, mixtures of experts; activations, which depend on the
batch.
Where numerics differ: whole numbers must be equal; times and rates agree within the tolerance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from . import Exercise, Wrong

# -------------------------------------------------------------------------------------------- count


class Shape(NamedTuple):
    """A Llama as the learner gets it: widths, counts, and whether its head is the token table."""

    h: int
    f: int
    layers: int
    heads: int
    kv: int
    size: int
    V: int
    tied: bool


def _shape(rng):
    groups, kv, size = int(rng.integers(2, 5)), int(rng.integers(2, 5)), 2 * int(rng.integers(4, 9))
    heads = groups * kv
    hidden = heads * size + int(rng.integers(1, 9))  # not heads · size, as in some published models
    return Shape(
        hidden,
        int(rng.integers(3, 6)) * hidden,
        int(rng.integers(2, 7)),
        heads,
        kv,
        size,
        int(rng.integers(100, 900)),
        bool(rng.integers(2)),
    )


def _count(
    shape,
    *,
    query=lambda s: s.heads * s.size,
    key=lambda s: s.kv * s.size,
    mlp=3,
    norms=2,
    last=1,
    tables=lambda s: 1 if s.tied else 2,
):
    """The reference, and by its switches the ways to get it wrong."""
    s = Shape(*shape)
    layer = 2 * s.h * query(s) + 2 * s.h * key(s) + mlp * s.h * s.f + norms * s.h
    return s.layers * layer + last * s.h + s.V * s.h * tables(s)


def _both(rng):
    """Every case must show a tied and an untied table, so the inputs are a list of shapes."""
    return ([(*_shape(rng)[:-1], tied) for tied in (True, False)],)


def _each(answer, shapes):
    return [int(answer(*shape)) for shape in shapes]


COUNT = Exercise(
    "03-count",
    "Every parameter of a Llama",
    _both,
    lambda *s: _count(s),
    [
        Wrong(
            "keys and values as wide as queries",
            lambda *s: _count(s, key=lambda s: s.heads * s.size),
            "keys and values have only kv_heads heads; their matrices are h × (kv_heads · "
            "head_dim)",
        ),
        Wrong(
            "square attention",
            lambda *s: _count(s, query=lambda s: s.h),
            "the query matrix is h × (heads · head_dim), which need not be h × h",
        ),
        Wrong(
            "two matrices in the MLP",
            lambda *s: _count(s, mlp=2),
            "a Llama's MLP has three matrices: gate, up and down",
        ),
        Wrong(
            "the norms forgotten",
            lambda *s: _count(s, norms=0, last=0),
            "each layer has two norms of h numbers, and one more stands before the head",
        ),
        Wrong(
            "the last norm forgotten",
            lambda *s: _count(s, last=0),
            "you have the two norms of each layer; one more of h numbers stands before the head",
        ),
        Wrong(
            "a tied head counted twice",
            lambda *s: _count(s, tables=lambda s: 2),
            "a tied head *is* the token table, so the V · h numbers count once",
        ),
        Wrong(
            "the head forgotten",
            lambda *s: _count(s, tables=lambda s: 1),
            "an untied head has V · h numbers of its own, beside the token table",
        ),
        Wrong(
            "four square matrices of attention",
            lambda *s: _count(s, query=lambda s: s.h, key=lambda s: s.h),
            "query and output hold h · (heads · d) numbers, key and value only h · (kv_heads "
            "· d); none need be h × h",
        ),
        Wrong(
            "keys and values share a matrix",
            lambda *s: _count(s, key=lambda s: s.kv * s.size / 2),
            "key and value have a matrix each, of h · (kv_heads · d) numbers",
        ),
        Wrong(
            "tied and untied exchanged",
            lambda *s: _count(s, tables=lambda s: 2 if s.tied else 1),
            "tied means that the head is the token table, V · h numbers once; an untied head "
            "is a second table",
        ),
    ],
    run=_each,
)


# ------------------------------------------------------------------------------------------ compute


def _work(rng):
    return (
        int(rng.integers(10**6, 10**8)),
        int(rng.integers(4, 40)),
        int(rng.integers(256, 2048)),
        int(rng.integers(2, 9)),
        int(rng.integers(300, 3000)),
    )


def _operations(N, layers, width, batch, T, *, product=2, back=2, attention=4):
    """Forward and backward of one step. `back`: the backward pass in forward passes."""
    tokens = batch * T
    forward = product * N * tokens + attention * tokens * T * width * layers
    return forward, back * forward


def _two(answer, *inputs):
    found = answer(*inputs)
    return [float(x) for x in found] if hasattr(found, "__iter__") else found


OPERATIONS = Exercise(
    "03-flops",
    "Operations of a training step",
    _work,
    _operations,
    [
        Wrong(
            "a multiplication and an addition counted as one",
            lambda *s: _operations(*s, product=1, attention=2),
            "each number of a product costs a multiplication *and* an addition: 2 operations",
        ),
        Wrong(
            "attention forgotten",
            lambda *s: _operations(*s, attention=0),
            "scores and weighted sums have no weights, but they are products: 2 · T² · width "
            "each, for each row and layer",
        ),
        Wrong(
            "only one product of attention",
            lambda *s: _operations(*s, attention=2),
            "attention multiplies twice: queries by keys, and the shares by the values",
        ),
        Wrong(
            "backward as dear as forward",
            lambda *s: _operations(*s, back=1),
            "each product needs two in the backward pass: one for ∂L/∂W, one for ∂L/∂x",
        ),
        Wrong(
            "forward counted into backward",
            lambda *s: _operations(*s, back=3),
            "3 forward passes are the whole step; the backward pass alone is 2",
        ),
        Wrong(
            "one row's attention",
            lambda N, layers, width, batch, T: [
                n * (2 * N * batch * T + 4 * T * T * width * layers) for n in (1, 2)
            ],
            "each of the batch's rows has its own T × T scores",
        ),
        Wrong(
            "one layer's attention",
            lambda N, layers, width, batch, T: _operations(N, 1, width, batch, T),
            "every layer has its own attention: 4 · T · width for each token and layer",
        ),
        Wrong(
            "one token's attention",
            lambda N, layers, width, batch, T: [
                n * (2 * N * batch * T + 4 * T * width * layers) for n in (1, 2)
            ],
            "4 · T · width is what one token costs in a layer, and there are batch · T tokens",
        ),
        Wrong(
            "the whole step as one number",
            lambda *s: sum(_operations(*s)),
            "return two numbers, (forward, backward), not their sum",
        ),
    ],
    run=_two,
)


# --------------------------------------------------------------------------------------------- step


def _run_of(rng):
    batch = int(rng.integers(8, 33))
    return (
        batch * int(rng.integers(20, 400)) + int(rng.integers(2, batch // 2)),
        batch,
        int(rng.integers(3, 6)),
        int(rng.integers(1, 90)) * 10**8,
    )


def _updates(examples, batch, epochs, parameters):
    steps = math.ceil(examples / batch) * epochs
    return steps, steps * parameters


STEPS = Exercise(
    "03-steps",
    "Steps and updates of a run",
    _run_of,
    _updates,
    [
        Wrong(
            "the last batch dropped",
            lambda n, b, e, p: (n // b * e, n // b * e * p),
            "the rows left over at the end of an epoch make a smaller batch; round up",
        ),
        Wrong(
            "one epoch",
            lambda n, b, e, p: (math.ceil(n / b), math.ceil(n / b) * p),
            "each epoch goes through all examples again",
        ),
        Wrong(
            "a step for each example",
            lambda n, b, e, p: (n * e, n * e * p),
            "a step takes a whole batch, whose gradients are averaged",
        ),
        Wrong(
            "epochs that run into each other",
            lambda n, b, e, p: (math.ceil(n * e / b), math.ceil(n * e / b) * p),
            "each epoch ends with a batch of its own that is not full, so round up before you "
            "multiply by the epochs",
        ),
        Wrong(
            "the parameters once",
            lambda n, b, e, p: (math.ceil(n / b) * e, p),
            "every step updates every parameter: steps × parameters",
        ),
        Wrong(
            "not rounded",
            lambda n, b, e, p: (n / b * e, n / b * e * p),
            "a batch that is not full is a whole step, too: round examples / batch up, once "
            "for each epoch",
        ),
    ],
    run=lambda answer, *inputs: [int(x) for x in answer(*inputs)],
)


# -------------------------------------------------------------------------------------------- bound


def _machines(rng):
    rate, bandwidth = float(rng.uniform(1e11, 1e15)), float(rng.uniform(1e10, 4e12))
    ridge = rate / bandwidth
    moved = float(rng.uniform(1e6, 1e9))
    return ([(moved * ridge * share, moved, rate, bandwidth) for share in (0.02, 0.5, 2.5, 40.0)],)


def _seconds(operations, moved, rate, bandwidth):
    return max(operations / rate, moved / bandwidth)


BOUND = Exercise(
    "03-roofline",
    "The least time of an operation",
    _machines,
    _seconds,
    [
        Wrong(
            "the processor alone",
            lambda n, m, rate, b: n / rate,
            "below the ridge the numbers arrive too slowly; the time is then bytes / bandwidth",
        ),
        Wrong(
            "the memory alone",
            lambda n, m, rate, b: m / b,
            "above the ridge the processor is the slow one; the time is then operations / rate",
        ),
        Wrong(
            "one after the other",
            lambda n, m, rate, b: n / rate + m / b,
            "reading and computing go on at the same time, so the longer of the two decides, "
            "not their sum",
        ),
        Wrong(
            "the shorter of the two",
            lambda n, m, rate, b: min(n / rate, m / b),
            "both must be finished, so take the longer time, not the shorter",
        ),
        Wrong(
            "a rate instead of a time",
            lambda n, m, rate, b: min(rate, n / m * b),
            "that is the roof, in operations a second; the time is operations divided by it",
        ),
    ],
    run=lambda answer, rows: [float(answer(*row)) for row in rows],
    tolerance=1e-9,
)


# -------------------------------------------------------------------------------------------- store


def _stored(rng):
    sizes = rng.integers(1, 90, size=3) * 10**9
    return (
        [
            (int(sizes[0]), 4, False, 2),
            (int(sizes[1]), 2, True, 2),
            (int(sizes[2]), 2, False, 1),
            (int(sizes[0]), 2, True, 0),
        ],
    )


def _state(parameters, width, master, moments, *, gradient=True, moment=4, copy=4):
    return parameters * (width + width * gradient + copy * master + moment * moments)


STORE = Exercise(
    "03-state",
    "What a parameter drags along",
    _stored,
    _state,
    [
        Wrong(
            "gradients forgotten",
            lambda *s: _state(*s, gradient=False),
            "each parameter has a gradient of the same width",
        ),
        Wrong(
            "averages as narrow as the weights",
            lambda n, width, master, moments: _state(n, width, master, moments, moment=width),
            "here the optimizer's averages are kept in fp32, 4 bytes each, whatever the "
            "weights are",
        ),
        Wrong(
            "the fp32 copy forgotten",
            lambda *s: _state(*s, copy=0),
            "with a master copy each parameter has 4 bytes more, in which small updates add up",
        ),
        Wrong(
            "one average at most",
            lambda n, width, master, moments: _state(n, width, master, min(moments, 1)),
            "Adam keeps two averages: of the gradient and of its square",
        ),
        Wrong(
            "bits",
            lambda *s: 8 * _state(*s),
            "that is eight times too much: the widths are already in bytes",
        ),
        Wrong(
            "averages counted, not weighed",
            lambda *s: _state(*s, moment=1),
            "each average is an fp32 number of 4 bytes for every parameter",
        ),
        Wrong(
            "gradients in fp32",
            lambda n, width, master, moments: n * (width + 4 + 4 * master + 4 * moments),
            "here gradients are as wide as the weights: 2 bytes if the weights have 2",
        ),
    ],
    run=lambda answer, rows: [float(answer(*row)) for row in rows],
)


EXERCISES = [COUNT, OPERATIONS, BOUND, STEPS, STORE]

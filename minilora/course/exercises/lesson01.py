"""The exercises of lesson 01: walk downhill, send slopes backward, make batches, find the limit,
write AdamW.

What it replaces: reading torch's source to find out whether one has understood `backward` and
`step`.
How it works: see `course.exercises`. No wrong answer can hide: values are used more than once,
the last batch is short, points are not shuffled in their order, the second derivative is not
diagonal, Adam's averages have a history.
What it leaves out: whole engines; `minilora.autograd` and `minilora.train.optim` are the finished
code.
Where numerics differ: nowhere; any order of addition is right within the tolerance.
"""

from __future__ import annotations

import numpy as np

from . import Exercise, Wrong

# ------------------------------------------------------------------------------------------ descend


def _valley(rng):
    """A slope that changes along the way: L = a/2 (p − c)², so L' = a (p − c)."""
    a, c = rng.uniform(0.5, 2.0), rng.uniform(-2.0, 2.0)
    return (lambda p: a * (p - c)), float(c + rng.uniform(1, 3)), 0.3, 5


def _descend(slope, start, rate, steps, *, sign=-1, fresh=True, scale=True):
    """The reference, and by its switches the ways to get it wrong."""
    path, first = [start], slope(start)
    for _ in range(steps):
        path.append(
            path[-1] + sign * (rate if scale else 1.0) * (slope(path[-1]) if fresh else first)
        )
    return path


DESCEND = Exercise(
    "01-descend",
    "A walk downhill",
    _valley,
    _descend,
    [
        Wrong(
            "uphill",
            lambda *a: _descend(*a, sign=1),
            "you add α · slope and walk uphill; the rule subtracts it",
        ),
        Wrong(
            "the slope of the start only",
            lambda *a: _descend(*a, fresh=False),
            "you use the slope at the start in every step; ask for it again wherever you stand now",
        ),
        Wrong(
            "the rate forgotten",
            lambda *a: _descend(*a, scale=False),
            "you subtract the slope itself; multiply it by the rate",
        ),
        Wrong(
            "the start left out",
            lambda *a: _descend(*a)[1:],
            "the path begins with the start, so it holds steps + 1 positions",
        ),
        Wrong(
            "only the end",
            lambda *a: _descend(*a)[-1],
            "this is where the walk ends; return a list of all positions, the start first",
        ),
    ],
)


# -------------------------------------------------------------------------------------------- sweep


def _tape(rng):
    """Ten values in the order they were made; value 3 is used three times, twice by the same value,
    and one not at all by the last.
    """
    s = rng.uniform(0.5, 2.0, size=20) * rng.choice([-1, 1], size=20)
    return (
        [
            [],
            [],
            [(0, s[0]), (1, s[1])],
            [(2, s[2])],
            [(3, s[3]), (3, s[4])],
            [(1, s[5]), (3, s[6])],
            [(0, s[7])],
            [(4, s[8]), (5, s[9])],
            [(2, s[10]), (7, s[11])],
        ],
    )


def _sweep(tape, *, add=True, chain=True, seed=1.0, begin=0.0):
    """The reference, and by its switches the ways to get it wrong."""
    slopes = [begin] * len(tape)
    slopes[-1] = seed
    for i in reversed(range(len(tape))):
        for j, local in tape[i]:
            part = local * slopes[i] if chain else local
            slopes[j] = slopes[j] + part if add else part
    return slopes


def _forwards(tape):
    slopes = [0.0] * len(tape)
    slopes[-1] = 1.0
    for i in range(len(tape)):
        for j, local in tape[i]:
            slopes[j] += local * slopes[i]
    return slopes


def _upwards(tape):
    slopes = [0.0] * len(tape)
    slopes[-1] = 1.0
    for i in reversed(range(len(tape))):
        for j, local in tape[i]:
            slopes[i] += local * slopes[j]
    return slopes


SWEEP = Exercise(
    "01-sweep",
    "Slopes from the last value to the first",
    _tape,
    _sweep,
    [
        Wrong(
            "the last use wins",
            lambda tape: _sweep(tape, add=False),
            "a value that is used twice gets two contributions; you overwrite the first one "
            "where you should add (+=)",
        ),
        Wrong(
            "no chain rule",
            lambda tape: _sweep(tape, chain=False),
            "you add up local slopes; multiply each by the slope of the value it leads to",
        ),
        Wrong(
            "from front to back",
            _forwards,
            "you walk from the first value to the last, where nothing has arrived yet; begin "
            "at the end",
        ),
        Wrong(
            "a start of zero",
            lambda tape: _sweep(tape, seed=0.0),
            "all is zero, because the last value's slope is; d last / d last is 1",
        ),
        Wrong(
            "all begin at one",
            lambda tape: _sweep(tape, begin=1.0),
            "only the last value begins with slope 1; all others begin at 0 and wait for what "
            "is handed on to them",
        ),
        Wrong(
            "the wrong way along a step",
            _upwards,
            "you hand on from the inputs j to value i; going backward value i hands on to its "
            "inputs: slopes[j] grows by slope · slopes[i]",
        ),
    ],
)


# ------------------------------------------------------------------------------------------ batches


def _shuffled(rng):
    n = int(rng.integers(20, 30))
    # a short batch at the end; and not as many batches as points in one
    size = next(s for s in (7, 6, 5) if n % s and n // s != s)
    return [int(i) for i in rng.permutation(n)], size


def _batches(order, size):
    return [list(order[i : i + size]) for i in range(0, len(order), size)]


BATCHES = Exercise(
    "01-batches",
    "One round through the data",
    _shuffled,
    _batches,
    [
        Wrong(
            "the short batch dropped",
            lambda order, size: [b for b in _batches(order, size) if len(b) == size],
            "the points of the last, short batch are never used; a short batch is better than "
            "a lost one",
        ),
        Wrong(
            "not shuffled",
            lambda order, size: _batches(range(len(order)), size),
            "you count 0, 1, 2, …; take the points in the order that is given",
        ),
        Wrong(
            "size taken as a count",
            lambda order, size: [[int(i) for i in part] for part in np.array_split(order, size)],
            "you make `size` batches; `size` is how many points one batch holds",
        ),
        Wrong(
            "overlapping",
            lambda order, size: [list(order[i : i + size]) for i in range(len(order) - size + 1)],
            "your batches overlap, so a point is used several times in a round; jump by "
            "`size`, not by 1",
        ),
        Wrong(
            "every so-many-th point",
            lambda order, size: [
                list(order[i :: -(-len(order) // size)]) for i in range(-(-len(order) // size))
            ],
            "order[i::k] picks every k-th point; a batch takes the next `size` points",
        ),
    ],
)


# -------------------------------------------------------------------------------------------- limit


def _points(rng):
    n, k = int(rng.integers(12, 20)), 3
    return (rng.normal(size=(n, k)) @ rng.normal(size=(k, k)) + rng.normal(size=k),)


def _limit(X, *, top=2.0, factor=2.0, pick=max):
    """The reference, and by its switches the ways to get it wrong."""
    return float(top / pick(np.linalg.eigvalsh(factor / len(X) * X.T @ X)))


LIMIT = Exercise(
    "01-limit",
    "The largest learning rate",
    _points,
    _limit,
    [
        Wrong(
            "1 / λ",
            lambda X: _limit(X, top=1.0),
            "at 1/λ the steepest direction is solved in a single step; it still converges up "
            "to twice that rate",
        ),
        Wrong(
            "the 2 of the second derivative",
            lambda X: _limit(X, factor=1.0),
            "the derivative of a square brings a 2: the second derivative of the mean squared "
            "error is 2/N · XᵀX",
        ),
        Wrong(
            "a sum, not a mean",
            lambda X: float(2 / max(np.linalg.eigvalsh(2 * X.T @ X))),
            "the loss is a mean over the rows of X; divide by how many there are",
        ),
        Wrong(
            "the flattest direction",
            lambda X: _limit(X, pick=min),
            "this is the limit of the flattest direction, the smallest λ; the steepest one "
            "breaks first",
        ),
        Wrong(
            "all directions together",
            lambda X: _limit(X, pick=sum),
            "you add up the eigenvalues (that is the trace); only the largest sets the limit",
        ),
        Wrong(
            "a singular value not squared",
            lambda X: float(2 / (2 / len(X) * np.linalg.norm(X, 2))),
            "the largest eigenvalue of XᵀX is the *square* of X's largest singular value",
        ),
        Wrong(
            "columns counted, not rows",
            lambda X: float(2 / max(np.linalg.eigvalsh(2 / X.shape[1] * X.T @ X))),
            "you divide by k, the columns of X; N is the number of its rows, len(X)",
        ),
    ],
)


# -------------------------------------------------------------------------------------------- adamw


def _history(rng):
    p, g, m = (rng.normal(size=4) for _ in range(3))
    return p, g, m, rng.uniform(0.1, 1.0, size=4), int(rng.integers(2, 6))


LR, B1, B2, EPS, DECAY = 0.1, 0.9, 0.99, 0.1, 0.5  # as the lesson gives them


def _averages(g, m, v, power=2):
    return B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g**power


def _stepped(p, m, v, t, *, decay=DECAY, correct=(True, True), size=lambda v: np.sqrt(v) + EPS):
    """p after the step, from averages that hold its gradient already."""
    m_hat = m / (1 - B1**t) if correct[0] else m
    v_hat = v / (1 - B2**t) if correct[1] else v
    with np.errstate(invalid="ignore"):  # without the square v can be negative
        return p * (1 - LR * decay) - LR * m_hat / size(v_hat)


def _adamw(p, g, m, v, t, *, power=2, **how):
    """The reference, and by its switches the ways to get it wrong."""
    m, v = _averages(g, m, v, power)
    return _stepped(p, m, v, t, **how), m, v


ADAMW = Exercise(
    "01-adamw",
    "One step of AdamW",
    _history,
    _adamw,
    [
        Wrong(
            "no correction",
            lambda *a: _adamw(*a, correct=(False, False)),
            "m and v started at zero and are too small at first; divide them by 1 − βᵗ before "
            "you use them",
        ),
        Wrong(
            "only m corrected",
            lambda *a: _adamw(*a, correct=(True, False)),
            "m is corrected, v is not; v̂ = v / (1 − β₂ᵗ)",
        ),
        Wrong(
            "no root",
            lambda *a: _adamw(*a, size=lambda v: v + EPS),
            "you divide by v̂ + ε; v averages *squares*, so divide by its root √v̂ + ε",
        ),
        Wrong(
            "ε under the root",
            lambda *a: _adamw(*a, size=lambda v: np.sqrt(v + EPS)),
            "√(v̂ + ε) is not √v̂ + ε; add ε after taking the root",
        ),
        Wrong(
            "decay put into the gradient",
            lambda p, g, *a: _adamw(p, g + DECAY * p, *a, decay=0.0),
            "this is Adam with L2: the decay runs through m and v; AdamW shrinks p itself, by "
            "1 − lr · decay",
        ),
        Wrong(
            "decay forgotten",
            lambda *a: _adamw(*a, decay=0.0),
            "p is not shrunk; multiply it by 1 − lr · decay",
        ),
        Wrong(
            "the corrected averages kept",
            lambda *a: _kept_corrected(*a),
            "the step is right, but you return m̂ and v̂; keep m and v themselves for the next step",
        ),
        Wrong(
            "only p returned",
            lambda *a: _adamw(*a)[0],
            "the step is right, but the next one needs the averages, too: return p, m, v",
        ),
        Wrong(
            "g not squared",
            lambda *a: _adamw(*a, power=1),
            "v averages g itself; it averages the *squares* of the gradients",
        ),
    ],
)


def _kept_corrected(p, g, m, v, t):
    p, m, v = _adamw(p, g, m, v, t)
    return p, m / (1 - B1**t), v / (1 - B2**t)


EXERCISES = [DESCEND, SWEEP, BATCHES, LIMIT, ADAMW]

"""Lesson 01: one line fitted to 64 points by gradient descent, the whole path on the loss surface,
by learning rate and batch size.

What it replaces: the three-dimensional valley of many books, which is drawn and not computed.
How it works: the model y = a·x + b has two numbers, so its mean squared error is a surface over a
plane that can be shown whole. It is a quadratic with the constant second derivative H = 2/N · XᵀX
(2, 2); its level lines are ellipses along H's eigenvectors, drawn exactly. Each step takes the next
`batch` points of a shuffled round through the data and moves (a, b) by −rate · gradient. With all
points in each batch the distance to the minimum is multiplied by (1 − rate · λ) along each
eigenvector: it shrinks if rate < 2/λ.
What it leaves out: momentum and Adam; networks, whose surface has too many directions to be shown
whole.
Where numerics differ: nowhere; fp64, shuffled by a fixed seed. Points far outside the picture are
left out of the drawing, not of the sums.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from . import layout, palette, svg
from .widget import Explorer, Slider

POINTS, STEPS = 64, 64

START = np.array([-1.5, 1.5])

BOX = (-2.0, 4.0, -2.5, 4.0)  # a from, to; b from, to

BATCHES = (1, 2, 4, 8, 16, 32, 64)

LEVELS = (0.03, 0.1, 0.3, 1, 3, 8, 16)


@functools.cache
def data() -> tuple[np.ndarray, np.ndarray]:
    """The points: X (N, 2), whose columns are x and 1, and y (N,)."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-0.5, 2.5, POINTS)
    return np.stack([x, np.ones(POINTS)], axis=1), x + 0.5 + rng.normal(0, 0.5, POINTS)


def gradient(p: np.ndarray, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """∂L/∂p (2,) of L = mean (X p − y)² over the given points."""
    return 2 / len(y) * X.T @ (X @ p - y)


def loss(path: np.ndarray) -> np.ndarray:
    """The mean squared error over all points, (…,), for parameters (…, 2)."""
    X, y = data()
    return ((path @ X.T - y) ** 2).mean(-1)


@functools.cache
def surface() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The minimum (2,), the eigenvalues (2,), small before large, and the eigenvectors (2, 2) of
    H.
    """
    X, y = data()
    return np.linalg.lstsq(X, y, rcond=None)[0], *np.linalg.eigh(2 / POINTS * X.T @ X)


def limit() -> float:
    """The rate above which full-batch descent diverges: 2 / λ_max."""
    return float(2 / surface()[1].max())


def level(height: float) -> np.ndarray:
    """The line on which the loss lies `height` above the lowest, (73, 2): an ellipse, since ½ dᵀHd
    = height.
    """
    best, sharp, along = surface()
    turn = np.linspace(0, 2 * math.pi, 73)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return best + circle * np.sqrt(2 * height / sharp) @ along.T


@functools.cache
def order() -> np.ndarray:
    """The points in the order in which they are used: a new shuffle for each round through the
    data.
    """
    rng = np.random.default_rng(0)
    return np.concatenate([rng.permutation(POINTS) for _ in range(STEPS)])


def descend(rate: float, batch: int, steps: int = STEPS) -> np.ndarray:
    """All positions of a walk from START, (steps + 1, 2)."""
    X, y = data()
    path = [START]
    for step in range(steps):
        chosen = order().take(range(step * batch, (step + 1) * batch), mode="wrap")
        path.append(path[-1] - rate * gradient(path[-1], X[chosen], y[chosen]))
    return np.array(path)


def compute(rate: float, batch: int) -> dict:
    """The path, its excess loss above the lowest, and what became of it."""
    path = descend(rate, batch)
    lowest = float(loss(surface()[0]))
    excess = loss(path) - lowest
    quiet = loss(descend(rate, POINTS)) - lowest
    return {
        "rate": rate,
        "batch": batch,
        "path": path,
        "lowest": lowest,
        "excess": excess,
        "told": _told(excess, quiet),
    }


def _told(excess: np.ndarray, quiet: np.ndarray) -> str:
    """One clause on the last quarter of the walk, beside that of the walk without noise."""
    late, without = float(excess[-STEPS // 4 :].mean()), float(quiet[-STEPS // 4 :].mean())
    if late > excess[0]:
        return "it diverges: the loss ends higher than it began"
    if late < 1e-3:
        return "it has arrived"
    if late > 2 * without:
        return f"the noise of the batches keeps it {svg.number(late)} above that on average"
    return f"it is still {svg.number(late)} above that, on its way"


def _inside(p: np.ndarray, q: np.ndarray) -> tuple[float, float] | None:
    """The part of the segment p → q that lies in BOX, as fractions of it (Liang and Barsky 1984);
    None if there is none.
    """
    low, high = 0.0, 1.0
    for axis in (0, 1):
        step = q[axis] - p[axis]
        for wall, side in ((BOX[2 * axis], -1), (BOX[2 * axis + 1], 1)):
            room = side * (wall - p[axis])  # how far p is from the wall, inwards
            if side * step == 0:
                if room < 0:
                    return None
            elif side * step > 0:
                high = min(high, room / (side * step))
            else:
                low = max(low, room / (side * step))
    return (low, high) if low < high else None


def _map(path: np.ndarray, width: int = 400, height: int = 380) -> str:
    """Level lines, path, start and minimum."""
    left, right, above, below = 46, width - 8, 24, height - 40

    def place(p):
        return (
            left + (right - left) * (p[0] - BOX[0]) / (BOX[1] - BOX[0]),
            below - (below - above) * (p[1] - BOX[2]) / (BOX[3] - BOX[2]),
        )

    def line(points, **style):
        pieces = []
        for p, q in zip(points, points[1:]):
            if (span := _inside(p, q)) is not None:
                (x1, y1), (x2, y2) = (place(p + share * (q - p)) for share in span)
                pieces.append(f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}")
        drawn = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
        return f'<path d="{"".join(pieces) or "M0 0"}" fill="none"{drawn}/>'

    parts = [line(level(height), stroke="currentColor", stroke_opacity="0.35") for height in LEVELS]
    parts.append(
        f'<rect x="{left}" y="{above}" width="{right - left}" height="{below - above}" '
        'fill="none" stroke="currentColor"/>'
    )
    parts.append(line(path, stroke=palette.hue(3), stroke_width="1.5"))
    parts += [_dot(place(p)) for p in path if BOX[0] < p[0] < BOX[1] and BOX[2] < p[1] < BOX[3]]
    (x, y), (u, v) = place(surface()[0]), place(path[0])
    parts.append(
        f'<path d="M{x - 7:.1f} {y:.1f}h14M{x:.1f} {y - 7:.1f}v14" stroke="currentColor" '
        'stroke-width="2"/>'
    )
    parts += [
        svg.text(u + 8, v + 14, "start", font_weight="bold"),
        svg.text(x + 10, y - 8, "lowest", font_weight="bold"),
    ]
    for value, at in ((BOX[0], left), (BOX[1], right - 8)):
        parts.append(svg.text(at, below + 16, svg.number(value), "middle"))
    for value, at in ((BOX[2], below), (BOX[3], above + 10)):
        parts.append(svg.text(left - 6, at, svg.number(value), "end"))
    parts += [
        svg.text((left + right) / 2, below + 32, "slope a", "middle"),
        svg.text(4, 14, "intercept b; each line is a height of the loss"),
    ]
    return svg.canvas(width, height, *parts)


def _dot(at: tuple[float, float]) -> str:
    return f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="2.2" fill="{palette.hue(3)}"/>'


def render(found: dict) -> tuple[str, str]:
    rate, batch, excess = found["rate"], found["batch"], found["excess"]
    rounds = STEPS * batch / POINTS
    label = (
        f"Rate {rate:.2f}, {batch} of {POINTS} points in a batch: {STEPS} steps go "
        f"{svg.number(rounds)} times through the data. "
        f"The lowest loss is {found['lowest']:.3f}; {found['told']}. With all points in each "
        f"batch the limit for α is 2/λ = {limit():.3f}."
    )
    height = np.log10(np.maximum(excess, 1e-6))
    curve = svg.lines(
        {"loss": (range(len(height)), height)},
        x_label="step",
        y_label="loss above the lowest, as a power of ten",
        x_range=(0, STEPS),
        y_range=(-6, 3),
        width=430,
        height=380,
    )
    return label, layout.beside([_map(found["path"]), curve])


EXPLORER = Explorer(
    "descent",
    compute,
    render,
    [
        Slider(
            "rate", [round(0.01 * n, 2) for n in range(1, 51)], start=0.1, label="learning rate α"
        ),
        Slider("batch", BATCHES, start=8, label="batch size B"),
    ],
)

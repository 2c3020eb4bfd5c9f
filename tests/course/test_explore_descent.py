"""The numbers behind the sliders of lesson 01: a real surface, a real walk on it, and the limit
that is predicted.
"""

import re

import numpy as np
import pytest

from minilora.course.explore import descent


def test_the_gradient_is_the_slope_of_the_loss():
    X, y = descent.data()
    p, nudge = np.array([0.3, -1.2]), 1e-6
    by_nudging = [
        (descent.loss(p + nudge * e) - descent.loss(p - nudge * e)) / (2 * nudge) for e in np.eye(2)
    ]
    assert descent.gradient(p, X, y) == pytest.approx(by_nudging, rel=1e-6)


def test_the_walk_with_all_points_is_torchs():
    import torch

    X, y = (torch.tensor(part) for part in descent.data())
    p = torch.tensor(descent.START, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.2)
    for position in descent.descend(0.2, descent.POINTS, 5):
        assert p.detach().numpy() == pytest.approx(position, rel=1e-12)
        optimizer.zero_grad()
        ((X @ p - y) ** 2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize("part, falls", [(0.97, True), (1.03, False)])
def test_the_limit_is_where_it_breaks(part, falls):
    path = descent.descend(part * descent.limit(), descent.POINTS, 400)
    excess = descent.loss(path[-1]) - descent.loss(descent.surface()[0])
    assert (excess < 1e-6) == falls and (excess > 1e6) != falls


@pytest.mark.parametrize("batch", [b for b in descent.BATCHES if b < descent.POINTS])
def test_a_round_uses_every_point_once_and_is_right_on_average(batch):
    X, y = descent.data()
    rows = descent.order()[: descent.POINTS].reshape(-1, batch)
    assert sorted(rows.ravel()) == list(range(descent.POINTS))
    mean = np.mean([descent.gradient(descent.START, X[r], y[r]) for r in rows], axis=0)
    assert mean == pytest.approx(descent.gradient(descent.START, X, y), rel=1e-9)


@pytest.mark.parametrize(
    "rate, batch, word",
    [
        (0.4, 64, "diverges"),
        (0.38, 64, "on its way"),
        (0.2, 64, "arrived"),
        (0.01, 64, "on its way"),
        (0.1, 4, "noise"),
        (0.45, 1, "diverges"),
    ],
)
def test_the_words_say_what_happens(rate, batch, word):
    label, picture = descent.render(descent.compute(rate, batch))
    assert word in label and picture.count("<svg") == 1


@pytest.mark.parametrize("height", descent.LEVELS)
def test_level_lines_lie_on_their_level(height):
    line = descent.level(height)
    assert descent.loss(line) - descent.loss(descent.surface()[0]) == pytest.approx(
        height, rel=1e-9
    )
    assert np.ptp(line, axis=0).min() > 0


@pytest.mark.parametrize(
    "p, q, part",
    [
        ((0, 0), (1, 1), (0, 1)),
        ((0, 0), (8, 0), (0, 0.5)),
        ((-4, 0), (8, 0), (1 / 6, 2 / 3)),
        ((0, 0), (0, -5), (0, 0.5)),
        ((0, 5), (1, 5), None),
        ((5, 0), (5, 1), None),
        ((3, 6), (8, 0), None),
    ],
)
def test_a_segment_is_cut_at_the_frame(p, q, part):
    found = descent._inside(np.array(p, dtype=float), np.array(q, dtype=float))
    assert found is None if part is None else found == pytest.approx(part)


def test_nothing_is_drawn_outside_its_frame():
    _, picture = descent.render(descent.compute(0.5, 1))
    for path in re.findall(r'<path d="([ML0-9. -]+)"', picture)[: len(descent.LEVELS) + 1]:
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path):
            assert 45.9 <= float(x) <= 392.1 and 23.9 <= float(y) <= 340.1

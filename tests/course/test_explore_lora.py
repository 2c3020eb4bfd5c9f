"""The numbers behind the sliders of lesson 08, and pictures laid side by side."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from minilora.course.explore import alpha, layout, rank, svg


@pytest.mark.parametrize("r, a", [(1, 1), (2, 4), (3, 16), (4, 7)])
def test_the_small_factors_multiply_to_what_is_shown(r, a):
    found = rank.compute(r, a)
    assert np.array_equal(found["delta"], a / r * found["B"] @ found["A"])
    assert (found["numbers"], found["of"], found["rank of delta"]) == (10 * r, 24, r)


def test_a_picture_says_when_nothing_is_saved():
    assert "4 fewer than W has" in rank.render(rank.compute(2, 4))[0]
    assert "6 more than W has: nothing is saved" in rank.render(rank.compute(3, 4))[0]


def test_the_first_step_is_that_of_adam():
    """The curve's point at one rank, from autograd and torch's own Adam on that layer."""
    import torch

    x, G, W = (torch.tensor(t, dtype=torch.float64) for t in alpha.observed())
    r = 5
    A = torch.tensor(
        np.random.default_rng(0).uniform(-1, 1, size=(64, x.shape[1])).astype(np.float32)
        / x.shape[1] ** 0.5,
        dtype=torch.float64,
    )[:r]
    B = torch.nn.Parameter(torch.zeros(W.shape[0], r, dtype=torch.float64))
    optimizer = torch.optim.Adam([B], lr=alpha.LR, eps=1e-30)
    ((x @ A.T) @ B.T * G).sum().backward()
    optimizer.step()
    moved = ((x @ A.T) @ B.detach().T).norm() / (x @ W.T).norm()
    assert moved.item() == pytest.approx(alpha.moves()[r - 1], rel=1e-3)


def test_twice_alpha_is_twice_the_move():
    one, two = alpha.compute(8, 16), alpha.compute(8, 32)
    assert np.allclose(2 * one["α/r"], two["α/r"]) and np.allclose(2 * one["α/√r"], two["α/√r"])
    assert one["numbers"] == 8 * alpha.per_rank()[0]


def test_pictures_are_laid_out_without_overlap():
    row = ElementTree.fromstring(layout.beside([svg.canvas(30, 10), svg.canvas(50, 40)], gap=5))
    column = ElementTree.fromstring(layout.below([svg.canvas(30, 10), svg.canvas(50, 40)], gap=5))
    assert (row.get("viewBox"), column.get("viewBox")) == ("0 0 85 40", "0 0 50 55")
    assert [g.get("transform") for g in column] == ["translate(0,0)", "translate(0,15)"]
    with pytest.raises(ValueError, match="must be one <svg>"):
        layout.below(["<p>no picture</p>"])

"""minilora.lowrank: what is predicted equals what is measured, on NumPy arrays and torch
tensors.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora import lowrank
from minilora.autograd import Tensor
from minilora.errors import MiniloraError


def matrix(seed, m, n, rank=None, dtype=np.float64):
    rng = np.random.default_rng(seed)
    if rank is None:
        return rng.standard_normal((m, n)).astype(dtype)
    return (rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))).astype(dtype)


sizes = st.integers(1, 12)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(0, 12), st.integers(0, 99))
def test_eckart_young_predicts_the_error_and_nothing_beats_it(m, n, r, seed):
    r = min(r, m, n)
    w = matrix(seed, m, n)
    best = lowrank.truncate(w, r)
    for norm, order in (("frobenius", "fro"), ("spectral", 2)):
        measured = np.linalg.norm(w - best, order)
        assert measured == pytest.approx(lowrank.predicted_error(w, r, norm), abs=1e-12)
        rival = matrix(seed + 1, m, r) @ matrix(seed + 2, r, n) if r else np.zeros((m, n))
        assert np.linalg.norm(w - rival, order) >= measured - 1e-12
    assert lowrank.rank(best) == r
    b, a = lowrank.factors(w, r)
    assert b.shape == (m, r) and a.shape == (r, n)
    np.testing.assert_allclose(b @ a, best, atol=1e-12)
    left = 1 - lowrank.energy(w, r)
    assert left == pytest.approx(
        (lowrank.predicted_error(w, r) / np.linalg.norm(w)) ** 2, abs=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_in_torch_out(dtype):
    w = torch.from_numpy(matrix(0, 9, 5)).to(dtype)
    for result in (
        lowrank.truncate(w, 3),
        *lowrank.factors(w, 3),
        *lowrank.svd(w),
        lowrank.energy(w),
    ):
        assert isinstance(result, torch.Tensor) and result.dtype == dtype
    as_numpy = w.double().numpy()
    assert lowrank.predicted_error(w, 3) == pytest.approx(lowrank.predicted_error(as_numpy, 3))
    torch.testing.assert_close(
        lowrank.truncate(w.double(), 3), torch.from_numpy(lowrank.truncate(as_numpy, 3))
    )
    torch.testing.assert_close(
        lowrank.singular_values(w.double()), torch.linalg.svdvals(w.double())
    )
    u, s, vt = lowrank.svd(w.double())
    torch.testing.assert_close(u @ torch.diag(s) @ vt, w.double())


def test_a_parameter_that_needs_a_gradient_is_fine():
    w = torch.nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    assert lowrank.rank(w) == 4 and not lowrank.truncate(w, 2).requires_grad


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rank_equals_numpys(dtype):
    for seed in range(10):
        w = matrix(seed, 30, 20, rank=7, dtype=dtype)
        assert lowrank.rank(w) == np.linalg.matrix_rank(w) == 7
        assert lowrank.rank(torch.from_numpy(w)) == 7
    assert lowrank.rank(np.zeros((3, 4))) == 0
    assert lowrank.rank(np.diag([1.0, 0.1, 0.001]), tolerance=0.01) == 2


def test_effective_ranks_of_known_spectra():
    flat = np.diag([2.0] * 4 + [0.0] * 3)
    assert lowrank.entropy_rank(flat) == pytest.approx(4)
    assert lowrank.stable_rank(flat) == pytest.approx(4)
    assert lowrank.energy_rank(flat, 0.9) == 4 and lowrank.energy_rank(flat, 0.75) == 3
    steep = np.diag([3.0, 1.0, 0.0])
    assert lowrank.entropy_rank(steep) == pytest.approx(
        np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    )
    assert lowrank.stable_rank(steep) == pytest.approx(10 / 9)
    assert lowrank.energy_rank(steep, 0.9) == 1 and lowrank.energy_rank(steep, 1.0) == 2
    assert lowrank.entropy_rank(np.zeros((2, 2))) == lowrank.stable_rank(np.zeros((2, 2))) == 0


def test_subspace_similarity():
    identity = np.eye(6)
    first, shifted = identity[:, :3] * [3, 2, 1], identity[:, 2:5] * [3, 2, 1]
    # the smaller lies in the larger
    assert lowrank.subspace_similarity(first, first, 2, 3) == pytest.approx(1)
    assert lowrank.subspace_similarity(first, shifted, 2, 3) == pytest.approx(0)
    # one direction shared of three
    assert lowrank.subspace_similarity(first, shifted, 3, 3) == pytest.approx(1 / 3)
    # random subspaces of dimensions i < j in n: j/n on average
    a8, a64 = matrix(0, 8, 100), matrix(1, 64, 100)
    value = lowrank.subspace_similarity(a8, a64, 8, 64, side="right")
    assert value == pytest.approx(64 / 100, abs=0.1)
    rotated = np.linalg.qr(matrix(2, 8, 8))[0] @ a8
    assert lowrank.subspace_similarity(a8, rotated, 8, 8, side="right") == pytest.approx(1)
    tensors = torch.from_numpy(a8), torch.from_numpy(a64)
    assert lowrank.subspace_similarity(*tensors, 8, 64, "right") == pytest.approx(value)


def test_rank_of_a_product_without_making_it():
    for r, inner in ((5, 5), (5, 3), (8, 2)):
        b, a = matrix(0, 40, r, inner if inner < r else None), matrix(1, r, 30)
        assert (
            lowrank.product_rank(b, a)
            == np.linalg.matrix_rank(b @ a)
            == lowrank.rank_bound(inner, r)
        )
    b, a = np.array([[1.0, 0], [0, 0]]), np.array([[0.0, 0], [0, 1]])
    assert lowrank.product_rank(b, a) == 0 < lowrank.rank_bound(1, 1)  # a bound, not an equality
    wide = matrix(3, 3, 10), matrix(4, 10, 4)
    assert lowrank.product_rank(*wide) == 3


@pytest.mark.parametrize("m, n, r", [(4, 6, 1), (4, 6, 2), (5, 5, 3), (3, 4, 3)])
def test_degrees_of_freedom_are_the_rank_of_the_jacobian(m, n, r):
    """How many directions BA moves in when B and A move: differentiate each of its entries with our
    own engine.
    """
    b, a = Tensor(matrix(0, m, r), requires_grad=True), Tensor(matrix(1, r, n), requires_grad=True)
    rows = []
    for i in range(m):
        for j in range(n):
            b.zero_grad(), a.zero_grad()
            (b @ a)[i, j].backward()
            rows.append(np.concatenate([b.grad.ravel(), a.grad.ravel()]))
    assert lowrank.rank(np.array(rows)) == lowrank.degrees_of_freedom(m, n, r)
    assert len(rows[0]) == lowrank.stored_numbers(m, n, r)


def test_counts_of_the_course():
    assert lowrank.stored_numbers(10, 10, 2) == 40
    assert (
        lowrank.stored_numbers(100, 100, 2) == 400
        and lowrank.degrees_of_freedom(100, 100, 2) == 396
    )
    assert lowrank.degrees_of_freedom(7, 5, 5) == 35  # full rank: all of them
    assert lowrank.break_even_rank(100, 100) == 50
    assert lowrank.stored_numbers(100, 60, 37) <= 6000 < lowrank.stored_numbers(100, 60, 38)
    assert lowrank.break_even_rank(100, 60) == 37


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda w: lowrank.truncate(w, 5), ["rank 5", "0 to 4"]),
        (lambda w: lowrank.factors(w, -1), ["rank -1"]),
        (lambda w: lowrank.predicted_error(w, 1, "nuclear"), ["nuclear", "spectral"]),
        (lambda w: lowrank.energy(w * 0), ["zero matrix"]),
        (lambda w: lowrank.energy_rank(w, 1.5), ["share 1.5"]),
        (lambda w: lowrank.svd(w[0]), ["(6,)"]),
        (lambda w: lowrank.svd(w * np.nan), ["NaN"]),
        (lambda w: lowrank.subspace_similarity(w, w.T, 1, 1), ["(4, 6)", "(6, 4)", "rows"]),
        (lambda w: lowrank.subspace_similarity(w, w, 1, 9), ["b of shape (4, 6)", "9"]),
        (lambda w: lowrank.subspace_similarity(w, w, 1, 1, "top"), ["'top'"]),
        (lambda w: lowrank.product_rank(w, w), ["(4, 6)", "B (m, r)"]),
        (lambda w: lowrank.degrees_of_freedom(4, 6, 7), ["rank 7"]),
    ],
)
def test_errors_name_the_value(call, words):
    with pytest.raises(MiniloraError) as error:
        call(matrix(0, 4, 6))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_both_factors_are_equally_large():
    """A product of the same matrix is had by any split; this one keeps both in the same range."""
    w = matrix(0, 9, 5)
    b, a = lowrank.factors(w, 3)
    root = np.sqrt(lowrank.singular_values(w)[:3])
    np.testing.assert_allclose(np.linalg.norm(b, axis=0), root)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), root)


@pytest.mark.parametrize("steps, rank", [(5, 1), (11, 2)])
def test_what_counts_as_rounding_is_numpys_rule_for_oblong_matrices(steps, rank):
    w = np.zeros((2, 8))
    w[0, 0], w[1, 1] = 1, steps * np.finfo(np.float64).eps
    assert lowrank.rank(w) == lowrank.rank(w.T) == np.linalg.matrix_rank(w) == rank


def test_a_product_is_as_exact_as_its_coarser_factor():
    fine, coarse = np.eye(2), np.diag([1, 1e-7]).astype(np.float32)
    assert lowrank.product_rank(fine, coarse) == lowrank.product_rank(coarse, fine) == 1
    assert lowrank.product_rank(fine, coarse.astype(np.float64)) == 2

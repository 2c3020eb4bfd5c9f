"""Low rank: how much of a matrix a few directions hold, and what a product of two thin matrices can
and cannot be.

What it replaces: `torch.svd_lowrank`, `numpy.linalg.matrix_rank` and the helpers that LoRA studies
copy around.
How it works: the singular value decomposition W = U diag(s) Vᵀ writes W (m, n) as a sum of
min(m, n) matrices of rank 1, the largest first. Keeping the first r gives the best rank-r
approximation there is (Eckart and Young 1936), and its error is known before it is made: the root
of the sum of the squares of the singular values left out.
What it leaves out: randomized and sparse methods. Every decomposition is a full one,
O(m·n·min(m, n)), in fp64, because fp32 singular values are noise below 1e-7 of the largest, and
ranks are read off exactly there.
Where numerics differ: NumPy arrays and torch tensors go in, the same kind (dtype and device kept)
comes out; single numbers are Python floats. Signs of singular vectors are arbitrary: compare
products or subspaces, never vectors.
"""

from __future__ import annotations

import math

import numpy as np

from .errors import MiniloraError


def svd(w):
    """U (m, k), s (k,), Vᵀ (k, n) with k = min(m, n) and W = U diag(s) Vᵀ, s falling; of the kind
    and dtype of `w`.
    """
    u, s, vt = _svd64(w)
    return _like(u, w), _like(s, w), _like(vt, w)


def singular_values(w):
    """The singular values of w (m, n), the largest first."""
    return _like(_values64(w), w)


def factors(w, rank: int):
    """B (m, r) and A (r, n), whose product is the best rank-r approximation of w (m, n).

    The singular values are shared evenly, B = U √s and A = √s Vᵀ, so that neither factor is much
    larger than the other.
    """
    u, s, vt = _svd64(w)
    _check_rank(rank, len(s))
    root = np.sqrt(s[:rank])
    return _like(u[:, :rank] * root, w), _like(root[:, None] * vt[:rank], w)


def truncate(w, rank: int):
    """The best rank-r approximation of w (m, n), in the Frobenius and in the spectral norm
    (Eckart-Young).
    """
    u, s, vt = _svd64(w)
    _check_rank(rank, len(s))
    return _like((u[:, :rank] * s[:rank]) @ vt[:rank], w)


def predicted_error(w, rank: int, norm: str = "frobenius") -> float:
    """‖W − truncate(W, r)‖ without computing it: √(Σ s_i², i > r), or s_{r+1} in the "spectral"
    norm.
    """
    s = _values64(w)
    _check_rank(rank, len(s))
    left_out = s[rank:]
    if norm == "frobenius":
        return float(np.sqrt((left_out**2).sum()))
    if norm == "spectral":
        return float(left_out.max(initial=0.0))
    raise MiniloraError(f"unknown norm {norm!r}; choose 'frobenius' or 'spectral'")


def energy(w, rank: int | None = None):
    """The share of ‖W‖² in the first r directions, in [0, 1]; without `rank`, the shares for r = 1
    … min(m, n).
    """
    shares = _shares64(w)
    if rank is None:
        return _like(shares, w)
    _check_rank(rank, len(shares))
    return float(shares[rank - 1]) if rank else 0.0


def rank(w, tolerance: float | None = None) -> int:
    """The number of singular values above tolerance · the largest.

    tolerance: max(m, n) · the rounding step of w's dtype unless given, NumPy's rule: what lies
    below may be rounding.
    """
    s = _values64(w)
    relative = max(np.shape(w)) * _epsilon(w) if tolerance is None else tolerance
    return int((s > relative * s.max(initial=0.0)).sum())


def energy_rank(w, share: float = 0.9) -> int:
    """The threshold version of effective rank: the fewest directions that hold `share` of ‖W‖²."""
    if not 0 < share <= 1:
        raise MiniloraError(f"share {share} is out of range; choose 0 < share ≤ 1")
    # the last share is 1 but for rounding
    return int(np.searchsorted(_shares64(w), share - 1e-12) + 1)


def entropy_rank(w) -> float:
    """The entropy version of effective rank: exp(−Σ p log p) with p = s/Σs (Roy and Vetterli 2007).

    k equal singular values and the rest zero give k; it needs no threshold and moves smoothly.
    """
    s = _values64(w)
    if not s.any():
        return 0.0
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def stable_rank(w) -> float:
    """‖W‖²_F / ‖W‖²₂, the sum of squares over the largest square: at most the rank, and hardly
    moved by noise.
    """
    s = _values64(w)
    return float((s**2).sum() / s.max() ** 2) if s.any() else 0.0


def subspace_similarity(a, b, i: int, j: int, side: str = "left") -> float:
    """φ(a, b, i, j) = ‖U_aᵢᵀ U_bⱼ‖²_F / min(i, j), how far the first i directions of a lie in the
    first j of b.

    1: the smaller space lies inside the larger one; 0: orthogonal (LoRA paper, arXiv:2106.09685,
    eq. 4). side: "left" compares columns' directions (U), "right" rows' (V). For adapters A (r, n)
    of different rank, the side is "right".
    """
    bases = []
    for name, w, count in (("a", a, i), ("b", b, j)):
        u, s, vt = _svd64(w)
        if not 1 <= count <= len(s):
            raise MiniloraError(
                f"{name} of shape {u.shape[0], vt.shape[1]} has no first {count} directions; "
                f"choose 1 to {len(s)}"
            )
        bases.append(u[:, :count] if side == "left" else vt[:count].T)
    if side not in ("left", "right"):
        raise MiniloraError(f"unknown side {side!r}; choose 'left' or 'right'")
    if bases[0].shape[0] != bases[1].shape[0]:
        raise MiniloraError(
            f"shapes {tuple(np.shape(a))} and {tuple(np.shape(b))} have no {side} space in common; "
            f"they need equally many {'rows' if side == 'left' else 'columns'}"
        )
    return float(((bases[0].T @ bases[1]) ** 2).sum() / min(i, j))


def rank_bound(*ranks: int) -> int:
    """The most that the rank of a product can be: the smallest rank among its factors."""
    return min(ranks)


def product_rank(b, a, tolerance: float | None = None) -> int:
    """The rank of B A for B (m, r) and A (r, n), at most r, read off an r × r matrix: the m × n
    product is never made.

    With B = Q₁R₁ and Aᵀ = Q₂R₂ (orthonormal Q), B A = Q₁ (R₁R₂ᵀ) Q₂ᵀ has the singular values of
    R₁R₂ᵀ.
    """
    left, right = _matrix64(b), _matrix64(a)
    if left.shape[1] != right.shape[0]:
        raise MiniloraError(
            f"shapes {left.shape} and {right.shape} do not multiply; B (m, r) needs A (r, n)"
        )
    core = np.linalg.qr(left, "r") @ np.linalg.qr(right.T, "r").T
    relative = (
        max(left.shape[0], right.shape[1]) * max(_epsilon(b), _epsilon(a))
        if tolerance is None
        else tolerance
    )
    return rank(core, relative)


def degrees_of_freedom(m: int, n: int, rank: int) -> int:
    """r(m + n − r): the numbers one may choose freely in an m × n matrix of rank r.

    B A stores r(m + n), and r² of them are spent for nothing: (B G)(G⁻¹ A) is the same matrix for
    each invertible G.
    """
    _check_rank(rank, min(m, n))
    return rank * (m + n - rank)


def stored_numbers(m: int, n: int, rank: int) -> int:
    """r(m + n): what the two factors of a rank-r matrix take. More than m·n from r =
    break_even_rank(m, n) + 1 on.
    """
    _check_rank(rank, min(m, n))
    return rank * (m + n)


def break_even_rank(m: int, n: int) -> int:
    """The largest rank at which two factors take no more numbers than the m × n matrix itself."""
    return m * n // (m + n)


def _check_rank(rank: int, most: int) -> None:
    if not 0 <= rank <= most:
        raise MiniloraError(
            f"rank {rank} is out of range; choose 0 to {most}, the smaller dimension"
        )


def _numpy(w) -> np.ndarray:
    """A NumPy array of w; bf16 tensors, which NumPy lacks, come as fp64."""
    if not hasattr(w, "detach"):
        return np.asarray(w)
    return w.detach().cpu().double().numpy() if w.is_floating_point() else w.detach().cpu().numpy()


def _matrix64(w) -> np.ndarray:
    array = np.asarray(_numpy(w), np.float64)
    if array.ndim != 2 or not array.size:
        raise MiniloraError(
            f"a matrix is needed, not shape {array.shape}; reshape it to two dimensions"
        )
    if not math.isfinite(np.abs(array).max()):
        raise MiniloraError(
            "the matrix holds NaN or infinity; find where they come from before decomposing it"
        )
    return array


def _svd64(w):
    return np.linalg.svd(_matrix64(w), full_matrices=False)


def _values64(w) -> np.ndarray:
    return np.linalg.svd(_matrix64(w), compute_uv=False)


def _shares64(w) -> np.ndarray:
    squares = _values64(w) ** 2
    if not squares.any():
        raise MiniloraError(
            "a zero matrix has no energy to share out; hand in one with a value other than 0"
        )
    return np.cumsum(squares) / squares.sum()


def _epsilon(w) -> float:
    """The rounding step at 1 of w's dtype; fp64's for integers and lists."""
    if hasattr(w, "detach"):
        import torch

        return torch.finfo(w.dtype).eps if w.is_floating_point() else np.finfo(np.float64).eps
    kind = np.asarray(w).dtype
    return float(np.finfo(kind).eps if kind.kind == "f" else np.finfo(np.float64).eps)


def _like(result: np.ndarray, w):
    """`result` as the kind of array that w is, in its dtype if that is a floating one."""
    if hasattr(w, "detach"):
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(result)).to(w.device)
        return tensor.to(w.dtype) if w.is_floating_point() else tensor
    kind = np.asarray(w).dtype
    return result.astype(kind) if kind.kind == "f" else result

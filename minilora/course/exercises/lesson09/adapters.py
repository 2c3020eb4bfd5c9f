"""Several adapters at once: one for each row of a batch, and several as one."""

from __future__ import annotations

import numpy as np

from .. import Exercise, Wrong

# --------------------------------------------------------------------------------------------- rows


def _some(rng, inner, outer, *kinds):
    """Adapters (A, B, scale), each with its own rank and scale."""
    return {
        name: (rng.normal(size=(rank, inner)), rng.normal(size=(outer, rank)), scale)
        for name, rank, scale in kinds
    }


def _two(rng, inner, outer):
    return _some(rng, inner, outer, ("mood", 2, 1.5), ("sums", 3, 0.5))


def _rows_inputs(rng):
    names = ["sums", "mood", None, "sums", "mood"]
    return (
        rng.normal(size=(5, 7)),
        rng.normal(size=(4, 7)),
        _two(rng, 7, 4),
        [names[i] for i in rng.permutation(5)],
    )


def _rows(x, W, adapters, names, *, use=lambda name, i, names: name, scaled=True):
    y = x @ W.T
    for i in range(len(x)):
        name = use(names[i], i, names)
        if name is not None:
            A, B, scale = adapters[name]
            y[i] = y[i] + B @ (A @ x[i]) * (scale if scaled else 1)
    return y


def _overwritten(x, W, adapters, names):
    """y[i] = detour where y[i] += detour was meant."""
    bare = [name is None for name in names]
    return _rows(x, np.zeros_like(W), adapters, names) + (x @ W.T) * np.array(bare)[:, None]


def _kept_in_W(x, W, adapters, names):
    """W += scale · B A, row after row: what one row's adapter changed stays for the next rows."""
    W, y = W.copy(), []
    for row, name in zip(x, names):
        if name is not None:
            A, B, scale = adapters[name]
            W += scale * B @ A
        y.append(W @ row)
    return np.array(y)


def _scale_by_rank(adapters):
    return {name: (A, B, scale / len(A)) for name, (A, B, scale) in adapters.items()}


ROWS = Exercise(
    "09-rows",
    "One batch, an adapter for each row",
    _rows_inputs,
    _rows,
    [
        Wrong(
            "one adapter for all",
            lambda x, W, adapters, names: _rows(
                x, W, adapters, names, use=lambda name, i, names: next(n for n in names if n)
            ),
            "every row is answered by the first row's adapter; look up names[i] for row i",
        ),
        Wrong(
            "all adapters added",
            lambda x, W, adapters, names: (
                x @ W.T + sum((x @ A.T) @ B.T * s for A, B, s in adapters.values())
            ),
            "every row hears all adapters; row i has only the one called names[i]",
        ),
        Wrong(
            "a name for the rows without one",
            lambda x, W, adapters, names: _rows(
                x, W, adapters, names, use=lambda name, i, names: name or "mood"
            ),
            "a row whose name is None is answered by the base alone",
        ),
        Wrong(
            "scale forgotten",
            lambda x, W, adapters, names: _rows(x, W, adapters, names, scaled=False),
            "each adapter brings its own scale; multiply its detour by it",
        ),
        Wrong(
            "the base left out",
            lambda x, W, adapters, names: _rows(x, np.zeros_like(W), adapters, names),
            "this is the detours alone; the base answers every row, x Wᵀ",
        ),
        Wrong(
            "the base overwritten",
            _overwritten,
            "a row with an adapter has lost the base's part; add the detour to it with +=, or "
            "y[i] + …",
        ),
        Wrong(
            "adapters pile up in W",
            _kept_in_W,
            "W keeps what an earlier row's adapter added; leave W alone, or add to a copy for "
            "each row (W += writes into W itself)",
        ),
        Wrong(
            "scale divided by the rank",
            lambda x, W, adapters, names: _rows(x, W, _scale_by_rank(adapters), names),
            "scale is α/r already; multiply by it as it is",
        ),
    ],
)


# ---------------------------------------------------------------------------------------------- mix


def _mix_inputs(rng):
    # more than two: nothing may be written for two alone
    parts = _some(rng, 6, 5, ("mood", 2, 1.5), ("sums", 3, 0.5), ("style", 4, 0.7))
    return list(parts.values()), [float(w) for w in rng.uniform(0.3, 1.2, size=3) * (1, 1, -1)]


def _mix(parts, weights, *, factor=lambda w, s: w * s, on_B=None):
    """A and B stacked, the rows of A scaled by `factor`, the columns of B by `on_B`."""
    A = np.concatenate([A * factor(w, s) for (A, _, s), w in zip(parts, weights)])
    B = np.concatenate(
        [B * (on_B(w, s) if on_B else 1) for (_, B, s), w in zip(parts, weights)], axis=1
    )
    return A, B


def _cross(parts, weights):
    """Factors added, the smaller ranks padded with zeros: what `linear` does, but for where the
    weights go.
    """
    rank = max(A.shape[0] for A, _, _ in parts)
    A = sum(
        np.pad(A * (w * s), ((0, rank - len(A)), (0, 0))) for (A, _, s), w in zip(parts, weights)
    )
    B = sum(np.pad(B, ((0, 0), (0, rank - B.shape[1]))) for _, B, _ in parts)
    return A, B


def _factor(made):
    """An answer's factor as one array; the mistake in words where it is a list of arrays of unlike
    shapes.
    """
    if isinstance(made, (list, tuple)):
        raise TypeError("A or B is a list of arrays; join them to one with np.concatenate")
    return np.asarray(made)


def _run_mix(answer, parts, weights):
    """The change that the answer's two factors make, and their rank; in words, if their shapes do
    not allow a product.
    """
    found = answer(parts, weights)
    if found is None:
        return None
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        return {
            "rank of the mixture": 0,
            "B A": "no pair (A, B): one array, or more than two things",
        }
    A, B = map(_factor, found)
    if A.ndim != 2 or B.ndim != 2 or B.shape[1] != A.shape[0]:
        return {
            "rank of the mixture": int(A.shape[0]),
            "B A": f"no product, for A is {A.shape} and B is {B.shape}",
        }
    return {"rank of the mixture": int(A.shape[0]), "B A": B @ A}


def _root_on_both(parts, weights):
    with np.errstate(invalid="ignore"):
        return _mix(
            parts, weights, factor=lambda w, s: np.sqrt(w * s), on_B=lambda w, s: np.sqrt(w * s)
        )


MIX = Exercise(
    "09-mix",
    "Several adapters as one",
    _mix_inputs,
    _mix,
    [
        Wrong(
            "factors added",
            _cross,
            "adding the factors gives cross terms, B of one times A of the other; put them "
            "beside each other instead",
        ),
        Wrong(
            "scales forgotten",
            lambda parts, weights: _mix(parts, weights, factor=lambda w, s: w),
            "each part speaks with weight times its own scale",
        ),
        Wrong(
            "weights forgotten",
            lambda parts, weights: _mix(parts, weights, factor=lambda w, s: s),
            "both parts speak in full here; multiply each by its weight",
        ),
        Wrong(
            "scaled twice",
            lambda parts, weights: _mix(parts, weights, on_B=lambda w, s: w * s),
            "A and B are both scaled, so the product is scaled by the square; scale one of them",
        ),
        Wrong(
            "a root on each factor",
            _root_on_both,
            "a weight may be negative, and its square root is no number; put weight · scale "
            "on A alone",
        ),
        Wrong(
            "B in another order",
            lambda parts, weights: (
                _mix(parts, weights)[0],
                np.concatenate([B for _, B, _ in parts[::-1]], axis=1),
            ),
            "the columns of B must stand in the order of the rows of A, or each B meets "
            "another's A",
        ),
        Wrong(
            "the product itself",
            lambda parts, weights: sum(w * s * B @ A for (A, B, s), w in zip(parts, weights)),
            "this is B A; return its two factors, A of the ranks' sum by in, and B",
        ),
        Wrong(
            "weights made to sum to 1",
            lambda parts, weights: _mix(parts, [w / sum(weights) for w in weights]),
            "the weights are taken as they are; two adapters may both speak in full",
        ),
        Wrong(
            "B returned first",
            lambda parts, weights: _mix(parts, weights)[::-1],
            "A and B are in the wrong order; return A, (r₁ + r₂ + …, in), first, then B, "
            "(out, r₁ + r₂ + …)",
        ),
    ],
    run=_run_mix,
)

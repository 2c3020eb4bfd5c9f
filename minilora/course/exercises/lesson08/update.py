"""The update as one matrix: how much of it a subspace catches, and merging."""

from __future__ import annotations

import numpy as np

from .. import Exercise, Wrong
from .layer import random_tensor

# ------------------------------------------------------------------------------------------- caught


def _update(rng):
    """An update that lies partly inside the factors' columns and rows: each wrong share is another
    number.
    """
    A, B = rng.normal(size=(2, 7)), rng.normal(size=(5, 2))
    return (
        B @ rng.normal(size=(2, 2)) @ A
        + 0.6 * B @ rng.normal(size=(2, 7))
        + rng.normal(size=(5, 7)),
        A,
        B,
    )


def _caught(delta, A, B):
    U, V = np.linalg.qr(B)[0], np.linalg.qr(A.T)[0]
    return np.sum((U.T @ delta @ V) ** 2) / np.sum(delta**2)


def _cosine(delta, A, B):
    return np.sum(delta * (B @ A)) ** 2 / (np.sum(delta**2) * np.sum((B @ A) ** 2))


CAUGHT = Exercise(
    "08-caught",
    "The share of an update inside LoRA's subspace",
    _update,
    _caught,
    [
        Wrong(
            "not made orthonormal",
            lambda delta, A, B: np.sum((B.T @ delta @ A.T) ** 2) / np.sum(delta**2),
            "B's columns are not of length 1 and not at right angles, so Bᵀ ΔW Aᵀ stretches; "
            "take the Q of a QR decomposition of each",
        ),
        Wrong(
            "length 1, but not at right angles",
            lambda delta, A, B: (
                np.sum(
                    ((B / np.linalg.norm(B, axis=0)).T @ delta @ (A.T / np.linalg.norm(A, axis=1)))
                    ** 2
                )
                / np.sum(delta**2)
            ),
            "the columns have length 1, but are not at right angles; take the Q of a QR "
            "decomposition of each",
        ),
        Wrong(
            "lengths instead of squares",
            lambda delta, A, B: np.sqrt(_caught(delta, A, B)),
            "this is the ratio of the lengths; shares that add up (Pythagoras) are ratios of "
            "squares",
        ),
        Wrong(
            "columns alone",
            lambda delta, A, B: np.sum((np.linalg.qr(B)[0].T @ delta) ** 2) / np.sum(delta**2),
            "this is what lies in B's columns; it has to lie in A's rows as well: multiply by "
            "V from the right",
        ),
        Wrong(
            "rows alone",
            lambda delta, A, B: np.sum((delta @ np.linalg.qr(A.T)[0]) ** 2) / np.sum(delta**2),
            "this is what lies in A's rows; it has to lie in B's columns as well: multiply by "
            "Uᵀ from the left",
        ),
        Wrong(
            "the two shares multiplied",
            lambda delta, A, B: (
                np.sum((np.linalg.qr(B)[0].T @ delta) ** 2)
                * np.sum((delta @ np.linalg.qr(A.T)[0]) ** 2)
                / np.sum(delta**2) ** 2
            ),
            "the share of the columns times that of the rows is not the share inside both; "
            "project from both sides at once: Uᵀ ΔW V",
        ),
        Wrong(
            "not divided",
            lambda delta, A, B: _caught(delta, A, B) * np.sum(delta**2),
            "this is the part's own ‖ · ‖²; a share is divided by ‖ΔW‖²",
        ),
        Wrong(
            "the one matrix B A",
            _cosine,
            "this compares ΔW with the single matrix B A; the subspace holds every B G A, "
            "with any r × r matrix G",
        ),
        Wrong(
            "what is missed",
            lambda delta, A, B: 1 - _caught(delta, A, B),
            "this is the share outside; the share inside is 1 less it",
        ),
    ],
)


# -------------------------------------------------------------------------------------------- merge


def _adapters(rng):
    return random_tensor(rng, 5, 7), [
        (random_tensor(rng, r, 7), random_tensor(rng, 5, r), alpha)
        for r, alpha in ((2, 5.0), (3, 4.0))
    ]


def _merge(W, adapters):
    return W + sum(alpha / A.shape[0] * B @ A for A, B, alpha in adapters)


def _merge_in_place(W, adapters):
    W += _merge(0 * W, adapters)
    return W


def _merge_into_B(W, adapters):
    for A, B, alpha in adapters:
        B *= alpha / A.shape[0]
        W = W + B @ A
    return W


def _merge_stacked(W, adapters):
    import torch

    As, Bs, alphas = zip(*adapters)
    return W + sum(alphas) / sum(len(A) for A in As) * torch.hstack(Bs) @ torch.vstack(As)


def _run_merge(answer, W, adapters):
    """The merged matrix, and what the caller has lent, which must be as it was."""
    return {
        "the merged matrix": answer(W, adapters),
        "the caller's own W, afterwards": W,
        "the caller's own adapters, afterwards": adapters,
    }


MERGE = Exercise(
    "08-merge",
    "Several adapters written into one weight",
    _adapters,
    _merge,
    [
        Wrong(
            "alpha instead of alpha / r",
            lambda W, adapters: W + sum(alpha * B @ A for A, B, alpha in adapters),
            "each update is scaled by its own α/r; r is A.shape[0]",
        ),
        Wrong(
            "scale forgotten",
            lambda W, adapters: W + sum(B @ A for A, B, _ in adapters),
            "B A is added as it is; multiply each by its α/r",
        ),
        Wrong(
            "only the last adapter",
            lambda W, adapters: _merge(W, adapters[-1:]),
            "only the last adapter has arrived; does the loop start again from W each time?",
        ),
        Wrong(
            "only the first adapter",
            lambda W, adapters: _merge(W, adapters[:1]),
            "only the first adapter has arrived; does the `return` stand inside the loop?",
        ),
        Wrong(
            "averaged",
            lambda W, adapters: W + _merge(0 * W, adapters) / len(adapters),
            "you take the mean of the updates; each detour is added in full, so the updates add up",
        ),
        Wrong(
            "one scale for all",
            _merge_stacked,
            "stacked side by side, the A and B make one product, but each adapter has its own "
            "α/r; scale each before adding",
        ),
        Wrong(
            "r read from the wrong side",
            lambda W, adapters: W + sum(alpha / A.shape[1] * B @ A for A, B, alpha in adapters),
            "A.shape[1] is the layer's input size; the rank is A.shape[0], the number of rows",
        ),
        Wrong(
            "one rank for all",
            lambda W, adapters: (
                W + sum(alpha / adapters[0][0].shape[0] * B @ A for A, B, alpha in adapters)
            ),
            "the adapters have different ranks; read r from each A",
        ),
        Wrong(
            "W left out",
            lambda W, adapters: _merge(0 * W, adapters),
            "this is the sum of the updates; merging adds it to W",
        ),
        Wrong(
            "written into W",
            _merge_in_place,
            "`W += …` writes into the caller's matrix, who may want it back; `W = W + …` "
            "makes a new one",
        ),
        Wrong(
            "written into B",
            _merge_into_B,
            "`B *= …` writes into the caller's adapter, which would be scaled again the next "
            "time; put the factor into the sum",
        ),
    ],
    run=_run_merge,
)

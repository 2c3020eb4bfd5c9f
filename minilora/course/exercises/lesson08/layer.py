"""An adapted layer: how many numbers it holds, its output, and the gradients of its factors."""

from __future__ import annotations

from .. import Exercise, Wrong

# -------------------------------------------------------------------------------------------- count


def _shapes(rng):
    shapes = [
        tuple(int(n) for n in rng.integers(3, 40, size=2)) for _ in range(int(rng.integers(3, 6)))
    ]
    return shapes + shapes[:1], int(rng.integers(2, 9))


COUNT = Exercise(
    "08-count",
    "The numbers of an adapter",
    _shapes,
    lambda shapes, rank: sum(rank * (o + i) for o, i in shapes),
    [
        Wrong(
            "only one factor",
            lambda shapes, rank: sum(rank * i for _, i in shapes),
            "that is A alone, r × in; B holds r × out numbers more",
        ),
        Wrong(
            "only B",
            lambda shapes, rank: sum(rank * o for o, _ in shapes),
            "that is B alone, out × r; A holds r × in numbers more",
        ),
        Wrong(
            "sides multiplied",
            lambda shapes, rank: sum(rank * o * i for o, i in shapes),
            "r · out · in is more than W itself; A has r rows and B has r columns, so their "
            "sizes add up: r · (out + in)",
        ),
        Wrong(
            "all of W",
            lambda shapes, rank: sum(o * i for o, i in shapes),
            "out · in is what full fine-tuning trains; the rank has to come in",
        ),
        Wrong(
            "one matrix only",
            lambda shapes, rank: rank * sum(shapes[0]),
            "this counts a single matrix; every matrix in the list gets an adapter of its own",
        ),
        Wrong(
            "each shape once",
            lambda shapes, rank: sum(rank * (o + i) for o, i in set(shapes)),
            "equal shapes are counted once; every matrix in the list gets an adapter of its own",
        ),
        Wrong(
            "rank forgotten",
            lambda shapes, rank: sum(o + i for o, i in shapes),
            "out + in is right for rank 1; A has r rows and B has r columns",
        ),
        Wrong(
            "the free numbers",
            lambda shapes, rank: sum(rank * (o + i - rank) for o, i in shapes),
            "r · (out + in − r) are the free numbers of lesson 07; stored, and trained, are "
            "all r · (out + in)",
        ),
    ],
)


# ------------------------------------------------------------------------------------------ forward


def random_tensor(rng, *shape):
    import torch

    return torch.tensor(rng.normal(size=shape))


def _layer(rng):
    n, inner, outer, rank = 6, 7, 5, int(rng.integers(2, 5))
    alpha = int(rng.integers(5, 12)) + 0.5
    return (
        random_tensor(rng, n, inner),
        random_tensor(rng, outer, inner),
        random_tensor(rng, rank, inner),
        random_tensor(rng, outer, rank),
        alpha,
    )


def _forward(x, W, A, B, alpha):
    return x @ W.T + (x @ A.T) @ B.T * (alpha / A.shape[0])


FORWARD = Exercise(
    "08-forward",
    "The output of an adapted layer",
    _layer,
    _forward,
    [
        Wrong(
            "alpha instead of alpha / r",
            lambda x, W, A, B, alpha: x @ W.T + (x @ A.T) @ B.T * alpha,
            "the detour is scaled by α; the scale is α/r, and r is the number of rows of A",
        ),
        Wrong(
            "scale forgotten",
            lambda x, W, A, B, alpha: x @ W.T + (x @ A.T) @ B.T,
            "the detour is added as it is; multiply it by α/r",
        ),
        Wrong(
            "the base left out",
            lambda x, W, A, B, alpha: (x @ A.T) @ B.T * (alpha / A.shape[0]),
            "this is the detour alone; the frozen layer still answers, and the detour is "
            "added to x Wᵀ",
        ),
        Wrong(
            "everything scaled",
            lambda x, W, A, B, alpha: (x @ W.T + (x @ A.T) @ B.T) * (alpha / A.shape[0]),
            "α/r scales the detour alone; x Wᵀ must come out as it did before",
        ),
        Wrong(
            "r read from the wrong side",
            lambda x, W, A, B, alpha: x @ W.T + (x @ A.T) @ B.T * (alpha / A.shape[1]),
            "A.shape[1] is the layer's input size; the rank is A.shape[0], the number of rows",
        ),
        Wrong(
            "r read from B's rows",
            lambda x, W, A, B, alpha: x @ W.T + (x @ A.T) @ B.T * (alpha / B.shape[0]),
            "B.shape[0] is the layer's output size; the rank is A.shape[0], or B.shape[1]",
        ),
        Wrong(
            "the s of section 1",
            lambda x, W, A, B, alpha: x @ W.T + (x @ A.T) @ B.T * 3,
            "you multiply by 3, the `s` of section 1; each layer has its own scale: s = alpha "
            "/ A.shape[0]",
        ),
        Wrong(
            "root of r",
            lambda x, W, A, B, alpha: x @ W.T + (x @ A.T) @ B.T * (alpha / A.shape[0] ** 0.5),
            "you divide by √r; section 6 comes back to that, LoRA's scale is α/r",
        ),
    ],
)


# ---------------------------------------------------------------------------------------- gradients


def _backward_inputs(rng):
    x, W, A, B, alpha = _layer(rng)
    return x, random_tensor(rng, x.shape[0], W.shape[0]), A, B, alpha


def _gradients(x, G, A, B, alpha):
    s = alpha / A.shape[0]
    return s * (G @ B).T @ x, s * G.T @ (x @ A.T)


def _without_scale(x, G, A, B, alpha):
    return (G @ B).T @ x, G.T @ (x @ A.T)


GRADIENTS = Exercise(
    "08-gradients",
    "The two gradients of a detour",
    _backward_inputs,
    _gradients,
    [
        Wrong(
            "scale forgotten",
            _without_scale,
            "the detour was multiplied by α/r on its way out, so each gradient is multiplied "
            "by α/r on its way back",
        ),
        Wrong(
            "alpha instead of alpha / r",
            lambda x, G, A, B, alpha: tuple(alpha * g for g in _without_scale(x, G, A, B, alpha)),
            "both gradients carry α; the factor is α/r",
        ),
        Wrong(
            "dB before dA",
            lambda x, G, A, B, alpha: _gradients(x, G, A, B, alpha)[::-1],
            "both gradients are right, but in the wrong order; return dA first, then dB",
        ),
        Wrong(
            "transposed",
            lambda x, G, A, B, alpha: tuple(g.T for g in _gradients(x, G, A, B, alpha)),
            "a gradient has the shape of what it belongs to: dA is (r, in) like A, dB is "
            "(out, r) like B",
        ),
        Wrong(
            "mean over the rows",
            lambda x, G, A, B, alpha: tuple(g / len(x) for g in _gradients(x, G, A, B, alpha)),
            "you divide by the number of rows; if the loss is a mean, G holds that division "
            "already",
        ),
        Wrong(
            "the s of section 1",
            lambda x, G, A, B, alpha: tuple(3 * g for g in _without_scale(x, G, A, B, alpha)),
            "you multiply by 3, the `s` of section 1; each layer has its own scale: s = alpha "
            "/ A.shape[0]",
        ),
        Wrong(
            "dB not scaled",
            lambda x, G, A, B, alpha: (
                _gradients(x, G, A, B, alpha)[0],
                _without_scale(x, G, A, B, alpha)[1],
            ),
            "dA is right, dB lacks α/r: the scale stands between the loss and both of them",
        ),
        Wrong(
            "dA not scaled",
            lambda x, G, A, B, alpha: (
                _without_scale(x, G, A, B, alpha)[0],
                _gradients(x, G, A, B, alpha)[1],
            ),
            "dB is right, dA lacks α/r: the scale stands between the loss and both of them",
        ),
        Wrong(
            "a step, not a gradient",
            lambda x, G, A, B, alpha: tuple(-g for g in _gradients(x, G, A, B, alpha)),
            "the sign is that of a step downhill; the gradient points uphill, and the "
            "optimizer subtracts it",
        ),
    ],
)

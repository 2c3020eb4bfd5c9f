"""A layer of four bits that trains: the gradient of x, what it keeps, and the merge."""

from __future__ import annotations

import numpy as np

from ....quantize.blockwise import quantize
from .. import Exercise, Wrong

# ----------------------------------------------------------------------------------------- gradient


def _adapted(rng):
    """α/r is no whole number, and r not always the same."""
    W, r = rng.normal(size=(13, 21)).astype(np.float32), int(rng.integers(2, 5))
    return W, quantize(W, "nf4", 32), rng.normal(size=(r, 21)), rng.normal(size=(13, r)), 7.0


def _backward_inputs(rng):
    _, q, A, B, alpha = _adapted(rng)
    return rng.normal(size=(5, 13)), q, A, B, alpha


def _gradient(G, q, A, B, alpha, *, base=1.0, detour=lambda alpha, r: alpha / r):
    return base * (G @ q.dequantize()) + detour(alpha, A.shape[0]) * (G @ B) @ A


GRADIENT = Exercise(
    "10-gradient",
    "The gradient that goes on to x",
    _backward_inputs,
    _gradient,
    [
        Wrong(
            "the frozen weight left out",
            lambda *a: _gradient(*a, base=0.0),
            "W gets no gradient, but x reaches the loss through W, too: G W belongs to ∂L/∂x",
        ),
        Wrong(
            "the detour left out",
            lambda *a: _gradient(*a, detour=lambda alpha, r: 0.0),
            "this is the way through W alone; x also goes through A and B",
        ),
        Wrong(
            "alpha instead of alpha / r",
            lambda *a: _gradient(*a, detour=lambda alpha, r: alpha),
            "the detour carries α; its scale is α/r, and r is the number of rows of A",
        ),
        Wrong(
            "scale forgotten",
            lambda *a: _gradient(*a, detour=lambda alpha, r: 1.0),
            "the detour was multiplied by α/r on the way out, so it is multiplied by α/r on "
            "the way back",
        ),
        Wrong(
            "r of the wrong side",
            lambda G, q, A, B, alpha: G @ q.dequantize() + alpha / len(B) * (G @ B) @ A,
            "r is the width of the waist: the number of rows of A, which are the columns of B",
        ),
        Wrong(
            "the detour taken off",
            lambda G, q, A, B, alpha: G @ q.dequantize() - alpha / A.shape[0] * (G @ B) @ A,
            "the two ways add up in y, so their gradients add up, too; there is no minus",
        ),
        Wrong(
            "alpha // r",
            lambda *a: _gradient(*a, detour=lambda alpha, r: alpha // r),
            "// drops what does not divide evenly; α/r is a fraction",
        ),
        Wrong(
            "everything scaled",
            lambda G, q, A, B, alpha: alpha / A.shape[0] * (G @ q.dequantize() + (G @ B) @ A),
            "α/r belongs to the detour alone; G W comes as it is",
        ),
    ],
)


# ----------------------------------------------------------------------------------------- function


def _function_inputs(rng):
    W = rng.normal(size=(13, 21)).astype(np.float32)
    return (
        rng.normal(size=(5, 21)).astype(np.float32),
        W,
        rng.normal(size=(5, 13)).astype(np.float32),
    )


def _forward(answer, x, W):
    """(the leaf, y, its four bits, x's storage: where it was and whether it still is) after a
    forward pass, with x itself dropped.
    """
    import torch
    from torch.multiprocessing.reductions import StorageWeakRef

    q, leaf = quantize(torch.from_numpy(W), "nf4", 32), torch.from_numpy(x).requires_grad_()
    x = leaf.clone()
    place, there = x.untyped_storage().data_ptr(), StorageWeakRef(x.untyped_storage())
    y = answer.apply(x, q)
    del x
    return leaf, y, q, (place, not there.expired())


def _keeps_decoded(answer, x, W, G):
    """Is the gradient the same after other codes were put into q between forward and backward? Then
    it was not they that were decoded.
    """
    import torch

    found = []
    for change in (False, True):
        leaf, y, q, _ = _forward(answer, x, W)
        if change:
            # .data: no version is counted, so that codes which autograd saved may change
            q.packed.data.bitwise_not_()
        y.backward(torch.from_numpy(G))
        found.append(leaf.grad)
    return found[0] is not None and bool(found[0].any()) and torch.equal(*found)


def _run_function(answer, x, W, G):
    """Output, gradient, and how many bytes the function keeps between them beside what q holds
    anyway, wherever it puts them.
    """
    import torch

    leaf, y, q, (place, kept) = _forward(answer, x, W)
    node = y.grad_fn
    spared = {place, *(t.untyped_storage().data_ptr() for t in (q.packed, q.absmax))}
    held = (
        {}
        if node is None
        else {
            t.untyped_storage().data_ptr(): t.nbytes
            for t in (*node.saved_tensors, *vars(node).values())
            if isinstance(t, torch.Tensor)
        }
    )
    others = sum(size for where, size in held.items() if where not in spared)
    if node is not None:
        y.backward(torch.from_numpy(G))
    decoded = W.nbytes if node is not None and _keeps_decoded(answer, x, W, G) else 0
    return {
        "output": y.detach().numpy(),
        "gradient of x": (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).numpy(),
        "bytes kept beside the codes": kept * x.nbytes + max(others, decoded),
    }


def _function(keep=lambda x, W: (), handed_on=lambda G, W: G @ W):
    """An autograd function that keeps what it is told, for the reference and for the ways to get it
    wrong.
    """
    import torch

    class Frozen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, q):
            W = q.dequantize()
            ctx.q = q
            ctx.save_for_backward(*keep(x, W))
            return x @ W.T

        @staticmethod
        def backward(ctx, G):
            return handed_on(G, ctx.q.dequantize()), None

    return Frozen


class _Later:
    """Made on the first call, so that this file does not import torch."""

    def __init__(self, **how):
        self.how = how

    def apply(self, x, q):
        return _function(**self.how).apply(x, q)


FUNCTION = Exercise(
    "10-function",
    "A frozen layer that keeps nothing",
    _function_inputs,
    _Later(),
    [
        Wrong(
            "the decoded weight kept",
            _Later(keep=lambda x, W: (W,)),
            "the decoded W stays in memory until the backward pass, eight times as large as "
            "its codes; keep q and decode again",
        ),
        Wrong(
            "the input kept",
            _Later(keep=lambda x, W: (x,)),
            "x is needed for the gradient of W, but W is frozen; for the gradient of x, G and "
            "W are enough",
        ),
        Wrong(
            "input and decoded weight kept",
            _Later(keep=lambda x, W: (x, W)),
            "this keeps all that a layer which trains would keep; a frozen one needs neither "
            "x nor a decoded W",
        ),
        Wrong(
            "no gradient for x",
            _Later(handed_on=lambda G, W: None),
            "no gradient goes on to x, so nothing below this layer would train: return G W "
            "first, then None for q",
        ),
        Wrong(
            "a gradient of the wrong sign",
            _Later(handed_on=lambda G, W: -(G @ W)),
            "G is already ∂L/∂y; it goes through W as it is, without a minus",
        ),
    ],
    run=_run_function,
)


# -------------------------------------------------------------------------------------------- merge


def _merge(W, q, A, B, alpha):
    return q.dequantize() + alpha / A.shape[0] * B @ A


MERGE = Exercise(
    "10-merge",
    "The exact merge",
    _adapted,
    _merge,
    [
        Wrong(
            "into the original weights",
            lambda W, q, A, B, alpha: W + alpha / A.shape[0] * B @ A,
            "the adapter learned beside the decoded weights and made up for some of their "
            "errors; merge into what q decodes to",
        ),
        Wrong(
            "quantized again",
            lambda W, q, A, B, alpha: quantize(
                _merge(W, q, A, B, alpha).astype(np.float32), "nf4", 32
            ).dequantize(),
            "rounding the sum to four bits again rounds away what was learned; return the sum "
            "as it is",
        ),
        Wrong(
            "the update alone quantized",
            lambda W, q, A, B, alpha: (
                q.dequantize()
                + quantize((alpha / A.shape[0] * B @ A).astype(np.float32), "nf4", 32).dequantize()
            ),
            "the update is rounded to four bits here; only the frozen weights were trained "
            "with in four bits",
        ),
        Wrong(
            "alpha instead of alpha / r",
            lambda W, q, A, B, alpha: q.dequantize() + alpha * B @ A,
            "the update is scaled by α; the scale is α/r",
        ),
        Wrong(
            "alpha // r",
            lambda W, q, A, B, alpha: q.dequantize() + alpha // A.shape[0] * B @ A,
            "// drops what does not divide evenly; α/r is a fraction",
        ),
        Wrong(
            "scale forgotten",
            lambda W, q, A, B, alpha: q.dequantize() + B @ A,
            "B A is added as it is; multiply it by α/r",
        ),
        Wrong(
            "original weights, quantized again",
            lambda W, q, A, B, alpha: quantize(
                (W + alpha / A.shape[0] * B @ A).astype(np.float32), "nf4", 32
            ).dequantize(),
            "this takes both common ways at once; merge into what q decodes to, and leave the "
            "sum as it is",
        ),
        Wrong(
            "rounded to 16 bits",
            lambda *a: _merge(*a).astype(np.float16),
            "the sum is right, but rounded to 16 bits; here it is wanted in full precision",
        ),
        Wrong(
            "the update alone",
            lambda W, q, A, B, alpha: alpha / A.shape[0] * B @ A,
            "this is the update; the decoded weights that it was trained beside have to come in",
        ),
        Wrong(
            "the update left out",
            lambda W, q, A, B, alpha: q.dequantize(),
            "this is the base; the adapter has to come in",
        ),
    ],
)

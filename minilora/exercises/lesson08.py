"""The exercises of lesson 08: count, adapt, differentiate, inject, look into a subspace, merge.

What it replaces: reading PEFT's source to find out whether one has understood it.
How it works: see `minilora.exercises`. No wrong answer can hide: A *and* B are random and not zero, α is not r, in is not out.
What it leaves out: dropout, biases, DoRA.
Where numerics differ: nowhere; any order of multiplication is right within the tolerance.
"""

from __future__ import annotations

import numpy as np

from . import Exercise, Wrong


# ------------------------------------------------------------------------------------------------------------- count


def _shapes(rng):
    shapes = [tuple(int(n) for n in rng.integers(3, 40, size=2)) for _ in range(int(rng.integers(3, 6)))]
    return shapes, int(rng.integers(2, 9))


COUNT = Exercise("08-count", "The numbers of an adapter", _shapes, lambda shapes, rank: sum(rank * (o + i) for o, i in shapes), [
    Wrong("only one factor", lambda shapes, rank: sum(rank * i for _, i in shapes),
          "that is A alone, r × in; B holds r × out numbers more"),
    Wrong("only B", lambda shapes, rank: sum(rank * o for o, _ in shapes),
          "that is B alone, out × r; A holds r × in numbers more"),
    Wrong("sides multiplied", lambda shapes, rank: sum(rank * o * i for o, i in shapes),
          "r · out · in is more than W itself; A has r rows and B has r columns, so their sizes add up: r · (out + in)"),
    Wrong("all of W", lambda shapes, rank: sum(o * i for o, i in shapes),
          "out · in is what full fine-tuning trains; the rank has to come in"),
    Wrong("one matrix only", lambda shapes, rank: rank * sum(shapes[0]),
          "this counts the first matrix; every matrix in the list gets an adapter of its own"),
])


# ----------------------------------------------------------------------------------------------------------- forward


def _layer(rng):
    n, inner, outer, rank = 6, 7, 5, 2
    return rng.normal(size=(n, inner)), rng.normal(size=(outer, inner)), rng.normal(size=(rank, inner)), rng.normal(size=(outer, rank)), 6.0


def _forward(x, W, A, B, alpha):
    return x @ W.T + (x @ A.T) @ B.T * (alpha / A.shape[0])


FORWARD = Exercise("08-forward", "The output of an adapted layer", _layer, _forward, [
    Wrong("alpha instead of alpha / r", lambda x, W, A, B, alpha: x @ W.T + (x @ A.T) @ B.T * alpha,
          "the detour is scaled by α; the scale is α/r, and r is the number of rows of A"),
    Wrong("scale forgotten", lambda x, W, A, B, alpha: x @ W.T + (x @ A.T) @ B.T,
          "the detour is added as it is; multiply it by α/r"),
    Wrong("the base left out", lambda x, W, A, B, alpha: (x @ A.T) @ B.T * (alpha / A.shape[0]),
          "this is the detour alone; the frozen layer still answers, and the detour is added to x Wᵀ"),
    Wrong("everything scaled", lambda x, W, A, B, alpha: (x @ W.T + (x @ A.T) @ B.T) * (alpha / A.shape[0]),
          "α/r scales the detour alone; x Wᵀ must come out as it did before"),
    Wrong("r read from the wrong side", lambda x, W, A, B, alpha: x @ W.T + (x @ A.T) @ B.T * (alpha / A.shape[1]),
          "A.shape[1] is the layer's input size; the rank is A.shape[0], the number of rows"),
])


# --------------------------------------------------------------------------------------------------------- gradients


def _backward_inputs(rng):
    x, W, A, B, alpha = _layer(rng)
    return x, rng.normal(size=(x.shape[0], W.shape[0])), A, B, alpha


def _gradients(x, G, A, B, alpha):
    s = alpha / A.shape[0]
    return s * (G @ B).T @ x, s * G.T @ (x @ A.T)


def _without_scale(x, G, A, B, alpha):
    return (G @ B).T @ x, G.T @ (x @ A.T)


GRADIENTS = Exercise("08-gradients", "The two gradients of a detour", _backward_inputs, _gradients, [
    Wrong("scale forgotten", _without_scale,
          "the detour was multiplied by α/r on its way out, so each gradient is multiplied by α/r on its way back"),
    Wrong("alpha instead of alpha / r", lambda x, G, A, B, alpha: tuple(alpha * g for g in _without_scale(x, G, A, B, alpha)),
          "both gradients carry α; the factor is α/r"),
    Wrong("dB before dA", lambda x, G, A, B, alpha: _gradients(x, G, A, B, alpha)[::-1],
          "both gradients are right, but in the wrong order; return dA first, then dB"),
    Wrong("transposed", lambda x, G, A, B, alpha: tuple(g.T for g in _gradients(x, G, A, B, alpha)),
          "a gradient has the shape of what it belongs to: dA is (r, in) like A, dB is (out, r) like B"),
    Wrong("mean over the rows", lambda x, G, A, B, alpha: tuple(g / len(x) for g in _gradients(x, G, A, B, alpha)),
          "you divide by the number of rows; if the loss is a mean, G holds that division already"),
])


# ------------------------------------------------------------------------------------------------------------ inject


def _model(seed: int):
    """Two blocks with linear layers of unequal sides and a head; weights from the seed."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)

        def forward(self, x):
            return x + self.v_proj(torch.tanh(self.q_proj(x) * self.k_proj(x)))

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)

        def forward(self, x):
            for block in self.layers:
                x = block(x)
            return self.head(x)

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Tiny(), torch.randn(4, 6)


def _run_inject(answer, seed, names, rank, alpha):
    """What can be seen of a model after the answer has worked on it, whatever its adapters are called."""
    import torch
    from torch import nn

    model, x = _model(seed)
    before = model(x).detach()
    linear = [path for path, module in model.named_modules() if type(module) is nn.Linear]
    old = list(model.parameters())
    given = answer(model, names, rank, alpha)
    model = model if given is None else given
    after = model(x).detach()
    learns = [p for p in model.parameters() if p.requires_grad]
    for parameter in learns:
        parameter.data.fill_(0.3)
    return {
        "places with an adapter": ", ".join(path for path in linear if type(model.get_submodule(path)) is not nn.Linear) or "none",
        "old weights that still learn": sum(p.numel() for p in old if p.requires_grad),
        "numbers that learn": sum(p.numel() for p in learns),
        "output moved before any training": bool((after - before).abs().max() > 1e-6),
        "output once the adapters are filled with 0.3": model(x).detach().numpy(),
    }


def _inject(model, names, rank, alpha, *, freeze="before", everywhere=False, scale=None, start="zero"):
    """The reference, and by its switches the ways to get it wrong."""
    from torch import nn

    from ..lora import LoRALinear

    if freeze == "before":
        model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        parent, _, name = path.rpartition(".")
        if type(module) is nn.Linear and (everywhere or name in names):
            layer = LoRALinear(module)
            layer.add("default", rank, alpha / rank if scale is None else scale(alpha, rank))
            if start != "zero":
                nn.init.constant_(layer.lora_B["default"], 0.1)
            setattr(model.get_submodule(parent), name, layer)
    if freeze == "after":
        model.requires_grad_(False)
    return model


def _inject_inputs(rng):
    return int(rng.integers(1000)), [["q_proj", "v_proj"], ["v_proj"], ["k_proj", "q_proj"]][int(rng.integers(3))], int(rng.integers(2, 5)), 7.0


INJECT = Exercise("08-inject", "Freeze a model and put adapters into it", _inject_inputs, _inject, [
    Wrong("the base not frozen", lambda *a: _inject(*a, freeze="never"),
          "layers without an adapter still learn; call model.requires_grad_(False) before you put anything in"),
    Wrong("frozen after injecting", lambda *a: _inject(*a, freeze="after"),
          "the adapters are frozen, too, so nothing learns; freeze first, then inject"),
    Wrong("every linear layer", lambda *a: _inject(*a, everywhere=True),
          "all linear layers got an adapter, the head included; look at the last part of the path: is it in names?"),
    Wrong("alpha instead of alpha / r", lambda *a: _inject(*a, scale=lambda alpha, rank: alpha),
          "`add` takes the scale, and the scale is alpha / rank"),
    Wrong("B not zero", lambda *a: _inject(*a, start="filled"),
          "the output has moved before any training; leave B at zero, so that the adapter starts as nothing"),
], run=_run_inject)


# ------------------------------------------------------------------------------------------------------------ caught


def _update(rng):
    """An update that lies partly inside the factors' columns and rows: each wrong share is another number."""
    A, B = rng.normal(size=(2, 7)), rng.normal(size=(5, 2))
    return B @ rng.normal(size=(2, 2)) @ A + 0.6 * B @ rng.normal(size=(2, 7)) + rng.normal(size=(5, 7)), A, B


def _caught(delta, A, B):
    U, V = np.linalg.qr(B)[0], np.linalg.qr(A.T)[0]
    return np.sum((U.T @ delta @ V) ** 2) / np.sum(delta**2)


def _cosine(delta, A, B):
    return np.sum(delta * (B @ A)) ** 2 / (np.sum(delta**2) * np.sum((B @ A) ** 2))


CAUGHT = Exercise("08-caught", "The share of an update inside LoRA's subspace", _update, _caught, [
    Wrong("not made orthonormal", lambda delta, A, B: np.sum((B.T @ delta @ A.T) ** 2) / np.sum(delta**2),
          "B's columns are not of length 1 and not at right angles, so Bᵀ ΔW Aᵀ stretches; take the Q of a QR decomposition of each"),
    Wrong("lengths instead of squares", lambda delta, A, B: np.sqrt(_caught(delta, A, B)),
          "this is the ratio of the lengths; shares that add up (Pythagoras) are ratios of squares"),
    Wrong("columns alone", lambda delta, A, B: np.sum((np.linalg.qr(B)[0].T @ delta) ** 2) / np.sum(delta**2),
          "this is what lies in B's columns; it has to lie in A's rows as well: multiply by V from the right"),
    Wrong("rows alone", lambda delta, A, B: np.sum((delta @ np.linalg.qr(A.T)[0]) ** 2) / np.sum(delta**2),
          "this is what lies in A's rows; it has to lie in B's columns as well: multiply by Uᵀ from the left"),
    Wrong("not divided", lambda delta, A, B: _caught(delta, A, B) * np.sum(delta**2),
          "this is the part's own ‖ · ‖²; a share is divided by ‖ΔW‖²"),
    Wrong("the one matrix B A", _cosine,
          "this compares ΔW with the single matrix B A; the subspace holds every B G A, with any r × r matrix G"),
    Wrong("what is missed", lambda delta, A, B: 1 - _caught(delta, A, B),
          "this is the share outside; the share inside is 1 less it"),
])


# ------------------------------------------------------------------------------------------------------------- merge


def _adapters(rng):
    W = rng.normal(size=(5, 7))
    return W, [(rng.normal(size=(r, 7)), rng.normal(size=(5, r)), alpha) for r, alpha in ((2, 5.0), (3, 4.0))]


def _merge(W, adapters):
    return W + sum(alpha / A.shape[0] * B @ A for A, B, alpha in adapters)


def _merge_in_place(W, adapters):
    W += _merge(np.zeros_like(W), adapters)
    return W


def _run_merge(answer, W, adapters):
    """The merged matrix, and the caller's W, which must be as it was."""
    return {"the merged matrix": answer(W, adapters), "the caller's own W, afterwards": W}


MERGE = Exercise("08-merge", "Several adapters written into one weight", _adapters, _merge, [
    Wrong("alpha instead of alpha / r", lambda W, adapters: W + sum(alpha * B @ A for A, B, alpha in adapters),
          "each update is scaled by its own α/r; r is A.shape[0]"),
    Wrong("scale forgotten", lambda W, adapters: W + sum(B @ A for A, B, _ in adapters),
          "B A is added as it is; multiply each by its α/r"),
    Wrong("only the last adapter", lambda W, adapters: _merge(W, adapters[-1:]),
          "only the last adapter has arrived; does the loop start again from W each time?"),
    Wrong("one rank for all", lambda W, adapters: W + sum(alpha / adapters[0][0].shape[0] * B @ A for A, B, alpha in adapters),
          "the adapters have different ranks; read r from each A"),
    Wrong("W left out", lambda W, adapters: _merge(np.zeros_like(W), adapters),
          "this is the sum of the updates; merging adds it to W"),
    Wrong("written into W", _merge_in_place,
          "`W += …` writes into the caller's matrix, who may want it back; `W = W + …` makes a new one"),
], run=_run_merge)

EXERCISES = [COUNT, FORWARD, GRADIENTS, INJECT, CAUGHT, MERGE]

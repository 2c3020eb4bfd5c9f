"""The exercises of lesson 08: count, adapt, differentiate, inject, look into a subspace, merge.

What it replaces: reading PEFT's source to find out whether one has understood it.
How it works: see `course.exercises`. No wrong answer can hide: A *and* B are random and not zero,
α/r differs from case to case and is never whole (section 1 leaves an `s` behind that is 3), in is
not out, a shape comes twice. Layers are tensors, as in the lesson.
What it leaves out: dropout, biases, DoRA.
Where numerics differ: nowhere; any order of multiplication is right within the tolerance.
"""

from __future__ import annotations

import copy

import numpy as np

from . import Exercise, Wrong

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


def _tensor(rng, *shape):
    import torch

    return torch.tensor(rng.normal(size=shape))


def _layer(rng):
    n, inner, outer, rank = 6, 7, 5, int(rng.integers(2, 5))
    alpha = int(rng.integers(5, 12)) + 0.5
    return (
        _tensor(rng, n, inner),
        _tensor(rng, outer, inner),
        _tensor(rng, rank, inner),
        _tensor(rng, outer, rank),
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
    return x, _tensor(rng, x.shape[0], W.shape[0]), A, B, alpha


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


# ------------------------------------------------------------------------------------------- inject


def _model(seed: int):
    """Two blocks with linear layers of unequal sides and a head; weights from the seed.

    Two modules tempt: the linear layer `kv_proj`, whose name ends in another's, and `turn.v_proj`,
    which is no nn.Linear.
    """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (
                nn.Linear(6, 5),
                nn.Linear(6, 5),
                nn.Linear(5, 6),
            )

        def forward(self, x):
            return x + self.v_proj(torch.tanh(self.q_proj(x) * self.k_proj(x)))

    class Turn(nn.Module):  # x W instead of x Wᵀ, like GPT-2's Conv1D
        def __init__(self):
            super().__init__()
            self.in_features = self.out_features = 6
            self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), None

        def forward(self, x):
            return x @ self.weight

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)
            self.kv_proj, self.turn = nn.Linear(6, 6), nn.ModuleDict({"v_proj": Turn()})

        def forward(self, x):
            x = self.turn["v_proj"](self.kv_proj(x))
            for block in self.layers:
                x = block(x)
            return self.head(x)

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return Tiny(), torch.randn(4, 6)


def _run_inject(answer, seed, names, rank, alpha):
    """What can be seen of a model after the answer has worked on it, whatever its adapters are
    called.
    """
    model, x = _model(seed)
    before = model(x).detach()
    kinds = {path: type(module) for path, module in model.named_modules() if path}
    old = list(model.parameters())
    given = answer(model, names, rank, alpha)
    if given is None:
        return None
    after = model(x)
    new = [p for p in model.parameters() if not any(p is each for each in old)]
    learns = [p for p in model.parameters() if p.requires_grad]
    if after.requires_grad:
        after.sum().backward()
    reached = any(p.grad is not None and p.grad.any() for p in new)
    for parameter in learns:
        parameter.data.fill_(0.3)
    seen = {
        "what is returned": "the given model"
        if given is model
        else f"another {type(given).__name__}",
        "places with an adapter": ", ".join(
            path for path, kind in kinds.items() if type(model.get_submodule(path)) is not kind
        )
        or "none",
        "old weights that still learn": sum(p.numel() for p in old if p.requires_grad),
        "numbers put in": sum(p.numel() for p in new),
        "numbers that learn": sum(p.numel() for p in learns),
        "output moved before any training": bool((after - before).abs().max() > 1e-6),
        "a gradient reaches the adapters": "yes" if reached else "no",
        "output once the adapters are filled with 0.3": model(x).detach().numpy(),
    }
    return seen if given is model else dict.fromkeys(seen, seen["what is returned"])


def _inject(model, names, rank, alpha, *, freeze=True, wanted=None, whole=False):
    """The reference, and by its switches ways to get it wrong. wanted: (path, module, names) ->
    whether it gets an adapter.
    """
    from torch import nn

    from ...lora.layer import LoRALinear

    if freeze:
        model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        parent, _, name = path.rpartition(".")
        if (
            wanted(path, module, names)
            if wanted
            else name in names and isinstance(module, nn.Linear)
        ):
            layer = LoRALinear(module)
            layer.add("default", rank, alpha / rank)
            setattr(*(model, path) if whole else (model.get_submodule(parent), name), layer)
    return model


def _inject_spoilt(spoil, model, names, rank, alpha):
    """Like the reference, but then each adapted layer is spoilt by spoil(layer, alpha)."""
    for layer in [
        module
        for module in _inject(model, names, rank, alpha).modules()
        if hasattr(module, "lora_A")
    ]:
        spoil(layer, alpha)
    return model


def _is_linear(module) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear)


def _inject_inputs(rng):
    return (
        int(rng.integers(1000)),
        [["q_proj", "v_proj"], ["v_proj"], ["k_proj", "q_proj"]][int(rng.integers(3))],
        int(rng.integers(2, 5)),
        7.0,
    )


INJECT = Exercise(
    "08-inject",
    "Freeze a model and put adapters into it",
    _inject_inputs,
    _inject,
    [
        Wrong(
            "the base not frozen",
            lambda *a: _inject(*a, freeze=False),
            "layers without an adapter still learn; call model.requires_grad_(False) before "
            "you put anything in",
        ),
        Wrong(
            "frozen after injecting",
            lambda *a: _inject(*a).requires_grad_(False),
            "the adapters are frozen, too, so nothing learns; freeze first, then inject",
        ),
        Wrong(
            "every linear layer",
            lambda *a: _inject(*a, wanted=lambda path, module, names: _is_linear(module)),
            "all linear layers got an adapter, the head included; look at the last part of "
            "the path: is it in names?",
        ),
        Wrong(
            "alpha instead of alpha / r",
            lambda *a: _inject_spoilt(lambda layer, alpha: layer.scale.update(default=alpha), *a),
            "`add` takes the scale, and the scale is alpha / rank",
        ),
        Wrong(
            "B not zero",
            lambda *a: _inject_spoilt(
                lambda layer, alpha: layer.lora_B["default"].data.fill_(0.1), *a
            ),
            "the output has moved before any training; leave B at zero, so that the adapter "
            "starts as nothing",
        ),
        Wrong(
            "A zero as well",
            lambda *a: _inject_spoilt(
                lambda layer, alpha: layer.lora_A["default"].data.zero_(), *a
            ),
            "A and B are both zero, the trap of section 3: neither will ever get a gradient; "
            "A starts random",
        ),
        Wrong(
            "part of a name",
            lambda *a: _inject(
                *a,
                wanted=lambda path, module, names: (
                    _is_linear(module) and path.endswith(tuple(names))
                ),
            ),
            "`kv_proj` got an adapter, too, for its name ends in `v_proj`; compare the whole "
            "last part of the path",
        ),
        Wrong(
            "whatever bears the name",
            lambda *a: _inject(
                *a, wanted=lambda path, module, names: path.rpartition(".")[2] in names
            ),
            "a module that is no nn.Linear has such a name, too; ask isinstance(module, "
            "torch.nn.Linear) as well",
        ),
        Wrong(
            "the whole path as a name",
            lambda *a: _inject(*a, whole=True),
            "setattr(model, path, …) sets no layer inside the blocks; set the last part of "
            "the path, on model.get_submodule(parent)",
        ),
        Wrong(
            "no adapter in the layer",
            lambda *a: _inject_spoilt(lambda layer, alpha: layer.remove("default"), *a),
            'LoRALinear(linear) alone holds no A and no B; call its .add("default", rank, scale)',
        ),
        Wrong(
            "a copy",
            lambda model, *a: _inject(copy.deepcopy(model), *a),
            "you changed a copy; work in place, so that whoever holds the model has the "
            "adapters in it",
        ),
    ],
    run=_run_inject,
)


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
    return _tensor(rng, 5, 7), [
        (_tensor(rng, r, 7), _tensor(rng, 5, r), alpha) for r, alpha in ((2, 5.0), (3, 4.0))
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


EXERCISES = [COUNT, FORWARD, GRADIENTS, INJECT, CAUGHT, MERGE]

"""Adapters put into a model, and what can be seen of it afterwards."""

from __future__ import annotations

import copy

from .. import Exercise, Wrong


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

    from ....lora.layer import LoRALinear

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

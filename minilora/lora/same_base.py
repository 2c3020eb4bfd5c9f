"""Does an adapter's file belong to this base? A few numbers of the base tell."""

from __future__ import annotations

import json
import math

import torch
from torch import nn

from ..errors import MiniloraError
from .adapters import adapters, low_rank_layers
from .config import PREFIX, AdapterConfig
from .starts import LOFTQ_BASE, SPLITS, packed_form
from .targets import is_linear, original_modules

SAMPLE_KEY = "minilora_base"

LOFTQ_KEY = "minilora_loftq_base"


def loftq_form(model: nn.Module, name: str, config: AdapterConfig) -> dict | None:
    """How the base under an adapter from LoftQ's start is quantized; None for other starts and for
    a base that LoftQ decoded in place.
    """
    layers = low_rank_layers(model, name).values() if config.init.startswith("loftq") else ()
    return next((packed_form(layer.original) for layer in layers), None)


def over_quantized(
    config: AdapterConfig, targets: list[nn.Module], metadata: dict, source: str
) -> bool:
    """Whether the targets hold LoftQ's Q already. Raises MiniloraError if they hold something else
    than what the adapter repairs.
    """
    stored = metadata.get(LOFTQ_KEY)
    wanted: dict | None = (
        json.loads(stored) if stored else LOFTQ_BASE if config.init == "loftq" else None
    )
    forms = [packed_form(module) for module in targets]
    if wanted is None or (
        not stored and not any(forms)
    ):  # a base in floating point is split anew, by the same steps
        return False
    for form in forms:
        if form != wanted:
            have = f"in {describe(form)}" if form else "not quantized"
            raise MiniloraError(
                f"{source} repairs (LoftQ) a base in {describe(wanted)}, and this one is {have}; "
                + (
                    "quantize it so before load_adapter"
                    if stored
                    else "load it unquantized, LoftQ does the rest (--code none)"
                )
            )
    return True


def describe(form: dict) -> str:
    block = f" blocks of {form['block']}, double={form['double']}" if "block" in form else ""
    return form["code"] + block


def check_same_start(
    model: nn.Module, config: AdapterConfig, name: str, metadata: dict, source: str
) -> None:
    """Raise MiniloraError if the file's numbers belong to another split of the base than the one
    adapter `name` has made.
    """
    there, stored = adapters(model)[name], metadata.get(LOFTQ_KEY)
    split = [
        init if init.startswith(SPLITS) else "plain"
        for init in (there.init, "loftq" if stored else config.init)
    ]
    if split[0] != split[1] or (json.loads(stored) if stored else None) != loftq_form(
        model, name, there
    ):
        raise MiniloraError(
            f"{source} began as {split[1]}, adapter {name!r} as {split[0]} over its own base; "
            "load it under another name on a fresh base"
        )


def check_same_scale(model: nn.Module, config: AdapterConfig, name: str, source: str) -> None:
    """Raise MiniloraError if these weights would be multiplied by another α/r than the one they
    were trained with.
    """
    for path, layer in low_rank_layers(model, name).items():
        if layer.scale[name] != config.scale_of(path):
            raise MiniloraError(
                f"{source} was trained with alpha {config.alpha_of(path):g} and rank "
                f"{config.rank_of(path)} at {path}, which scale by "
                f"{config.scale_of(path):g}; adapter {name!r} scales by "
                f"{layer.scale[name]:g}, so load it under another name"
            )


def without_base(model: nn.Module, state: dict, source: str) -> dict:
    """`state` without the copies of base weights that PEFT adds for adapted embeddings and heads,
    after comparing those.
    """
    modules, rest = original_modules(model), {}
    for key, tensor in state.items():
        path, _, last = key.removeprefix(PREFIX).rpartition(".base_layer.")
        base = getattr(modules.get(path), last, None) if path else None
        if base is None:
            rest[key] = tensor
        elif base.shape != tensor.shape or not torch.allclose(
            base.detach().float().cpu(), tensor.float(), rtol=0.01, atol=1e-6
        ):
            raise MiniloraError(
                f"{source}: {key} differs from the model's own {path}; load the adapter on "
                "the base it was made for"
            )
    return rest


def base_sample(model: nn.Module) -> dict[str, list]:
    """A few numbers of the base that neither adapters nor quantization change: name -> [shape,
    values], from embeddings and norms.
    """
    plain = {
        f"{path}.{key}": value
        for path, module in original_modules(model).items()
        if not is_linear(module)
        for key, value in module.named_parameters(recurse=False)
        if value.is_floating_point() and value.device.type != "meta"
    }
    chosen = sorted(plain, key=lambda key: -plain[key].numel())[:4]
    sample = {}
    for key in sorted(chosen):
        flat = plain[key].detach().flatten()
        places = torch.linspace(0, flat.numel() - 1, 16, dtype=torch.float64).long()
        sample[key] = [
            list(plain[key].shape),
            [round(v, 8) for v in flat[places.to(flat.device)].tolist()],
        ]
    return sample


def compare_base(ours: dict, stored: str | None, source: str) -> None:
    """Raise MiniloraError if the sample stored with an adapter is of another base. Files without a
    sample (PEFT's) pass.
    """
    for key, (shape, values) in json.loads(stored or "{}").items():
        same = key in ours and ours[key][0] == shape
        if not same or not all(
            math.isclose(a, b, rel_tol=0.01, abs_tol=1e-6) for a, b in zip(ours[key][1], values)
        ):
            raise MiniloraError(
                f"{source} was trained on another base: {key} differs from the model's; load "
                "it on the base it was made for"
            )

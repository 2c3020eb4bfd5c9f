"""An adapter's tensors under the names that they have in PEFT's files.

How it works: `base_model.model.` + the module's path + `.lora_A.weight` (or lora_B.weight,
lora_embedding_A, lora_embedding_B, lora_magnitude_vector; full modules as `.weight`); the adapter's
own name is left out. Every tensor must be there, of the right shape and finite, and none may be
left over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import MiniloraError
from .adapters import adapted_layers, low_rank_layers, need_adapter
from .config import PREFIX, AdapterConfig
from .layer import expected_shapes
from .targets import full_paths, match_targets, original_modules


def adapter_state(model: nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
    """Adapter `name` as PEFT's file has it: key -> tensor, on the CPU, detached copies."""
    need_adapter(model, name)
    return {
        f"{PREFIX}{path}.{key}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for path, layer in adapted_layers(model).items()
        for key, tensor in layer.tensors(name).items()
    }


@torch.no_grad()
def set_adapter_state(
    model: nn.Module, state: Mapping[str, torch.Tensor], name: str = "default"
) -> nn.Module:
    """Copy `state` (as adapter_state gives it) into adapter `name`. Raises MiniloraError unless it
    fits exactly; nothing is copied then.
    """
    need_adapter(model, name)
    places = {
        f"{PREFIX}{path}.{key}": tensor
        for path, layer in adapted_layers(model).items()
        for key, tensor in layer.tensors(name).items()
    }
    check_state(
        state, {key: tuple(tensor.shape) for key, tensor in places.items()}, f"adapter {name!r}"
    )
    for key, tensor in places.items():
        tensor.copy_(state[key])
    return model


def expected_state(model: nn.Module, config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Key -> shape of what an adapter of these settings has on `model`, which does not carry it
    yet.
    """
    modules = original_modules(model)
    paths = match_targets(model, config.targets, config.full_modules, strict=False)
    expected = {
        f"{PREFIX}{path}.{key}": shape
        for path in paths
        for key, shape in expected_shapes(modules[path], config.rank_of(path), config.dora).items()
    }
    for path in full_paths(model, config.full_modules):
        expected |= {
            f"{PREFIX}{path}.{key}": tuple(value.shape)
            for key, value in modules[path].state_dict().items()
        }
    return expected


def check_state(
    state: Mapping[str, torch.Tensor], expected: Mapping[str, tuple], source: str
) -> None:
    """Exactly the expected keys, each of its shape and finite, or a MiniloraError that names the
    first that is not.
    """
    missing, unexpected = (
        sorted(expected.keys() - state.keys()),
        sorted(state.keys() - expected.keys()),
    )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MiniloraError(
            f"{source} lacks {missing[0]}{more}; it was made for another model or other "
            "targets, load it on its own base"
        )
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise MiniloraError(
            f"{source} holds {unexpected[0]}{more}, for which the model has no place; load it "
            "on the base it was made for"
        )
    for key, shape in expected.items():
        if tuple(state[key].shape) != shape:
            raise MiniloraError(
                f"{source}: {key} has shape {tuple(state[key].shape)}, the model needs {shape}; "
                "rank in adapter_config.json or base model do not belong to these weights"
            )
        check_finite(key, state[key], source)


def check_finite(key: str, tensor: torch.Tensor, source: str) -> None:
    # in 32 bits: what an adapter is kept in, and 8-bit floats cannot be asked
    if not tensor.is_floating_point() or not torch.isfinite(tensor.float()).all():
        raise MiniloraError(
            f"{source}: {key} holds NaN, infinity or no floating-point numbers; train or "
            "fetch the adapter again"
        )


def pissa_as_lora(model: nn.Module, name: str, settings: dict, state: dict) -> tuple[dict, dict]:
    """The same change of the untouched base: s B A − s B₀ A₀ = s [B, −B₀] [A; A₀], of rank 2r.
    Returns settings and state.
    """
    if settings["use_dora"]:
        raise MiniloraError(
            f"adapter {name!r} has DoRA magnitudes on a PiSSA base; save it without as_lora"
        )
    state = dict(state)
    for path, layer in low_rank_layers(model, name).items():
        A, B = (f"{PREFIX}{path}.{key}" for key in layer.keys)
        A0, B0 = (tensor.cpu() for tensor in layer.start[name])  # (r, in), (out, r)
        state |= {A: torch.cat([state[A], A0]), B: torch.cat([state[B], -B0], dim=1)}
    grow = math.sqrt(2) if settings["use_rslora"] else 2  # keeps α/r, or α/√r, as it was
    changed = {
        "init_lora_weights": True,
        "r": 2 * settings["r"],
        "lora_alpha": grow * settings["lora_alpha"],
    }
    changed["rank_pattern"] = {key: 2 * rank for key, rank in settings["rank_pattern"].items()}
    changed["alpha_pattern"] = {
        key: grow * alpha for key, alpha in settings["alpha_pattern"].items()
    }
    return settings | changed, state

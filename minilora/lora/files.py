"""Adapters on disk, in PEFT's own folder: adapter_config.json and adapter_model.safetensors.

What it replaces: PeftModel.save_pretrained and PeftModel.from_pretrained.
How it works: each tensor is called `base_model.model.` + the module's path + `.lora_A.weight` (or
lora_B.weight, lora_embedding_A, lora_embedding_B, lora_magnitude_vector; full modules as
`.weight`), the adapter's name is left out. Loading is strict and looks before it touches: every
tensor must be there, of the right shape and finite, and none may be left over. A sample of the
base's weights goes into the file's metadata, so that an adapter for another base of the same shape
is refused too, and so is a base that the adapter is merged into already (merged_twice.py). PiSSA's and
LoftQ's split of the base is repeated on loading; an adapter that LoftQ began over a quantized base
says there how it was quantized, and goes on no other.
What it leaves out: pickled adapters (.bin), PEFT's fields for methods that minilora does not have
(named in the error).
Where numerics differ: nowhere; tensors are stored as they are.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import MiniloraError
from ..system.files import atomic_folder, sort_metadata
from .adapters import (
    adapted_layers,
    adapters,
    add_adapter,
    need_adapter,
    refuse_merged,
    use_adapter,
)
from .config import PREFIX
from .layer import expected_shapes
from .merged_twice import MERGED_KEY, merged_sample, refuse_twice
from .peft_config import from_peft, to_peft
from .same_base import (
    LOFTQ_KEY,
    SAMPLE_KEY,
    base_sample,
    check_same_scale,
    check_same_start,
    compare_base,
    loftq_form,
    over_quantized,
    without_base,
)
from .targets import full_paths, match_targets, original_modules

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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
    if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
        raise MiniloraError(
            f"{source}: {key} holds NaN, infinity or no floating-point numbers; train or "
            "fetch the adapter again"
        )


def save_adapter(
    model: nn.Module,
    path: str | os.PathLike,
    name: str = "default",
    base_model: str | None = None,
    as_lora: bool = False,
) -> None:
    """Write adapter `name` into folder `path`, as PEFT would. `base_model` is the base's name or
    folder, for the record.

    as_lora: write a PiSSA adapter as an ordinary one of twice the rank, for the base as it was
    before PiSSA changed it (always so for pissa_niter_N, whose random split could not be repeated).
    Raises MiniloraError for an unknown name, NaN in the adapter or a folder that cannot be written;
    nothing is half-written.
    """
    from safetensors.torch import save_file

    config, state = need_adapter(model, name), adapter_state(model, name)
    for key, tensor in state.items():
        check_finite(key, tensor, f"adapter {name!r}")
    settings = to_peft(model, name, config, base_model)
    if config.init.startswith("pissa") and (as_lora or config.init != "pissa"):
        settings, state = pissa_as_lora(model, name, settings, state)
    metadata = {"format": "pt", SAMPLE_KEY: json.dumps(base_sample(model))}
    merged = merged_sample(adapted_layers(model), name, config)
    if merged:
        metadata[MERGED_KEY] = merged
    form = loftq_form(model, name, config)
    if form:
        metadata[LOFTQ_KEY] = json.dumps(form)
    with atomic_folder(path) as folder:
        save_file(state, folder / WEIGHTS, metadata=metadata)
        # the library draws the order of two entries anew each time; equal adapters must be equal
        # bytes
        sort_metadata(folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def pissa_as_lora(model: nn.Module, name: str, settings: dict, state: dict) -> tuple[dict, dict]:
    """The same change of the untouched base: s B A − s B₀ A₀ = s [B, −B₀] [A; A₀], of rank 2r.
    Returns settings and state.
    """
    if settings["use_dora"]:
        raise MiniloraError(
            f"adapter {name!r} has DoRA magnitudes on a PiSSA base; save it without as_lora"
        )
    state = dict(state)
    for path, layer in adapted_layers(model).items():
        if layer.has(name) and not layer.full:
            A, B = (f"{PREFIX}{path}.{key}" for key in layer.keys)
            A0, B0 = (tensor.cpu() for tensor in layer.start[name])
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


def save_adapters(model: nn.Module, path: str | os.PathLike, base_model: str | None = None) -> None:
    """Write every adapter as PEFT lays them out: "default" in `path` itself, each other in the
    subfolder of its name.
    """
    for name in adapters(model):
        save_adapter(
            model, Path(path) if name == "default" else Path(path) / name, name, base_model
        )


def load_adapter(model: nn.Module, path: str | os.PathLike, name: str = "default") -> nn.Module:
    """Put the adapter in folder `path` on the model under `name` and make it the active, trainable
    one. In place.

    Reads what save_adapter or PEFT wrote. If the model has an adapter of that name already, its
    weights are replaced. Raises MiniloraError, before anything is touched, for missing or broken
    files and for tensors that are missing, left over, of the wrong shape, not finite, or made for
    another base, and for a model that the adapter is merged into already.
    """
    folder = find_folder(path, name)
    config = from_peft(read_json(folder / CONFIG), str(folder / CONFIG))
    state, metadata = read_tensors(folder / WEIGHTS)
    source = str(folder / WEIGHTS)
    state = without_base(model, state, source)
    if name in adapters(model):
        check_same_scale(model, config, name, source)
        check_same_start(model, config, name, metadata, source)
        refuse_merged(model, "load an adapter")  # a merged weight would go on holding the old one
        return use_adapter(set_adapter_state(model, state, name), name)
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
    check_state(state, expected, source)
    compare_base(base_sample(model), metadata.get(SAMPLE_KEY), source)
    refuse_twice(modules, metadata.get(MERGED_KEY), source)
    quantized = over_quantized(config, [modules[path] for path in paths], metadata, source)
    add_adapter(
        model,
        dataclasses.replace(config, init="kaiming") if quantized else config,
        name,
        strict=False,
    )
    if quantized:
        model.lora_adapters[name] = dataclasses.replace(config, init="loftq")
    return set_adapter_state(model, state, name)


def find_folder(path: str | os.PathLike, name: str) -> Path:
    """`path` itself, or its subfolder `name` if only that holds an adapter."""
    path = Path(path)
    for folder in (path, path / name):
        if (folder / CONFIG).is_file():
            return folder
    if not path.is_dir():
        raise MiniloraError(
            f"there is no adapter folder {path}; give the folder that holds {CONFIG} and {WEIGHTS}"
        )
    inside = sorted(file.parent.name for file in path.glob(f"*/{CONFIG}"))
    hint = f"; it has adapters in its subfolders {', '.join(inside)}" if inside else ""
    raise MiniloraError(
        f"{path} holds no {CONFIG}{hint}; give the folder that save_adapter or PEFT wrote"
    )


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MiniloraError(
            f"cannot read {path} ({error}); it must be the JSON that save_adapter or PEFT wrote"
        ) from None


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The file's tensors and its metadata. Raises MiniloraError if it is missing, cut short or no
    safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        pickled = (
            " (adapter_model.bin is a pickle, which is not read)"
            if path.with_suffix(".bin").is_file()
            else ""
        )
        raise MiniloraError(f"there is no {path}{pickled}; save the adapter again as safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise MiniloraError(
            f"cannot read {path} ({error}); the file is cut short or no safetensors file, "
            "save it again"
        ) from None

"""Adapters on disk, in PEFT's own folder: adapter_config.json and adapter_model.safetensors.

What it replaces: PeftModel.save_pretrained and PeftModel.from_pretrained.
How it works: the tensors' names and shapes are those of state.py, the settings are translated by
peft_config.py. Loading is strict and looks before it touches. A sample of the base's weights goes
into the file's metadata, so that an adapter for another base of the same shape is refused
(same_base.py), and so is a base that the adapter is merged into already (merged_twice.py). PiSSA's
and LoftQ's split of the base is repeated on loading; an adapter that LoftQ began over a quantized
base says there how it was quantized, and goes on no other.
What it leaves out: pickled adapters (.bin), PEFT's fields for methods that minilora does not have
(named in the error).
"""

from __future__ import annotations

import dataclasses
import json
import os
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
from .state import (
    adapter_state,
    check_finite,
    check_state,
    expected_state,
    pissa_as_lora,
    set_adapter_state,
)
from .targets import match_targets, original_modules

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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
    check_state(state, expected_state(model, config), source)
    modules = original_modules(model)
    targets = match_targets(model, config.targets, config.full_modules, strict=False)
    compare_base(base_sample(model), metadata.get(SAMPLE_KEY), source)
    refuse_twice(modules, metadata.get(MERGED_KEY), source)
    quantized = over_quantized(config, [modules[path] for path in targets], metadata, source)
    add_adapter(
        model,
        dataclasses.replace(config, init="kaiming") if quantized else config,
        name,
        strict=False,
    )
    if quantized:
        adapters(model)[name] = dataclasses.replace(config, init="loftq")
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

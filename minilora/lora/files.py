"""Adapters on disk, in PEFT's own folder: adapter_config.json and adapter_model.safetensors.

What it replaces: PeftModel.save_pretrained and PeftModel.from_pretrained.
How it works: the tensors' names and shapes are those of state.py, the settings are translated by
peft_config.py. Loading is strict and looks before it touches (folder.py). A sample of the base's
weights goes into the file's metadata, so that an adapter for another base of the same shape is
refused (same_base.py), and so is a base that the adapter is merged into already (merged_twice.py).
PiSSA's and LoftQ's split of the base is repeated on loading; an adapter that LoftQ began over a
quantized base says there how it was quantized, and goes on no other.
What it leaves out: pickled adapters (.bin), PEFT's fields for methods that minilora does not have
(named in the error).
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from pathlib import Path

from torch import nn

from ..errors import MiniloraWarning
from ..system.files import atomic_folder, sort_metadata
from .adapters import (
    adapted_layers,
    adapters,
    add_adapter,
    need_adapter,
    refuse_merged,
    use_adapter,
)
from .copies import brought_state, check_copies, put_copies
from .folder import CONFIG, WEIGHTS, Stored, read_adapter
from .merged_twice import MERGED_KEY, merged_sample, refuse_twice
from .peft_config import to_peft
from .same_base import (
    LOFTQ_KEY,
    SAMPLE_KEY,
    SCALE_FIELDS,
    SCALE_KEY,
    base_sample,
    changed_scale,
    check_same_scale,
    check_same_start,
    compare_base,
    loftq_form,
    over_quantized,
)
from .state import adapter_state, check_finite, pissa_as_lora, set_adapter_state
from .targets import match_targets, original_modules


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
    state |= brought_state(model, name)
    metadata = {
        "format": "pt",
        SAMPLE_KEY: json.dumps(base_sample(model)),
        SCALE_KEY: json.dumps({field: settings[field] for field in SCALE_FIELDS}),
    }
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

    Reads what save_adapter, PEFT or mlx-lm wrote. If the model has an adapter of that name already,
    its weights are replaced. Weights of the base that the file brings take their places. Raises
    MiniloraError, before anything is touched, for missing or broken files and for tensors that are
    missing, left over, of the wrong shape, not finite, or made for another base, and for a model
    that the adapter is merged into already.
    """
    stored = read_adapter(model, path, name)
    config, metadata, source = stored.config, stored.metadata, stored.source
    check_copies(model, stored.copies, name, source)
    edited = changed_scale(config, metadata, str(Path(source).with_name(CONFIG)))
    if name in adapters(model):
        check_same_scale(model, config, name, source)
        check_same_start(model, config, name, metadata, source)
        refuse_merged(model, "load an adapter")  # a merged weight would go on holding the old one
        use_adapter(set_adapter_state(model, stored.state, name), name)
    else:
        place_stored(model, stored, name)
    put_copies(model, stored.copies, source)
    if edited:
        warnings.warn(edited, MiniloraWarning, stacklevel=2)
    return model


def place_stored(model: nn.Module, stored: Stored, name: str) -> None:
    """Add `stored` as a new adapter, if the base is the one that it was made for."""
    config, metadata, source = stored.config, stored.metadata, stored.source
    modules = original_modules(model)
    targets = match_targets(model, config.targets, config.full_modules, strict=False)
    compare_base(model, metadata.get(SAMPLE_KEY), source)
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
    set_adapter_state(model, stored.state, name)

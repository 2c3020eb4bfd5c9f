"""What was trained by transformers and PEFT, written to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .loading import libraries

if TYPE_CHECKING:
    from torch import nn


def save_adapter(model: nn.Module, path: str | Path, base_model: str | None = None) -> None:
    """Write the adapter as PEFT does: adapter_config.json and adapter_model.safetensors, both or
    neither.
    """
    from ..system.files import atomic_folder

    model.peft_config["default"].base_model_name_or_path = base_model
    with atomic_folder(path) as folder, libraries():
        # "auto" would ask the hub for the base's vocabulary
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a form to be filled in


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write transformers' model with all its weights as a folder, whole or not at all."""
    from ..system.files import atomic_folder

    # Once an end was added to it, transformers refuses to save what many folders hold, such as a
    # temperature without do_sample; what it reads is written back as it is.
    kept = model.generation_config
    with atomic_folder(path) as folder, libraries():
        try:
            model.generation_config = type(kept)()
            model.save_pretrained(folder, max_shard_size="50GB")
        finally:
            model.generation_config = kept
        file = folder / "generation_config.json"
        kept.to_json_file(file, use_diff=True, keys_to_pop=["compile_config"])

"""An adapter's folder, read for one model, before anything is touched.

What it replaces: `peft.PeftConfig.from_pretrained` and `load_peft_weights`.
How it works: adapter_config.json is checked against a schema (peft_config.py; mlx.py for mlx-lm's),
the tensors get PEFT's names (keys.py), and what the file brings of the base is set apart
(copies.py). What comes out belongs to the model in name and shape, or there is an error in one line
that names the file.
What it leaves out: pickles (adapter_model.bin could run code), and files of other trainers. The
error says which files are there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from ..errors import MiniloraError
from ..system.json_files import read_json
from . import mlx
from .config import PREFIX, AdapterConfig
from .copies import Copies, split_copies
from .keys import as_peft_spells
from .patterns import fullmatch
from .peft_config import from_peft
from .state import check_state, expected_state
from .targets import match_targets, original_modules
from .tied import ENDS, tied_ends

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

TO_SAFETENSORS = (
    'if you trust it, convert it there: python -c "import torch; from safetensors.torch import '
    "save_file; save_file(torch.load('adapter_model.bin', weights_only=True), "
    "'adapter_model.safetensors')\""
)


@dataclass(frozen=True)
class Stored:
    """An adapter's folder: its settings, its tensors under PEFT's names, the weights of the base
    that it brings, the file's metadata and the file itself.
    """

    config: AdapterConfig
    state: dict[str, Tensor]
    copies: Copies
    metadata: dict[str, str]
    source: str


def read_adapter(model: nn.Module, path: str | os.PathLike, name: str = "default") -> Stored:
    """The adapter in folder `path` as it goes on `model`. Raises MiniloraError for files that are
    missing or broken, settings that minilora does not have, and tensors that do not fit.
    """
    folder = find_folder(path, name)
    try:
        return _read(model, folder)
    except MiniloraError as error:
        if str(folder) in str(error):
            raise
        raise MiniloraError(f"{folder / CONFIG}: {error}") from None


def _read(model: nn.Module, folder: Path) -> Stored:
    settings = read_json(
        folder / CONFIG, remedy="save the adapter again, or copy it from its source"
    )
    modules = original_modules(model)
    ends = tied_ends(modules)
    if mlx.is_mlx(settings):
        source = str(folder / mlx.WEIGHTS)
        state, metadata = read_tensors(folder / mlx.WEIGHTS)
        config, state = mlx.from_mlx(settings, state, modules, ends, str(folder / CONFIG))
    else:
        source = str(folder / WEIGHTS)
        config = from_peft(settings, str(folder / CONFIG))
        state, metadata = read_tensors(folder / WEIGHTS)
        state = as_peft_spells(state, modules, source)
        if ends and settings.get("ensure_weight_tying"):
            config, state = as_one(config, state, *ends)
    check_gathered(state, source)
    expected = expected_state(model, config)
    targets = match_targets(model, config.targets, config.full_modules, strict=False)
    state, copies = split_copies(model, state, expected, targets, source)
    check_state(state, expected, source)
    return Stored(config, state, copies, metadata, source)


def find_folder(path: str | os.PathLike, name: str) -> Path:
    """`path` itself, or its subfolder `name` if only that holds an adapter."""
    path = Path(path)
    for folder in (path, path / name):
        if (folder / CONFIG).is_file():
            return folder
    if path.is_file():
        raise MiniloraError(f"{path} is a file; give the folder that holds it and {CONFIG}")
    if not path.is_dir():
        raise MiniloraError(
            f"there is no adapter folder {path}; give the folder that holds {CONFIG} and {WEIGHTS}"
        )
    inside = sorted(file.parent.name for file in path.glob(f"*/{CONFIG}"))
    hint = f"; it has adapters in its subfolders {', '.join(inside[:5])}" if inside else ""
    if (path / mlx.WEIGHTS).is_file():
        hint += f"; mlx-lm's {mlx.WEIGHTS} is there, but not the scale that goes with it"
    raise MiniloraError(
        f"{path} holds no {CONFIG}{hint}; give "
        + (
            f"one of them, such as {path / inside[0]}"
            if inside
            else "the folder that save_adapter or PEFT wrote"
        )
    )


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The file's tensors and its metadata. Raises MiniloraError if it is missing, cut short or no
    safetensors file.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise MiniloraError(f"there is no {path}{_instead(path.parent)}")
    try:
        with open(path, "rb") as file:
            if file.read(24) == b"version https://git-lfs.":
                raise MiniloraError(
                    f"{path} is a pointer of git-lfs, not the weights; run `git lfs pull` there"
                )
        with safe_open(path, framework="pt") as tensors:
            return (
                {key: tensors.get_tensor(key) for key in tensors.keys()},
                tensors.metadata() or {},
            )
    except MiniloraError:
        raise
    except Exception as error:  # the library has its own, and torch's for types it does not know
        raise MiniloraError(
            f"cannot read {path} ({' '.join(str(error).split())[:200]}); the file is cut short or "
            "no safetensors file, save it again"
        ) from None


def _instead(folder: Path) -> str:
    """What a folder without the weights holds instead, and what can be done."""
    if (folder / "adapter_model.bin").is_file():
        return f"; adapter_model.bin is a pickle, which is not read; {TO_SAFETENSORS}"
    kinds = (".safetensors", ".bin", ".npz", ".pt", ".pth", ".gguf")
    there = sorted(file.name for file in folder.glob("*") if file.suffix in kinds)
    listed = f" (there is {', '.join(there[:5])})" if there else ""
    return f"{listed}; save the adapter again as safetensors"


def check_gathered(state: Mapping[str, Tensor], source: str) -> None:
    """Raise MiniloraError for tensors without a number, which a sharded run leaves."""
    for key, tensor in state.items():
        if tensor.numel() == 0:
            raise MiniloraError(
                f"{source}: {key} is empty, of shape {list(tensor.shape)}: it was saved on one of "
                "several devices (DeepSpeed ZeRO-3, FSDP) without gathering; save it again with "
                "stage3_gather_16bit_weights_on_model_save, or gather the shards first "
                "(zero_to_fp32.py)"
            )


def as_one(
    config: AdapterConfig, state: dict[str, Tensor], table: str, head: str
) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """PEFT's ensure_weight_tying on a tied base: embedding and head both carry the adapter, with
    the same numbers. PEFT copies the head's last, so they count where the file's two differ.
    """
    at_table, at_head = f"{PREFIX}{table}.", f"{PREFIX}{head}."
    if any(name.rpartition(".")[2] in ENDS for name in config.full_modules):
        both = [*config.full_modules, table, head]
        config = replace(config, full_modules=list(dict.fromkeys(both)))
        pairs = {"weight": "weight"}
    elif _aims_at_ends(config.targets):
        targets = config.targets
        if isinstance(targets, str):
            targets = rf"(?:{targets})|{table}|{head}"
        else:
            targets = list(dict.fromkeys([*targets, table, head]))
        config = replace(config, targets=targets)
        pairs = {"lora_embedding_A": "lora_B.weight", "lora_embedding_B": "lora_A.weight"}
    else:
        return config, state
    for ours, theirs in pairs.items():
        if at_head + theirs in state and at_table + ours in state:
            tensor = state[at_head + theirs]
            tensor = tensor if ours == "weight" else tensor.T
            if tensor.shape == state[at_table + ours].shape:
                state = state | {at_table + ours: tensor}
    return config, state


def _aims_at_ends(targets: str | Sequence[str]) -> bool:
    """Whether targets name an embedding or a head, as PEFT asks it: by their bare names."""
    if isinstance(targets, str):
        return targets != "all" and any(fullmatch(targets, end) for end in ENDS)
    return any(name.rpartition(".")[2] in ENDS for name in targets)

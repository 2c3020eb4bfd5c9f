"""Llama folders in and out: config.json beside safetensors, as Hugging Face lays them out.

What it replaces: `from_pretrained` and `save_pretrained` of transformers, for Llama folders on the
disk.
How it works: the configuration says which tensors must be there and their shapes; every file's list
of tensors (`weight_files.py`) is compared with it before any weight is read. Then tensor by tensor
is read, cast and checked for NaN, so the peak is one model plus one tensor. Writing goes to a
temporary folder first and is swapped in when it is complete.
What it leaves out: pickled weights (pytorch_model.bin can run code), quantized folders, downloads,
families that are no Llamas (`families.py` knows those that are).
Where numerics differ: nowhere; a cast rounds to the nearest as torch does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import MiniloraError, printed
from ..quantize.bnb_format import quantized_names
from ..system.files import atomic_folder
from ..system.json_files import read_json
from . import generation_config
from .config import AGAIN, Config
from .rope import RotaryTable
from .weight_files import (
    INDEX,
    SINGLE,
    Stored,
    list_tensors,
    model_folder,
    unreadable,
    weight_files,
)

Model = TypeVar("Model", bound=nn.Module)

LAYER = re.compile(r"model\.layers\.(\d+)\.")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# A format of one byte is read as it is: whoever scales it says so in config.json, which is refused.
FLOATS = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


def read_config(path: str | PathLike) -> Config:
    """The Config in a folder's config.json. Raises MiniloraError naming the folder or file."""
    file = model_folder(path) / "config.json"
    if not os.path.isfile(file):
        raise MiniloraError(
            f"no config.json in {path}; give a folder in Hugging Face's layout (config.json "
            f"and {SINGLE})"
        )
    return Config.from_hf(read_json(file, remedy=AGAIN), str(file))


def _few(names: list[str]) -> str:
    names = [printed(name, 100) for name in sorted(names)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _hint(missing: list[str], extra: list[str]) -> str:
    """What a folder is whose tensors are not the model's."""
    if any("lora_" in key for key in extra):
        return "these are an adapter's weights; give them as --adapter over their own base"
    if missing == [HEAD] and any(key.startswith("score.") for key in extra):
        return "it is a classifier, which has no head for words; take the language model"
    if missing == [HEAD]:
        return f"if its head is its embedding, set tie_word_embeddings there to true, or {AGAIN}"
    return f"config.json describes another model, or {AGAIN}"


def _compare(folder: Path, expected: dict[str, Tensor], found: dict[str, Stored]) -> None:
    """Raise MiniloraError unless the tensors found are those expected, in name and shape."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    if missing:
        instead = f" (there is {_few(extra)} instead)" if extra else ""
        raise MiniloraError(
            f"{folder}: the weights lack {_few(missing)}{instead}; {_hint(missing, extra)}"
        )
    if extra:
        raise MiniloraError(
            f"{found[extra[0]].file}: unexpected {_few(extra)}; it is no plain Llama, or "
            "config.json is another model's"
        )
    for key, stored in found.items():
        _require_shape(key, stored, tuple(expected[key].shape))


def _require_shape(key: str, stored: Stored, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise MiniloraError(
            f"{stored.file}: {key} has shape {list(stored.shape)}, config.json asks for "
            f"{list(shape)}; take config.json and weights from the same model"
        )


def require_layers(config: Config, found: dict[str, Stored]) -> None:
    """Raise MiniloraError if there are fewer layers than config.json says, before a model of that
    size is built.
    """
    layers = {number[1] for key in found if (number := LAYER.match(key))}
    if layers and len(layers) < config.num_hidden_layers:
        folder = next(iter(found.values())).file.parent
        raise MiniloraError(
            f"{folder}: config.json asks for {config.num_hidden_layers} layers, and the weights "
            f"hold {len(layers)}; take config.json and weights from the same model"
        )


def require_finite(name: str, tensor: Tensor, where: object, remedy: str) -> None:
    """Raise MiniloraError if the tensor holds NaN or infinity."""
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise MiniloraError(f"{where}: {name} holds {bad} NaN or infinite values; {remedy}")


def _read_tensor(tensors: Any, key: str, stored: Stored, dtype: torch.dtype, device: str) -> Tensor:
    file = stored.file
    try:
        raw = tensors.get_tensor(stored.key)
    except SafetensorError as error:
        raise unreadable(file, error) from error
    if raw.dtype not in FLOATS:
        raise MiniloraError(
            f"{file}: {key} is {raw.dtype}, not a float that is read here; take the unquantized "
            "model"
        )
    if raw.element_size() == 1:
        raw = raw.float()
    require_finite(key, raw, file, AGAIN)
    tensor = torch.empty(raw.shape, dtype=dtype, device=device).copy_(raw)
    if dtype != raw.dtype:
        wider = "take dtype=torch.bfloat16 or float32" if dtype == torch.float16 else AGAIN
        require_finite(key, tensor, file, f"{str(dtype)[6:]} is too narrow for it, {wider}")
    return tensor


def read_tensors(
    folder: Path,
    config: Config,
    expected: dict[str, Tensor],
    found: dict[str, Stored],
    dtype: torch.dtype,
    device: str,
) -> dict[str, Tensor]:
    """The tensors that are expected, out of the files in which they were found, each compared,
    read, cast and checked. Of two that are tied one may be missing; two that differ are no pair.
    """
    twin = found.pop(HEAD, None) if config.tie_word_embeddings else None
    if twin is not None and EMBEDDING not in found:
        found[EMBEDDING], twin = twin, None
    _compare(folder, expected, found)
    if twin is not None:
        _require_shape(HEAD, twin, found[EMBEDDING].shape)
    state = {}
    for file in sorted({stored.file for stored in found.values()}):
        with safe_open(file, framework="pt") as tensors:
            for key in (key for key in found if found[key].file == file):
                state[key] = _read_tensor(tensors, key, found[key], dtype, device)
    if twin is not None:
        with safe_open(twin.file, framework="pt") as tensors:
            head = _read_tensor(tensors, HEAD, twin, dtype, device)
        if not torch.equal(head, state[EMBEDDING]):
            raise MiniloraError(
                f"{twin.file}: {HEAD} differs from {EMBEDDING}, but config.json ties "
                "them; set tie_word_embeddings to false there"
            )
    return state


def load(
    make: Callable[[Config], Model],
    path: str | PathLike,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Model:
    """Read a Llama folder into `make(config)`, the class that is wanted.

    Raises MiniloraError (missing folder or file, hub name, damaged or cut file, missing or
    unexpected tensor, wrong shape, NaN), naming file, tensor and remedy.
    """
    folder, config = model_folder(path), read_config(path)
    found = list_tensors(weight_files(folder))
    require_layers(config, found)
    with torch.device("meta"):
        model = make(config)
    expected = model.state_dict()
    if quantized_names(found):
        raise MiniloraError(
            f"{folder}: the weights are in 4 bits; load them by qlora.load_base, which reads both"
        )
    state = read_tensors(folder, config, expected, found, dtype, device)
    model.load_state_dict(state, assign=True)
    rotary = model.get_submodule("model.rotary")
    assert isinstance(rotary, RotaryTable)
    rotary.build(len(rotary.cos), device)
    return model.requires_grad_(True).eval()


def _shards(state: dict[str, Tensor], limit: int) -> list[list[str]]:
    """Tensor names in groups of at most `limit` bytes each (a larger tensor stands alone)."""
    groups: list[list[str]] = []
    room = 0
    for name, tensor in state.items():
        if not groups or tensor.nbytes > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= tensor.nbytes
    return groups


def _own_state(model: nn.Module, path: str | PathLike) -> dict[str, Tensor]:
    """The model's tensors under Hugging Face's names. Raises MiniloraError if layers were replaced,
    or on NaN.
    """

    with torch.device("meta"):
        expected = type(model)(model.config).state_dict()
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if set(state) != set(expected):
        strange = sorted(set(state) ^ set(expected))
        raise MiniloraError(
            f"cannot save {path}: the model's linear layers were replaced ({_few(strange)}); "
            "save the adapter with "
            "lora.save_adapter, or merge first"
        )
    for name, tensor in state.items():
        require_finite(
            name,
            tensor,
            f"cannot save {path}",
            "go back to the last good state and lower the learning rate",
        )
    return state


def save(model: nn.Module, path: str | PathLike, max_shard_bytes: int = 5 * 10**9) -> None:
    """Write config.json and the weights in the model's dtype: one file, or several with an index
    above max_shard_bytes.

    Raises MiniloraError if layers were replaced (adapters, 4-bit), on NaN, and when the disk
    refuses; nothing is then written. Weight files of an earlier save that the new one does not
    overwrite are removed.
    """
    state = _own_state(model, path)
    groups = _shards(state, max_shard_bytes)
    names = (
        [SINGLE]
        if len(groups) == 1
        else [f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)]
    )
    config = model.config
    assert isinstance(config, Config)
    dtype = state["model.embed_tokens.weight"].dtype
    fields = config.to_hf() | {"torch_dtype": str(dtype).removeprefix("torch.")}
    with atomic_folder(path) as folder:
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        generation_config.write(getattr(model, "generation", {}), config, folder, Path(path))
        for name, group in zip(names, groups):
            part = {key: state[key].to("cpu").contiguous() for key in group}
            save_file(part, folder / name, metadata={"format": "pt"})
        if len(groups) > 1:
            mapping = {key: name for name, group in zip(names, groups) for key in group}
            index = {
                "metadata": {"total_size": sum(t.nbytes for t in state.values())},
                "weight_map": mapping,
            }
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            names = [*names, INDEX]
    for old in Path(path).glob("model*.safetensors*"):
        if old.name not in names and re.fullmatch(
            r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", old.name
        ):
            old.unlink()

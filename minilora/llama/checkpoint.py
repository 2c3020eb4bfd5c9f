"""Llama folders in and out: config.json beside safetensors, as Hugging Face lays them out.

What it replaces: `from_pretrained` and `save_pretrained` of transformers, for Llama folders on the
disk.
How it works: the configuration says which tensors must be there and their shapes; every file's list
of tensors is compared with it before any weight is read. Then tensor by tensor is read, cast and
checked for NaN, so the peak is one model plus one tensor. Writing goes to a temporary folder first
and is swapped in when it is complete.
What it leaves out: pickled weights (pytorch_model.bin can run code), quantized folders, downloads,
other architectures.
Where numerics differ: nowhere; a cast rounds to the nearest as torch does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import MiniloraError
from ..system.files import atomic_folder
from ..system.memory import full
from .config import AGAIN, Config
from .decoder import RotaryTable

Model = TypeVar("Model", bound=nn.Module)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def _folder(path: str | PathLike) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise MiniloraError(
            f"{path} is a file; give the folder that holds config.json and {SINGLE}"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not str(path).startswith("."):
        raise MiniloraError(
            f"no folder {path}; if that is a name on the Hugging Face hub, fetch it first with "
            f"`hf download {path} --local-dir FOLDER` and give FOLDER"
        )
    raise MiniloraError(f"no folder {path}; give one that holds config.json and {SINGLE}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MiniloraError(f"{file} cannot be read as JSON: {error}; {AGAIN}") from error
    if not isinstance(content, dict):
        raise MiniloraError(f"{file} holds a {type(content).__name__}, not an object; {AGAIN}")
    return content


def read_config(path: str | PathLike) -> Config:
    """The Config in a folder's config.json. Raises MiniloraError naming the folder or file."""
    file = _folder(path) / "config.json"
    if not file.is_file():
        raise MiniloraError(
            f"no config.json in {path}; give a folder in Hugging Face's layout (config.json "
            f"and {SINGLE})"
        )
    try:
        return Config.from_hf(_read_json(file))
    except MiniloraError as error:
        raise MiniloraError(
            str(error).replace("config.json:", f"{file}:").replace("config:", f"{file}:")
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files: the single one, or those that the index names."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
        hint = f"no {SINGLE} in {folder}"
        if pickled:
            raise MiniloraError(
                f"{hint}, only {pickled[0].name}, which could run code when read; convert it "
                "to safetensors"
            )
        raise MiniloraError(f"{hint}; {AGAIN}, with its weights")
    mapping = _read_json(folder / INDEX).get("weight_map")
    names = sorted(set(mapping.values())) if isinstance(mapping, dict) and mapping else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise MiniloraError(f"{folder / INDEX}: weight_map must name files in this folder; {AGAIN}")
    for name in names:
        if not (folder / name).is_file():
            raise MiniloraError(f"{folder / name} is missing, which {INDEX} names; {AGAIN}")
    return [folder / name for name in names]


def _list_tensors(files: list[Path]) -> dict[str, tuple[Path, tuple[int, ...]]]:
    """Each tensor's file and shape, from the headers alone. Raises MiniloraError on a damaged
    file.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():
                    if key.endswith(
                        "rotary_emb.inv_freq"
                    ):  # saved by old versions; computed from the configuration
                        continue
                    if key in found:
                        raise MiniloraError(
                            f"{file}: {key} stands in {found[key][0].name} too; {AGAIN}"
                        )
                    found[key] = file, tuple(tensors.get_slice(key).get_shape())
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, MiniloraError) or full(error):
                raise
            raise MiniloraError(f"{file} is damaged or cut short ({error}); {AGAIN}") from error
    return found


def _few(names: list[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _compare(
    folder: Path, expected: dict[str, Tensor], found: dict[str, tuple[Path, tuple[int, ...]]]
) -> None:
    """Raise MiniloraError unless the tensors found are those expected, in name and shape."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    if missing:
        instead = f" (there is {_few(extra)} instead)" if extra else ""
        raise MiniloraError(
            f"{folder}: the weights lack {_few(missing)}{instead}; config.json describes "
            f"another model, or {AGAIN}"
        )
    if extra:
        file = found[extra[0]][0]
        raise MiniloraError(
            f"{file}: unexpected {_few(extra)}; it is no plain Llama, or config.json is "
            "another model's"
        )
    for key, (file, shape) in found.items():
        if shape != tuple(expected[key].shape):
            raise MiniloraError(
                f"{file}: {key} has shape {list(shape)}, config.json asks for "
                f"{list(expected[key].shape)}; "
                "take config.json and weights from the same model"
            )


def require_finite(name: str, tensor: Tensor, where: object, remedy: str) -> None:
    """Raise MiniloraError if the tensor holds NaN or infinity."""
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise MiniloraError(f"{where}: {name} holds {bad} NaN or infinite values; {remedy}")


def _read_tensor(tensors: Any, key: str, file: Path, dtype: torch.dtype, device: str) -> Tensor:
    raw = tensors.get_tensor(key)
    if not raw.is_floating_point():
        raise MiniloraError(
            f"{file}: {key} is {raw.dtype}, not a float; take the unquantized model"
        )
    require_finite(key, raw, file, AGAIN)
    tensor = torch.empty(raw.shape, dtype=dtype, device=device).copy_(raw)
    if dtype != raw.dtype:
        require_finite(
            key,
            tensor,
            file,
            f"{str(dtype)[6:]} is too narrow for it, take dtype=torch.bfloat16 or float32",
        )
    return tensor


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
    from safetensors import safe_open

    folder, config = _folder(path), read_config(path)
    with torch.device("meta"):
        model = make(config)
    expected = model.state_dict()
    found = _list_tensors(weight_files(folder))
    copy_of_embedding = found.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    _compare(folder, expected, found)
    state = {}
    for file in sorted({file for file, _ in found.values()}):
        with safe_open(file, framework="pt") as tensors:
            for key in (key for key in found if found[key][0] == file):
                state[key] = _read_tensor(tensors, key, file, dtype, device)
    if copy_of_embedding is not None:
        with safe_open(copy_of_embedding[0], framework="pt") as tensors:
            head = _read_tensor(tensors, "lm_head.weight", copy_of_embedding[0], dtype, device)
        if not torch.equal(head, state["model.embed_tokens.weight"]):
            raise MiniloraError(
                f"{copy_of_embedding[0]}: lm_head.weight differs from "
                "model.embed_tokens.weight, but config.json ties "
                "them; set tie_word_embeddings to false there"
            )
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
    from safetensors.torch import save_file

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

"""Which files of a folder hold its weights, and which tensors stand in them, before any is read.

What it replaces: the search and the renaming inside `from_pretrained` of transformers.
How it works: the single file or those that the index names; then the headers alone, which give each
tensor's name and shape. Names are made those of our model: the wrappers of DistributedDataParallel,
FSDP and torch.compile leave their own name in front, and a decoder that was saved without its head
lacks `model.`. Positions' frequencies, which old versions saved, follow from the configuration.
What it leaves out: pickles, which could run code when read, and other programs' formats; each is
called by its name.
"""

from __future__ import annotations

import os
import re
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from ..errors import MiniloraError, printed
from ..system.json_files import read_json
from ..system.memory import full
from .config import AGAIN

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_SCHEMA = {
    "type": "object",
    "required": ["weight_map"],
    "properties": {
        "weight_map": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"type": "string"},
        }
    },
}

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
OF_THE_DECODER = ("embed_tokens", "layers", "norm")
BUFFERS = re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)")
POINTER = b"version https://git-lfs"


class Stored(NamedTuple):
    """Where a tensor stands: its file, its shape, its name there, its type as safetensors calls it
    (F32, BF16, …).
    """

    file: Path
    shape: tuple[int, ...]
    key: str
    dtype: str


def model_folder(path: str | PathLike) -> Path:
    """The folder `path`. Raises MiniloraError that says what stands there instead."""
    folder = Path(path)
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise MiniloraError(
            f"{path} is a file; give the folder that holds config.json and {SINGLE}"
        )
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not str(path).startswith("."):
        raise MiniloraError(
            f"no folder {path}; if that is a name on the Hugging Face hub, fetch it first with "
            f"`hf download {path} --local-dir FOLDER` and give FOLDER"
        )
    raise MiniloraError(f"no folder {path}; give one that holds config.json and {SINGLE}")


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files: the single one, or those that the index names.

    Raises MiniloraError if there are none, one is missing, or there are both.
    """
    single, index = folder / SINGLE, folder / INDEX
    if not os.path.isfile(index):
        if not os.path.isfile(single):
            raise MiniloraError(_other_weights(folder))
        return [single]
    names = _named(index)
    if os.path.isfile(single) and names != [SINGLE]:
        raise MiniloraError(
            f"{folder} holds {SINGLE} and {INDEX}, which names {printed(names[0])}: they may be "
            "two models; move the one away that you do not want"
        )
    for name in names:
        if not os.path.isfile(folder / name):
            raise MiniloraError(
                f"{folder / printed(name)} is missing, which {INDEX} names; {AGAIN}"
            )
    return [folder / name for name in names]


def _named(index: Path) -> list[str]:
    """The files that an index names. Raises MiniloraError for one outside its folder."""
    mapping = read_json(index, INDEX_SCHEMA, remedy=AGAIN, megabytes=64)["weight_map"]
    names = sorted(set(mapping.values()))
    if any(Path(name).name != name or "\\" in name for name in names):
        raise MiniloraError(f"{index}: weight_map must name files in this folder; {AGAIN}")
    return names


PICKLE = (
    "a pickle, which could run code when read; convert it to safetensors where you trust it: "
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('OLD').save_pretrained('NEW')\", and copy the tokenizer's files"
)
OTHERS = (  # what else may lie in a folder, the most telling first
    ("adapter_model.*", "an adapter, not a model; give it as --adapter over its own base"),
    ("*.gguf", "a GGUF; give that file itself in the folder's place"),
    ("consolidated*", "in its maker's own layout; take the same model in Hugging Face's layout"),
    (
        "*.safetensors",
        f"not under a model's name; if it is the whole model, call it {SINGLE}",
    ),
    *((f"*{suffix}", PICKLE) for suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")),
    ("*.h5", "TensorFlow's; take the model as safetensors"),
    ("*.msgpack", "Flax's; take the model as safetensors"),
    ("*.npz", "NumPy's or MLX's; take the model as safetensors"),
    ("*.onnx", "for ONNX; take the model as safetensors"),
)


def _other_weights(folder: Path) -> str:
    """What a folder without weights holds in their place, in one line."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    hint = f"no {SINGLE} in {folder}"
    for pattern, told in OTHERS:
        for name in names:
            if Path(name).match(pattern):
                return f"{hint}, only {printed(name)}, which is {told}"
    return f"{hint}; {AGAIN}, with its weights"


def own_name(key: str) -> str:
    """A tensor's name as our model has it."""
    parts = [part for part in key.split(".") if part not in WRAPPERS]
    return ".".join(["model", *parts] if parts and parts[0] in OF_THE_DECODER else parts)


def list_tensors(files: list[Path]) -> dict[str, Stored]:
    """Each tensor by our name for it, from the headers alone. Raises MiniloraError on a damaged
    file, or for one tensor twice.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Stored] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():
                    name = own_name(key)
                    if BUFFERS.search(name):
                        continue
                    if name in found:
                        raise MiniloraError(
                            f"{file}: {printed(key)} stands in {found[name].file.name} too; {AGAIN}"
                        )
                    part = tensors.get_slice(key)
                    found[name] = Stored(file, tuple(part.get_shape()), key, part.get_dtype())
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, MiniloraError) or full(error):
                raise
            raise unreadable(file, error) from error
    return found


def unreadable(file: Path, error: Exception) -> MiniloraError:
    """The error for a file that safetensors cannot read."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(len(POINTER))
    except OSError:
        start = b""
    if start == POINTER:
        return MiniloraError(
            f"{file} is a pointer of Git LFS, not the weights; run `git lfs pull` in its folder, "
            "or fetch it with `hf download`"
        )
    return MiniloraError(f"{file} is damaged or cut short ({printed(error)}); {AGAIN}")

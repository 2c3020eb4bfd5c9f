"""From the name a user types to a model in memory: `tiny`, a folder, or a name on the Hugging Face
hub.

What it replaces: `snapshot_download` and `AutoModelForCausalLM.from_pretrained` with its
quantization config.
How it works: the name is resolved to a folder, which for a hub name is fetched first: config,
safetensors and tokenizer alone, after a look at the free space. The folder is read into our Llama
and quantized by a recipe: a code book's name means its blocks (four_bit.py), `llm.int8` means rows
with the outliers apart (int8.py).
What it leaves out: models other than Llama, pickled weights; `hub` loads the same folders with
transformers.
Where numerics differ: see llama/decoder.py, four_bit.py, int8.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import MiniloraError
from ..system.fetch import HUB_NAME, fetch
from ..system.files import data_folder

INT8 = "llm.int8"  # the name of --method int8's base; `int8` by itself is a code book in blocks


def resolve(name: str) -> Path:
    """The folder that `name` stands for. Raises MiniloraError with the remedy if there is none."""
    if name == "tiny":
        folder = data_folder() / "base"
        if not (folder / "config.json").is_file():
            raise MiniloraError(
                f"the shipped model is not at {folder}; install minilora again, or build one "
                "with `minilora pretrain --out base` and name it by --model base"
            )
        return folder
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise MiniloraError(
            f"{name} holds an adapter, not a model; use --model MODEL --adapter {name}"
        )
    if folder.exists():
        return folder
    if name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name):
        raise MiniloraError(
            f"no model {name!r}; give `tiny`, a folder that exists, or a Hub name like owner/name"
        )
    return fetch(name)


def packed(folder: Path) -> bool:
    """Does config.json say that the weights are 4-bit codes of bitsandbytes?"""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(
            "quantization_config"
        )
    except (OSError, ValueError, AttributeError):  # the loader says it better
        return False
    return bool(settings) and bool(settings.get("load_in_4bit"))


def load_base(folder: Path, device: str, quantization: dict | None = None, trained: bool = False):
    """The Llama in `folder` on `device`, quantized if told so.

    Frozen weights are kept in bf16 on a GPU that has it; weights to be trained whole, and
    everything on a CPU, in fp32. A folder that is in 4 bits already (see checkpoint.py) is read as
    it is. Raises MiniloraError if that one is to be trained whole or quantized again.
    """
    import torch

    from ..llama.model import Llama
    from ..system.precision import has_bf16

    if packed(folder):
        if trained or quantization:
            raise MiniloraError(
                f"{folder} is in 4 bits already; use --code none, or --method lora over it"
            )
        from .checkpoint import load_quantized

        return load_quantized(folder, device=device)
    half = has_bf16(device) and not trained
    model = Llama.from_pretrained(
        folder, dtype=torch.bfloat16 if half else torch.float32, device=device
    )
    return quantize_base(model, **quantization) if quantization else model


def recipe(code: str) -> dict:
    """How --code CODE quantizes a base, as run.json keeps it: the arguments of `quantize_base`."""
    return (
        {"code": INT8, "threshold": 6.0}
        if code == INT8
        else {"code": code, "double": True, "block": 64}
    )


def quantize_base(model, code: str, **settings):
    """Quantize the model's linear layers in place, by LLM.int8() or in blocks of a code book;
    returns it.
    """
    from .four_bit import quantize_model
    from .int8 import quantize_model_int8

    return (
        quantize_model_int8(model, **settings).requires_grad_(False)
        if code == INT8
        else quantize_model(model, code, **settings)
    )

"""A 4-bit Llama as a folder that transformers, bitsandbytes and minilora read alike.

What it replaces: `save_pretrained` and `from_pretrained` of transformers for a model loaded with
`BitsAndBytesConfig`.
How it works: config.json gains a `quantization_config`; each 4-bit weight is stored under the keys
of `bnb_format`, everything else as in `checkpoint`.
What it leaves out: LLM.int8() folders, folders in several files on writing (4 bits of a 7B model
are 4 GB).
Where numerics differ: nowhere; the bytes are the same, and a folder may go back and forth.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from ..errors import MiniloraError
from ..llama.checkpoint import weight_files
from ..llama.config import Config
from ..llama.model import Llama
from ..lora.targets import put
from ..quantize import bnb_format
from ..system.files import atomic_folder
from .four_bit import QLinear


def save_quantized(model: Llama, path: str | PathLike) -> None:
    """Write config.json and model.safetensors. The model went through `qlora.quantize_model` and
    has no adapters on it.

    Raises MiniloraError if there is no 4-bit layer, adapters are in place, or the code is not
    bitsandbytes' own.
    """
    from safetensors.torch import save_file

    layers = {name: module for name, module in model.named_modules() if isinstance(module, QLinear)}
    if not layers:
        raise MiniloraError(
            "the model has no 4-bit layer; call qlora.quantize_model first, or "
            "save_pretrained for a dense one"
        )
    if any(name.endswith(".base") for name in layers):
        raise MiniloraError(
            "adapters are on the model; save them with lora.save_adapter and the model before "
            "adding them"
        )
    dense = str(model.model.embed_tokens.weight.dtype).removeprefix("torch.")
    quantization = bnb_format.quantization_config(
        next(iter(layers.values())).quantized, compute_dtype=dense
    )
    fields = model.config.to_hf() | {"torch_dtype": dense, "quantization_config": quantization}
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    with atomic_folder(path) as folder:
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def load_quantized(
    path: str | PathLike, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Llama:
    """Read a folder written by `save_quantized` or by transformers with bitsandbytes; `dtype` is
    for what is not 4-bit.

    Raises MiniloraError if the folder holds no 4-bit weights, or lacks a tensor, or holds one that
    the model does not have.
    """
    folder = Path(path)
    config = _read_config(folder)
    state = _read_tensors(folder)
    with torch.device("meta"):
        model = Llama(config)
    for name in bnb_format.quantized_names(state):
        keys = bnb_format.part_keys(state, name)
        quantized = bnb_format.from_tensors({key: state.pop(key).to(device) for key in keys}, name)
        _put_checked(
            model,
            name.removesuffix(".weight"),
            QLinear(quantized, state.pop(name.removesuffix("weight") + "bias", None)),
        )
    state = {
        name: tensor.to(device, dtype)
        for name, tensor in state.items()
        if not name.endswith("rotary_emb.inv_freq")
    }
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    own = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    if own != set(state):
        wrong = sorted(own ^ set(state))
        raise MiniloraError(
            f"{folder}: {wrong[0]} is "
            f"{'missing' if wrong[0] in own else 'not part of this model'}; config.json and "
            "weights disagree"
        )
    model.load_state_dict(state, assign=True, strict=False)
    model.model.rotary.build(model.model.rotary.cos.shape[0], device)
    return model.requires_grad_(False).eval()


def _read_config(folder: Path) -> Config:
    try:
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MiniloraError(
            f"{folder / 'config.json'} cannot be read ({error}); give a folder in Hugging "
            "Face's layout"
        ) from error
    quantization = fields.pop("quantization_config", None) or {}
    if not quantization.get("load_in_4bit"):
        raise MiniloraError(
            f"{folder}: config.json names no 4-bit quantization; load it with Llama.from_pretrained"
        )
    return Config.from_hf(fields)


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    state = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                state.update({key: tensors.get_tensor(key) for key in tensors.keys()})
        except (SafetensorError, OSError) as error:
            raise MiniloraError(
                f"{file} is damaged or cut short ({error}); download the folder again"
            ) from error
    return state


def _put_checked(model: nn.Module, path: str, layer: QLinear) -> None:
    """Put `layer` in the place of the linear layer at `path`. Raises MiniloraError if there is none
    of that shape.
    """
    try:
        old = model.get_submodule(path)
    except AttributeError as error:
        raise MiniloraError(
            f"the folder holds a 4-bit {path}, which the model in config.json does not have"
        ) from error
    shapes = (layer.out_features, layer.in_features), (old.out_features, old.in_features)
    if shapes[0] != shapes[1]:
        raise MiniloraError(
            f"{path} is {list(shapes[0])} in the file, config.json asks for {list(shapes[1])}"
        )
    put(model, path, layer)

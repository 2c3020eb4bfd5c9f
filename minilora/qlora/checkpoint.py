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

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import MiniloraError
from ..llama import generation_config
from ..llama.checkpoint import read_config, read_tensors, require_layers
from ..llama.config import AGAIN
from ..llama.model import Llama
from ..llama.weight_files import Stored, list_tensors, model_folder, unreadable, weight_files
from ..lora.targets import put
from ..quantize import bnb_format
from ..system.files import atomic_folder
from .four_bit import QLinear

LARGEST = 65504.0  # the last fp16

SAME_MODEL = "take config.json and weights from the same model"


def save_quantized(model: Llama, path: str | PathLike) -> None:
    """Write config.json and model.safetensors. The model went through `qlora.quantize_model` and
    has no adapters on it.

    Raises MiniloraError if there is no 4-bit layer, adapters are in place, or the code is not
    bitsandbytes' own.
    """
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
    left = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    if "lm_head" not in (*layers, *left):
        left.append("lm_head")  # a tied one, which is a layer of its own in transformers
    quantization = [
        bnb_format.quantization_config(layer.quantized, dense, tuple(left))
        for layer in layers.values()
    ][0]
    fields = model.config.to_hf() | {"torch_dtype": dense, "quantization_config": quantization}
    state = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    with atomic_folder(path) as folder:
        (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        generation_config.write(model.generation, model.config, folder, Path(path))
        generation_config.write(model.generation, model.config, folder, Path(path))
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def load_quantized(
    path: str | PathLike, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Llama:
    """Read a folder written by `save_quantized` or by transformers with bitsandbytes, in which some
    layers may be dense. `dtype`: of what is dense, and of a 4-bit weight where it is decoded.

    Raises MiniloraError, naming file and tensor, if the folder holds no 4-bit weights, or lacks a
    tensor, or holds one that the model does not have, or one of another size, or NaN.
    """
    folder, config = model_folder(path), read_config(path)
    found = list_tensors(weight_files(folder))
    parts = bnb_format.part_keys_by_name(found)
    if not parts:
        raise MiniloraError(f"{folder} holds no 4-bit weight; load it with Llama.from_pretrained")
    require_layers(config, found)
    with torch.device("meta"):
        model = Llama(config)
    packed = {key: found.pop(key) for keys in parts.values() for key in keys}
    expected = model.state_dict()
    shapes = {}
    for name, keys in parts.items():
        shapes[name] = _shape_of(model, name, packed[keys[0]].file)
        del expected[name]
    state = read_tensors(folder, config, expected, found, dtype, device)
    for key, tensor in state.items():
        _require_possible(key, tensor, found[key].file)
    with ExitStack() as stack:
        read = _reader(stack, packed, device)
        for name, keys in parts.items():
            source = packed[keys[0]].file
            q = bnb_format.from_tensors({key: read(key) for key in keys}, name, source)
            if q.shape != shapes[name]:
                raise MiniloraError(
                    f"{source}: {name} is {list(q.shape)} in the file, config.json asks for "
                    f"{list(shapes[name])}; {SAME_MODEL}"
                )
            _require_possible(name, q.scales() * float(abs(q.book.levels).max()), source)
            bias = state.pop(name.removesuffix("weight") + "bias", None)
            rounds_to = cast(torch.dtype, q.dtype)
            layer = QLinear(dataclasses.replace(q, dtype=dtype), bias, rounds_to)
            put(model, name.removesuffix(".weight"), layer)
    model.load_state_dict(state, assign=True, strict=False)
    model.model.rotary.build(model.model.rotary.cos.shape[0], device)
    model.generation = generation_config.read(folder, config)
    return model.requires_grad_(False).eval()


def _reader(
    stack: ExitStack, packed: dict[str, Stored], device: str
) -> Callable[[str], torch.Tensor]:
    """What reads a tensor of `packed` to `device`; the files stay open as long as `stack`."""
    files = {
        file: stack.enter_context(safe_open(file, framework="pt"))
        for file in {stored.file for stored in packed.values()}
    }

    def read(key: str) -> torch.Tensor:
        stored = packed[key]
        try:
            return files[stored.file].get_tensor(stored.key).to(device, copy=True)  # not the file
        except SafetensorError as error:
            raise unreadable(stored.file, error) from error

    return read


def _require_possible(name: str, numbers: torch.Tensor, source: Path) -> None:
    """Raise MiniloraError for numbers that are finite and so large that logits may not be."""
    low, high = numbers.aminmax() if numbers.numel() else (numbers.sum(), numbers.sum())
    largest = max(-float(low), float(high))
    if largest > LARGEST:
        raise MiniloraError(
            f"{source}: {name} reaches {largest:.3g}, and no model has weights beyond {LARGEST:g}; "
            f"{AGAIN}"
        )


def _shape_of(model: nn.Module, name: str, source: Path) -> tuple[int, ...]:
    """(out, in) of the linear layer whose weight `name` is. Raises MiniloraError if the model has
    no such layer.
    """
    try:
        layer = model.get_submodule(name.removesuffix(".weight"))
    except AttributeError:
        layer = None
    if not name.endswith(".weight") or type(layer) is not nn.Linear:
        raise MiniloraError(
            f"{source} holds a 4-bit {name}, which the model in config.json does not have as a "
            f"linear layer; {SAME_MODEL}"
        )
    return layer.out_features, layer.in_features

"""What a model's folder holds, seen from the headers of its files: which weights are in 4 bits, in
which code, and in which type the others are.

What it replaces: `config.quantization_config` and `config.dtype` of transformers, which say what
the folder should hold.
How it works: a 4-bit weight is known by the `quant_state` beside it (see quantize/bnb_format.py),
and says itself in which type it was before. No weight is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def stored_codes(folder: Path) -> set[str]:
    """The codes of the weights in `folder` that are in 4 bits: {"nf4"}, say; empty for a dense
    model.

    Raises MiniloraError for what is no model's folder, and for quantized forms that are not read
    here.
    """
    from ..llama.checkpoint import read_config
    from ..llama.weight_files import list_tensors, weight_files
    from ..quantize.bnb_format import codes_of

    read_config(folder)  # what is quantized in another way is named there
    return codes_of(list_tensors(weight_files(folder)))


def left_dense(folder: Path) -> list[str]:
    """The paths of what is not in 4 bits in a 4-bit `folder`; none for a dense one."""
    from ..llama.weight_files import list_tensors, weight_files
    from ..quantize.bnb_format import owner, quantized_names

    found = list_tensors(weight_files(folder))
    packed = set(quantized_names(found))
    rest = [key for key in found if key not in packed and owner(key) is None]
    return [key.removesuffix(".weight") for key in rest] if packed else []


def stored_types(folder: Path) -> dict[str, torch.dtype]:
    """The type of each weight in `folder`, of a 4-bit one the type that it was quantized from;
    fp64 counts as fp32, in which it is loaded.
    """
    import torch
    from safetensors import safe_open

    from ..llama.weight_files import list_tensors, weight_files
    from ..quantize.bnb_format import QUANT_STATE, owner, stored_dtype

    halves = {"BF16": torch.bfloat16, "F16": torch.float16}
    found: dict[str, torch.dtype] = {}
    for key, stored in list_tensors(weight_files(folder)).items():
        name = owner(key)
        if name is None:
            found.setdefault(key, halves.get(stored.dtype, torch.float32))
        elif QUANT_STATE in key:
            with safe_open(stored.file, framework="pt") as tensors:
                state = tensors.get_tensor(stored.key)
            found[name] = stored_dtype(state, f"{stored.file}: {key}")
    return found

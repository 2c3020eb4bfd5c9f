"""The keys under which bitsandbytes keeps a 4-bit weight in a safetensors file, read and written.

What it replaces: `QuantState.as_dict`, `QuantState.from_dict` and `Params4bit.from_prequantized`.
How it works: beside `….weight` (the packed bytes) stand `….weight.absmax` and `….weight.quant_map`
(the code book), with double quantization also `nested_absmax` and `nested_quant_map`; what is no
tensor (block, shape, type, offset) is JSON, its bytes stored as one more tensor named
`….weight.quant_state.bitsandbytes__nf4` (or `__fp4`).
What it leaves out: LLM.int8() weights (`int8`), and the repacked form that bitsandbytes uses inside
a CPU's memory.
Where numerics differ: nowhere; bytes go through untouched. Codes that bitsandbytes does not know
(int4, your own) are stored in the same way under `minilora__NAME`, which only minilora reads.
"""

from __future__ import annotations

import json
import math

import numpy as np
import torch

from ..errors import MiniloraError
from . import codebooks
from .blockwise import Nested, Quantized
from .numpy_or_torch import to_numpy

THEIRS = ("nf4", "fp4")

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)

PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")

AGAIN = "download the checkpoint again, or quantize the original model"


def is_theirs(q: Quantized) -> bool:
    """Whether bitsandbytes could have made this: NF4 or FP4 along the rows, in a block size that it
    allows.
    """
    return q.code in THEIRS and q.block in BLOCKS and not q.by_column


def to_tensors(q: Quantized, name: str = "weight") -> dict[str, torch.Tensor]:
    """The tensors that stand for `q` in a file, by key: `name`, `name`.absmax, and so on."""
    facts = {
        "quant_type": q.code,
        "blocksize": q.block,
        "dtype": str(q.dtype).removeprefix("torch."),
        "shape": list(q.shape),
    }
    tensors = {
        name: _tensor(q.packed),
        f"{name}.absmax": _tensor(q.absmax),
        f"{name}.quant_map": torch.tensor(q.book.levels),
    }
    if q.nested is not None:
        tensors[f"{name}.nested_absmax"] = _tensor(q.nested.absmax)
        tensors[f"{name}.nested_quant_map"] = torch.tensor(q.nested.levels)
        facts |= {
            "nested_blocksize": q.nested.block,
            "nested_dtype": "float32",
            "nested_offset": q.nested.offset,
        }
    if q.by_column:
        facts["by_column"] = True
    whose = "bitsandbytes" if is_theirs(q) else "minilora"
    stored = json.dumps(facts).encode()
    tensors[f"{name}.quant_state.{whose}__{q.code}"] = torch.tensor(list(stored), dtype=torch.uint8)
    return tensors


def _tensor(array) -> torch.Tensor:
    return array.detach() if isinstance(array, torch.Tensor) else torch.from_numpy(array)


def quantized_names(keys) -> list[str]:
    """The weights among the keys of a file that are stored in 4 bits, e.g.
    `model.layers.0.mlp.up_proj.weight`.
    """
    return sorted({key.partition(".quant_state.")[0] for key in keys if ".quant_state." in key})


def part_keys(keys, name: str) -> list[str]:
    """The keys that belong to the quantized weight `name`, its own included."""
    return [
        key
        for key in keys
        if key == name
        or key in {f"{name}.{p}" for p in PARTS}
        or key.startswith(f"{name}.quant_state.")
    ]


def from_tensors(tensors: dict[str, torch.Tensor], name: str = "weight") -> Quantized:
    """The `Quantized` that `to_tensors`, transformers or bitsandbytes stored under `name`.

    Raises MiniloraError, naming the key, if a part is missing or does not fit the others.
    """
    facts = _facts(tensors, name)
    needed = ["", ".absmax", ".quant_map"] + (
        [".nested_absmax", ".nested_quant_map"] if "nested_offset" in facts else []
    )
    for part in needed:
        if name + part not in tensors:
            raise MiniloraError(
                f"the checkpoint lacks {name + part}, which the 4-bit weight {name} needs; {AGAIN}"
            )
    try:
        shape, block = tuple(int(n) for n in facts["shape"]), int(facts["blocksize"])
        dtype = getattr(torch, facts["dtype"])
        nested = None
        if "nested_offset" in facts:
            levels = _levels(tensors[f"{name}.nested_quant_map"])
            nested = Nested(
                tensors[f"{name}.nested_absmax"],
                float(facts["nested_offset"]),
                int(facts["nested_blocksize"]),
                levels,
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise MiniloraError(f"{name}.quant_state is damaged ({error}); {AGAIN}") from error
    book = _book(str(facts["quant_type"]), _levels(tensors[f"{name}.quant_map"]))
    packed = tensors[name].contiguous().view(torch.uint8).reshape(-1, 1)
    q = Quantized(
        packed,
        tensors[f"{name}.absmax"],
        book,
        block,
        shape,
        dtype,
        nested,
        bool(facts.get("by_column")),
    )
    _check_sizes(q, name)
    return q


def _facts(tensors: dict[str, torch.Tensor], name: str) -> dict:
    """The JSON beside the weight."""
    keys = [key for key in tensors if key.startswith(f"{name}.quant_state.")]
    if len(keys) != 1:
        raise MiniloraError(
            f"expected one {name}.quant_state.… in the checkpoint, found {len(keys)}; {AGAIN}"
        )
    try:
        facts = json.loads(to_numpy(tensors[keys[0]]).tobytes())
    except ValueError as error:
        raise MiniloraError(f"{keys[0]} is no JSON ({error}); {AGAIN}") from error
    if not isinstance(facts, dict) or not {"quant_type", "blocksize", "dtype", "shape"} <= set(
        facts
    ):
        raise MiniloraError(f"{keys[0]} lacks quant_type, blocksize, dtype or shape; {AGAIN}")
    return facts


def _levels(tensor: torch.Tensor) -> np.ndarray:
    return to_numpy(tensor).astype(np.float32).reshape(-1)


def _book(code: str, levels: np.ndarray) -> codebooks.CodeBook:
    """The code book of that name if its levels are those in the file, else one made of the
    file's.
    """
    book = codebooks.named(code) if code in codebooks.NAMES else None
    return (
        book
        if book is not None and np.array_equal(book.levels, levels)
        else codebooks.custom(levels)
    )


def _check_sizes(q: Quantized, name: str) -> None:
    blocks = -(-q.size // q.block) if q.block > 0 else 0
    group = 8 // math.gcd(8, q.book.bits)
    counts = [
        ("", q.packed.numel(), -(-q.size // group) * group * q.book.bits // 8),
        (".absmax", q.absmax.numel(), blocks),
    ]
    if q.nested is not None:
        counts.append(
            (".nested_absmax", q.nested.absmax.numel(), -(-blocks // max(1, q.nested.block)))
        )
    for part, found, wanted in counts:
        if found != wanted:
            raise MiniloraError(
                f"{name + part} has {found} entries, shape {list(q.shape)} in blocks of "
                f"{q.block} needs {wanted}; {AGAIN}"
            )


def quantization_config(
    q: Quantized, compute_dtype: str = "float32", skip: tuple[str, ...] = ("lm_head",)
) -> dict:
    """What config.json says so that transformers loads such a folder. Raises MiniloraError for a
    code it does not know.
    """
    if not is_theirs(q):
        raise MiniloraError(
            (
                f"bitsandbytes knows no {q.code} in blocks of {q.block}; for its format quantize "
                "with nf4 or fp4 in blocks of "
            )
            + ", ".join(map(str, BLOCKS))
        )
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": q.code,
        "bnb_4bit_use_double_quant": q.nested is not None,
        "bnb_4bit_compute_dtype": compute_dtype,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": list(skip),
    }

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
from ..system.json_files import parse_json, shown
from . import codebooks
from .blockwise import Nested, Quantized
from .numpy_or_torch import to_numpy

THEIRS = ("nf4", "fp4")

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)

QUANT_STATE = ".quant_state."  # what stands in the key of the JSON, behind the weight's name

PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")

STORAGE = (
    torch.uint8,
    torch.int8,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)

AGAIN = "download the checkpoint again, or quantize the original model"

LONGEST_FACTS = 10_000  # bytes; bitsandbytes writes 170

FACTS = {  # what the JSON beside a weight says
    "type": "object",
    "required": ["quant_type", "blocksize", "dtype", "shape"],
    "properties": {
        "quant_type": {"type": "string"},
        "blocksize": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "dtype": {"enum": ["float32", "bfloat16", "float16", "float64"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "nested_blocksize": {"type": "integer", "minimum": 1, "maximum": 2**31 - 1},
        "nested_offset": {"type": "number"},
        "nested_dtype": {"enum": ["float32"]},
        "by_column": {"type": "boolean"},
    },
    "dependentRequired": {"nested_offset": ["nested_blocksize"]},
}


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
    tensors[f"{name}{QUANT_STATE}{whose}__{q.code}"] = torch.tensor(list(stored), dtype=torch.uint8)
    return tensors


def _tensor(array) -> torch.Tensor:
    return array.detach() if isinstance(array, torch.Tensor) else torch.from_numpy(array)


def owner(key: str) -> str | None:
    """The 4-bit weight to which `key`, beside it in a file, belongs; None for other keys."""
    name, found, _ = key.partition(QUANT_STATE)
    if found:
        return name
    name, _, part = key.rpartition(".")
    return name if part in PARTS else None


def quantized_names(keys) -> list[str]:
    """The weights among the keys of a file that are stored in 4 bits, e.g.
    `model.layers.0.mlp.up_proj.weight`.
    """
    return sorted({name for name in map(owner, keys) if name is not None})


def codes_of(keys) -> set[str]:
    """The codes of these weights, as their keys name them: nf4, fp4, or one of our own."""
    states = (key.partition(QUANT_STATE)[2] for key in keys)
    return {state.rpartition("__")[2] for state in states if state}


def part_keys(keys, name: str) -> list[str]:
    """The keys that belong to the quantized weight `name`, its own included."""
    return [
        key
        for key in keys
        if key == name
        or key in {f"{name}.{p}" for p in PARTS}
        or key.startswith(name + QUANT_STATE)
    ]


def part_keys_by_name(keys) -> dict[str, list[str]]:
    """`part_keys` of each quantized weight among the keys, in one walk."""
    found: dict[str, list[str]] = {name: [] for name in quantized_names(keys)}
    for key in keys:
        name = owner(key) or key
        if name in found:
            found[name].append(key)
    return found


def from_tensors(
    tensors: dict[str, torch.Tensor], name: str = "weight", source: object = "the checkpoint"
) -> Quantized:
    """The `Quantized` that `to_tensors`, transformers or bitsandbytes stored under `name`. source:
    the file, for errors.

    Raises MiniloraError, naming source and key, if a part is missing, does not fit the others, or
    holds NaN or infinity.
    """
    facts = _facts(tensors, name, source)
    nested = "nested_offset" in facts
    for key in [name, *(f"{name}.{part}" for part in (PARTS if nested else PARTS[:2]))]:
        if key not in tensors:
            raise MiniloraError(
                f"{source} lacks {key}, which the 4-bit weight {name} needs; {AGAIN}"
            )

    def read(part: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return _row(tensors[f"{name}.{part}"], f"{source}: {name}.{part}", dtype)

    book = _book(facts["quant_type"], read("quant_map"), f"{source}: {name}.quant_map")
    q = Quantized(
        _bytes(tensors[name], f"{source}: {name}"),
        read("absmax", torch.uint8 if nested else torch.float32),
        book,
        int(facts["blocksize"]),
        tuple(int(n) for n in facts["shape"]),
        getattr(torch, facts["dtype"]),
        Nested(
            read("nested_absmax"),
            float(facts["nested_offset"]),
            int(facts["nested_blocksize"]),
            to_numpy(read("nested_quant_map")),
        )
        if nested
        else None,
        facts.get("by_column", False),
    )
    _check_sizes(q, name, source)
    _check_decodes(q, f"{source}: {name}")
    return q


def _facts(tensors: dict[str, torch.Tensor], name: str, source: object) -> dict:
    """The JSON beside the weight, which follows FACTS."""
    keys = [key for key in tensors if key.startswith(name + QUANT_STATE)]
    if len(keys) != 1:
        raise MiniloraError(
            f"expected one {name}.quant_state.… in {source}, found {len(keys)}; {AGAIN}"
        )
    facts = _parsed(tensors[keys[0]], f"{source}: {keys[0]}")
    if keys[0].partition(QUANT_STATE)[2] in {f"bitsandbytes__{code}" for code in THEIRS} and (
        not keys[0].endswith(facts["quant_type"])
    ):
        raise MiniloraError(f"{source}: {keys[0]} says {shown(facts['quant_type'])}; {AGAIN}")
    return facts


def _parsed(stored: torch.Tensor, what: str) -> dict:
    """The JSON of a quant_state, from its bytes."""
    if stored.dtype != torch.uint8 or stored.numel() > LONGEST_FACTS:
        raise MiniloraError(
            f"{what} is no short text in bytes ({stored.numel()} numbers of {stored.dtype}); "
            f"{AGAIN}"
        )
    return parse_json(to_numpy(stored).tobytes(), what, FACTS, AGAIN)


def stored_dtype(quant_state: torch.Tensor, what: str) -> torch.dtype:
    """The type that a 4-bit weight was quantized from, out of the bytes of its JSON."""
    dtype = getattr(torch, _parsed(quant_state, what)["dtype"])
    return torch.float32 if dtype == torch.float64 else dtype


def _bytes(tensor: torch.Tensor, what: str) -> torch.Tensor:
    """The packed codes (bytes, 1), which are stored as a column, a row or flat, and for FSDP as
    numbers of the type that the dense weights have (`bnb_4bit_quant_storage`).
    """
    if tensor.dtype not in STORAGE or not _flat(tensor):
        raise MiniloraError(
            f"{what} is {tensor.dtype} of shape {list(tensor.shape)}, which holds no packed codes; "
            f"{AGAIN}"
        )
    return tensor.contiguous().reshape(-1).view(torch.uint8).reshape(-1, 1)


def _row(tensor: torch.Tensor, what: str, dtype: torch.dtype) -> torch.Tensor:
    """Scales, their codes, or levels (n,), of the one type in which bitsandbytes reads them."""
    if tensor.dtype != dtype or not _flat(tensor):
        raise MiniloraError(
            f"{what} is {tensor.dtype} of shape {list(tensor.shape)}, where a row of {dtype} "
            f"belongs; {AGAIN}"
        )
    if dtype == torch.float32:
        _require_finite(tensor, what)
    return tensor.reshape(-1)


def _flat(tensor: torch.Tensor) -> bool:
    return tensor.ndim in (1, 2) and tensor.numel() == max(tensor.shape)


def _require_finite(tensor: torch.Tensor, what: str) -> None:
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise MiniloraError(f"{what} holds {bad} NaN or infinite values; {AGAIN}")


def _book(code: str, levels: torch.Tensor, what: str) -> codebooks.CodeBook:
    """The code book of that name if its levels are those in the file, else one made of the file's.

    bitsandbytes decodes by its own NF4 and FP4 whatever stands in the file, so other levels under
    these names are an error.
    """
    stored = to_numpy(levels)
    book = codebooks.named(code) if code in codebooks.NAMES else None
    if book is not None and np.array_equal(book.levels, stored):
        return book
    if book is not None and code in THEIRS:
        if book.levels.shape == stored.shape and np.allclose(book.levels, stored, 0, 1e-6):
            return book
        raise MiniloraError(f"{what} does not hold {code}'s {len(book.levels)} levels; {AGAIN}")
    try:
        return codebooks.custom(stored)
    except MiniloraError as error:
        raise MiniloraError(f"{what}: {error}") from error


def _check_sizes(q: Quantized, name: str, source: object) -> None:
    blocks = -(-q.size // q.block)
    group = 8 // math.gcd(8, q.book.bits)
    counts = [
        ("", q.packed.numel(), -(-q.size // group) * group * q.book.bits // 8),
        (".absmax", q.absmax.numel(), blocks),
    ]
    if q.nested is not None:
        counts += [
            (".nested_absmax", q.nested.absmax.numel(), -(-blocks // q.nested.block)),
            (".nested_quant_map", q.nested.levels.size, 256),
        ]
    for part, found, wanted in counts:
        if found != wanted:
            raise MiniloraError(
                f"{source}: {name + part} has {found} entries, shape {list(q.shape)} in blocks of "
                f"{q.block} needs {wanted}; {AGAIN}"
            )


def _check_decodes(q: Quantized, what: str) -> None:
    """Raise MiniloraError unless every weight is a finite fp32: factors that are finite apart may
    not be so multiplied.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scales = q.scales()
    _require_finite(scales, f"{what}.absmax, decoded,")
    _require_finite(scales * float(np.abs(q.book.levels).max()), f"{what}, decoded,")


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

"""In which quantization a model's config.json says that its weights are stored.

What it replaces: `AutoHfQuantizer.from_config` of transformers.
How it works: bitsandbytes' 4 bits are read here, and what is in 4 bits is then seen from the
weights themselves, which say more: config.json may lack the entry, name it by half, or keep it
beside weights that were merged and are dense again. Every other method is refused by its name.
What it leaves out: reading GPTQ, AWQ, compressed-tensors, MLX, LLM.int8() and the rest.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

from ..errors import MiniloraError
from ..system.json_files import AGAIN, require, shown

BITSANDBYTES = "bitsandbytes"

FLAG = {"type": ["boolean", "null"]}
SCHEMA = {
    "type": ["object", "null"],
    "properties": {
        "quant_method": {"type": ["string", "null"]},
        **{f"{start}load_in_{bits}bit": FLAG for start in ("", "_") for bits in (4, 8)},
    },
}

# Where other programs put their own entry, and whose it is.
ELSEWHERE = {"quantization": "mlx", "compression_config": "compressed-tensors"}


def refuse_foreign(fields: dict[str, Any], name: str | PathLike) -> None:
    """Raise MiniloraError unless the weights beside config.json with these `fields` are dense or in
    bitsandbytes' 4 bits. name: of the file, for the error.
    """
    entry = fields.get("quantization_config")
    require(entry, SCHEMA, f"{name}: quantization_config", AGAIN)
    entry = entry or {}
    for key, method in ELSEWHERE.items():
        if fields.get(key):
            raise _refused(name, method, f"{key} is {shown(fields[key])}")
    if not entry:
        return
    method = entry.get("quant_method") or _unnamed(entry)
    if _on(entry, 4) and method.startswith(BITSANDBYTES):  # some say bitsandbytes_4bit
        return
    if _on(entry, 8) and method.startswith(BITSANDBYTES):
        raise MiniloraError(
            f"{name}: the weights are quantized (bitsandbytes' LLM.int8()), which is not read from "
            "a folder; take the unquantized model with --method int8"
        )
    raise _refused(name, method, f"quantization_config is {shown(entry)}")


def _on(entry: dict[str, Any], bits: int) -> bool:
    return any(entry.get(f"{start}load_in_{bits}bit") for start in ("", "_"))


def _unnamed(entry: dict[str, Any]) -> str:
    """The method of an entry that names none."""
    if _on(entry, 4) or _on(entry, 8):
        return BITSANDBYTES
    return "mlx" if {"bits", "group_size"} <= set(entry) else "unknown"


def _refused(name: str | PathLike, method: str, found: str) -> MiniloraError:
    return MiniloraError(
        f"{name}: the weights are quantized ({method}), since {found}; take the unquantized model "
        "and quantize it here (--method qlora), or one in bitsandbytes' 4 bits"
    )

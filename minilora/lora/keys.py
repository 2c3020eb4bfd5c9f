"""Tensor names as trainers write them, brought to PEFT's spelling.

What it replaces: nothing; PEFT warns of the names that it does not find, and goes on with an
adapter that does nothing.
How it works: torch.compile, DDP, FSDP and checkpointing put their own words into a path
(`_orig_mod`, `module`, …), a state that was saved by hand keeps the adapter's name (`.default.`),
lacks `base_model.model.`, or begins one `model.` higher or lower. Such a name is taken only where
the module that is left over is one of the model's.
What it leaves out: guesses. Two tensors that would get one name are refused, and a name that means
no module stays as it is, for the strict comparison in state.py to name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from ..errors import MiniloraError
from .config import PREFIX

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")

# the part of a name at which the module's path ends -> what may follow, and how PEFT's files end
ENDS = {
    "lora_A": (("weight",), "lora_A.weight"),
    "lora_B": (("weight",), "lora_B.weight"),
    "lora_embedding_A": ((), "lora_embedding_A"),
    "lora_embedding_B": ((), "lora_embedding_B"),
    "lora_magnitude_vector": ((), "lora_magnitude_vector"),
}


def as_peft_spells(
    state: Mapping[str, torch.Tensor], paths: Collection[str], source: str
) -> dict[str, torch.Tensor]:
    """`state` under PEFT's names for a model with modules at `paths`. Raises MiniloraError where
    two names mean one tensor.
    """
    spelled: dict[str, torch.Tensor] = {}
    first: dict[str, str] = {}
    for key, tensor in state.items():
        name = spell(key, paths)
        if name in spelled:
            raise MiniloraError(
                f"{source}: {first[name]} and {key} both mean {name}; save the adapter again with "
                "PEFT's save_pretrained"
            )
        spelled[name], first[name] = tensor, key
    return spelled


def spell(key: str, paths: Collection[str]) -> str:
    """PEFT's name for `key`, or `key` itself where no module of the model is meant."""
    parts = key.split(".")
    at = next((i for i, part in enumerate(parts) if part in (*ENDS, "base_layer")), None)
    if at is None and "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        parts[at : at + 2] = []  # with the adapter's name
    if at is None:
        at = len(parts) - 1
    path = module_path(parts[:at], paths)
    end = ending(parts[at:])
    return key if path is None or end is None else f"{PREFIX}{path}.{end}"


def ending(parts: list[str]) -> str | None:
    """What follows a module's path in PEFT's files; None for what PEFT does not write."""
    if not parts:
        return None
    if parts[0] not in ENDS:
        return ".".join(parts)
    follows, end = ENDS[parts[0]]
    rest = tuple(parts[1:])
    optional = follows or ("weight",)  # a magnitude was a module's weight for a while
    if rest in (follows, optional) or (len(rest) and rest[1:] in (follows, optional)):
        return end
    return None


def module_path(parts: list[str], paths: Collection[str]) -> str | None:
    """The model's path that `parts` mean, or None."""
    plain = [part for part in parts if part not in WRAPPERS]
    for tried in (parts, plain):
        while tried[:2] == ["base_model", "model"]:
            tried = tried[2:]
        for path in (tried, ["model", *tried], tried[1:] if tried[:1] == ["model"] else []):
            if ".".join(path) in paths:
                return ".".join(path)
    return None

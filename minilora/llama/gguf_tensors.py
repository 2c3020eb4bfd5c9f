"""How llama.cpp calls a Llama's tensors, and in which order it wants their rows.

What it replaces: the tables of llama.cpp's `convert_hf_to_gguf.py`.
How it works: the package `gguf` says the names. For the architecture `llama`, llama.cpp turns
neighbouring numbers of a head by one angle, where Hugging Face turns number i and i + D/2. The rows
of q and k are put in that order, or back, which leaves every product q·k as it was.
What it leaves out: architectures that are no Llama.
Where numerics differ: nowhere; rows change places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torch import Tensor

from ..errors import MiniloraError
from ..system.gguf_reader import library
from .config import Config
from .rope import rope_frequencies

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # there → model_type here
TURNED = ("llama",)  # the architectures whose files hold the rows of q and k in llama.cpp's order
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1's positions, which are a tensor there


def names_there(architecture: str, layers: int, keys: Iterable[str]) -> dict[str, str]:
    """llama.cpp's name of each of a model's tensors. Raises MiniloraError where it has none."""
    gguf = library()
    there = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], layers)
    found = {key: there.get_name(key, try_suffixes=(".weight", ".bias")) for key in keys}
    for key, name in found.items():
        if name is None:
            raise MiniloraError(f"llama.cpp has no place for the tensor {key} of such a model")
    return found


def to_there(key: str, values: Tensor, config: Config, architecture: str) -> Tensor:
    """Rows in llama.cpp's order: of q and k, in each head 0, D/2, 1, D/2 + 1, … where Hugging Face
    has 0, 1, 2, …
    """
    heads = _turned_heads(key, config, architecture)
    if heads is None:
        return values
    halves = values.reshape(heads, 2, config.head_dim // 2, -1)  # (H, 2, D/2, C)
    return halves.transpose(1, 2).reshape(values.shape)


def from_there(key: str, values: Tensor, config: Config, architecture: str) -> Tensor:
    """Rows in Hugging Face's order: the inverse of `to_there`."""
    heads = _turned_heads(key, config, architecture)
    if heads is None:
        return values
    pairs = values.reshape(heads, config.head_dim // 2, 2, -1)  # (H, D/2, 2, C)
    return pairs.transpose(1, 2).reshape(values.shape)


def _turned_heads(key: str, config: Config, architecture: str) -> int | None:
    """How many heads the tensor `key` has whose rows stand in another order there."""
    part = key.split(".")[-2]
    if architecture not in TURNED or part not in ("q_proj", "k_proj"):
        return None
    return config.num_attention_heads if part == "q_proj" else config.num_key_value_heads


def rope_factors(config: Config) -> Tensor:
    """What llama.cpp divides the frequencies by, (D/2,), where `rope_scaling` is Llama 3.1's."""
    plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
    return plain / rope_frequencies(config)

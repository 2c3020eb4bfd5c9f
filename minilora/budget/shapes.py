"""The shape of a transformer: the numbers of a config.json, and every parameter that follows.

What it replaces: a parameter count that is taken from a model's name.
How it works: a `Shape` lists its linear layers (`linears`) and its norms (`vectors`), so that every
parameter is counted and none is estimated. `shape_of` reads the fields of a Llama's, Mistral's or
Qwen2's config.json.
What it leaves out: mixtures of experts, vision towers.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..errors import MiniloraError

# model_type in config.json → the family whose forms hold
FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "llama"}


class Linear(NamedTuple):
    """One kind of linear layer: `count` of them in the model, each (out, in), with or without a
    bias.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool
    count: int

    @property
    def size(self) -> int:
        """Numbers in one weight matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """The numbers that decide what a transformer weighs. Sizes in elements.

    family: "llama" (gated MLP, rotary positions, RMSNorm), "gpt" (learned positions), "neox" (one
    matrix for query, key and value) or "mt5" (encoder and decoder, `layers` each).
    """

    name: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 0  # 0: hidden / heads
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    positions: int = 0  # learned position vectors
    context: int = 2048  # the longest input that the model was made for
    family: str = "llama"
    published: int = 0  # the parameter count that its makers or its checkpoint give
    source: str = ""

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden // self.heads)

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    def linears(self) -> list[Linear]:
        """The linear layers inside the blocks (the output head is not among them), in the order in
        which they are used.
        """
        h, f, n = self.hidden, self.ffn, self.layers
        if self.family == "gpt":
            square = [
                Linear(name, h, h, True, n) for name in ("q_proj", "k_proj", "v_proj", "out_proj")
            ]
            return [*square, Linear("fc1", h, f, True, n), Linear("fc2", f, h, True, n)]
        if self.family == "neox":
            return [
                Linear("query_key_value", h, 3 * h, True, n),
                Linear("dense", h, h, True, n),
                Linear("dense_h_to_4h", h, f, True, n),
                Linear("dense_4h_to_h", f, h, True, n),
            ]
        if self.family == "mt5":
            # self-attention on both sides, and the decoder's attention to the encoder: 3 per pair
            attention = [Linear(name, h, self.query, False, 3 * n) for name in ("q", "k", "v")]
            return [
                *attention,
                Linear("o", self.query, h, False, 3 * n),
                Linear("wi_0", h, f, False, 2 * n),
                Linear("wi_1", h, f, False, 2 * n),
                Linear("wo", f, h, False, 2 * n),
            ]
        return [
            Linear("q_proj", h, self.query, self.qkv_bias, n),
            Linear("k_proj", h, self.key, self.qkv_bias, n),
            Linear("v_proj", h, self.key, self.qkv_bias, n),
            Linear("o_proj", self.query, h, self.out_bias, n),
            Linear("gate_proj", h, f, self.mlp_bias, n),
            Linear("up_proj", h, f, self.mlp_bias, n),
            Linear("down_proj", f, h, self.mlp_bias, n),
        ]

    def vectors(self) -> list[tuple[str, int, int]]:
        """(name, size, count) of norms and other tensors that are no linear layer and no token
        table.
        """
        h, n = self.hidden, self.layers
        if self.family == "mt5":
            buckets = [("relative_attention_bias", 32 * self.heads, 2)]
            return [("layer_norm", h, 5 * n), ("final_layer_norm", h, 2), *buckets]
        if self.family in ("gpt", "neox"):
            table = [("position_embeddings", self.positions * h, 1)] if self.positions else []
            return [*table, ("layernorm.weight", h, 2 * n + 1), ("layernorm.bias", h, 2 * n + 1)]
        return [("input_layernorm", h, n), ("post_attention_layernorm", h, n), ("norm", h, 1)]

    @property
    def table(self) -> int:
        """Numbers in the token table, and in an untied head."""
        return self.vocab * self.hidden

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers in the blocks, biases left out."""
        return sum(each.size * each.count for each in self.linears())

    @property
    def parameters(self) -> int:
        """Every parameter, a tied head counted once."""
        biases = sum(each.outputs * each.count for each in self.linears() if each.bias)
        rest = sum(size * count for _, size, count in self.vectors())
        return self.linear_parameters + biases + rest + self.table * (1 if self.tied else 2)


def nearest(kind: str, name: str, known: Iterable[str], remedy: str = "") -> MiniloraError:
    """The error for a name that is not known: one line with those that look most like it."""
    known = list(known)
    folded = {each.lower(): each for each in reversed(known)}
    close = [
        folded[each]
        for each in difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.4)
    ]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    return MiniloraError(f"unknown {kind} {name!r}; {hint}{remedy}")


def read_config(path: Path) -> dict:
    """The fields of a config.json. Raises MiniloraError if it is none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MiniloraError(
            f"{path} cannot be read as JSON ({error}); give a model's config.json"
        ) from None
    if not isinstance(fields, dict):
        raise MiniloraError(f"{path} holds no JSON object; give a model's config.json")
    return fields


def shape_of(fields: dict, name: str = "config.json") -> Shape:
    """The shape in a config.json's fields. Raises MiniloraError for another architecture or a
    missing number.
    """
    kind = str(fields.get("model_type", "llama"))
    if kind not in FAMILIES:
        raise nearest("model_type", kind, FAMILIES, "; the closed forms hold for these")
    needed = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    )
    for field in (*needed, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        value = fields.get(field)
        if not (value is None and field not in needed) and (
            not isinstance(value, int) or isinstance(value, bool) or value < 1
        ):
            raise MiniloraError(
                f"{name}: {field} is {value!r}; it must be a whole number of at least 1"
            )
    numbers = [fields[field] for field in needed]
    hidden, heads = numbers[0], numbers[3]
    kv_heads = fields.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise MiniloraError(
            f"{name}: num_attention_heads is {heads}, no multiple of num_key_value_heads "
            f"{kv_heads}; each key head serves equally many"
        )
    if not fields.get("head_dim") and hidden % heads:
        raise MiniloraError(
            f"{name}: hidden_size is {hidden}, no multiple of num_attention_heads {heads}; "
            "give head_dim, too"
        )
    if (fields.get("head_dim") or hidden // heads) % 2:
        raise MiniloraError(
            f"{name}: the heads' size is {fields.get('head_dim') or hidden // heads}; rotary "
            "positions turn pairs, so it must be even"
        )
    qwen, bias = kind == "qwen2", bool(fields.get("attention_bias"))
    shape = Shape(
        name,
        *numbers[:4],
        kv_heads,
        numbers[4],
        fields.get("head_dim") or 0,
        bool(fields.get("tie_word_embeddings")),
    )
    return replace(
        shape,
        family=FAMILIES[kind],
        qkv_bias=qwen or bias,
        out_bias=bias and not qwen,
        mlp_bias=bool(fields.get("mlp_bias")),
        context=fields.get("max_position_embeddings") or 2048,
        source="config.json",
    )

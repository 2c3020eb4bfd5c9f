"""The shape of a transformer: the numbers of a config.json, and every parameter that follows.

What it replaces: a parameter count that is taken from a model's name.
How it works: a `Shape` lists its linear layers (`linears`) and its norms (`vectors`), so that every
parameter is counted and none is estimated. `shape_of` reads the fields of a config.json of one of
the families that load here (`llama/families.py`), their biases and norms with them.
What it leaves out: mixtures of experts, vision towers; the mask of a window that is shorter than
the text, one byte for each pair of tokens.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MiniloraError
from ..system.json_files import read_json

if TYPE_CHECKING:
    from ..llama.config import Config

OTHER_FAMILIES = {"mixtral"}  # spelled nearly as one of the catalogue's is
READ = (  # the fields of a config.json that a shape follows from
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
)


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
    qk_norm: bool = False  # a norm on each head's query and key, as Qwen3 has it
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
        heads = [("q_norm", self.head_dim, n), ("k_norm", self.head_dim, n)] * self.qk_norm
        return [
            ("input_layernorm", h, n),
            ("post_attention_layernorm", h, n),
            ("norm", h, 1),
            *heads,
        ]

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


def nearest(
    kind: str,
    name: str,
    known: Iterable[str],
    remedy: str = "",
    kin: Callable[[str, str], bool] = lambda name, other: True,
) -> MiniloraError:
    """The error for a name that is not known: one line with those that look most like it, if `kin`
    says that they can be meant.
    """
    known = list(known)
    folded = {each.lower(): each for each in reversed(known)}
    close = [
        folded[each]
        for each in difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.4)
        if kin(str(name).lower(), each)
    ]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    return MiniloraError(f"unknown {kind} {name!r}; {hint}{remedy}")


def same_family(name: str, other: str) -> bool:
    """Whether the word in front of two models' names is the same but for a slip: a Gemma is no
    Llama, however alike they are spelled, and a Mixtral no Mistral.
    """
    words = [re.match("[a-z]*", each.rpartition("/")[2])[0] for each in (name, other)]
    alike = difflib.SequenceMatcher(None, *words).ratio()
    return words[0] == words[1] or (alike > 0.75 and words[0] not in OTHER_FAMILIES)


def read_config(path: Path) -> dict:
    """The fields of a config.json. Raises MiniloraError if it is none."""
    return read_json(path, {"type": "object"}, remedy="give a model's config.json")


def shape_of(fields: dict, name: str = "config.json") -> Shape:
    """The shape in a config.json's fields. Raises MiniloraError for another architecture or a
    missing number.
    """
    from ..llama.config import Config

    return shape_from(
        Config.from_hf({each: fields[each] for each in READ if each in fields}, name), name
    )


def shape_of_gguf(path: Path) -> Shape:
    """The shape in the metadata of a GGUF. Raises MiniloraError for what is no Llama."""
    from ..llama.gguf import read_config

    return shape_from(read_config(path), path.name, "the GGUF's metadata")


def shape_from(config: Config, name: str, source: str = "config.json") -> Shape:
    """The shape of a Config of ours."""
    return Shape(
        name,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        config.head_dim,
        config.tie_word_embeddings,
        qkv_bias=config.qkv_bias,
        out_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
        qk_norm=config.qk_norm,
        context=config.max_position_embeddings,
        source=source,
    )

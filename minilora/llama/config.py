"""The settings of a Llama, read from and written to a Hugging Face config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from ..errors import MiniloraError

# A frozen head's logits are made a portion at a time: at least so many rows, since its weight is
# read once for each, and about so many numbers where the vocabulary is small (`head_loss`).
HEAD_ROWS, HEAD_PORTION = 256, 1 << 20
ROPE_ROWS = 4096  # positions tabled at first; longer inputs grow the table (`decoder`)

AGAIN = "download the folder again"
ROPE_TYPES = {  # and the numbers each needs
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass
class Config:
    """The shape of a Llama, under Hugging Face's field names. Raises MiniloraError on a shape that
    cannot be.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = cast(int, None)  # None: as many as num_attention_heads
    head_dim: int = cast(int, None)  # None: hidden_size / num_attention_heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MiniloraError(
                    f"config: {name} is {value!r}; it must be a whole number of at least 1"
                )
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if not isinstance(self.head_dim, int) or self.head_dim < 2 or self.head_dim % 2:
            raise MiniloraError(
                f"config: head_dim is {self.head_dim!r}; rotary positions turn pairs, so it "
                "must be even"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise MiniloraError(
                f"config: num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}; each key/value head serves "
                "an equal group of heads"
            )
        self._check_rope()

    def _check_rope(self) -> None:
        """Raise MiniloraError on a rope type that is unknown or lacks a number."""
        scaling = self.rope_scaling or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ROPE_TYPES:
            raise MiniloraError(
                f"config: rope type {kind!r} is not supported; known are {', '.join(ROPE_TYPES)}"
            )
        for name in ROPE_TYPES[kind]:
            if not isinstance(scaling.get(name), (int, float)) or scaling[name] <= 0:
                raise MiniloraError(
                    f"config: rope type {kind!r} needs {name} as a number above 0, not "
                    f"{scaling.get(name)!r}"
                )

    @classmethod
    def from_hf(cls, fields: dict[str, Any]) -> Config:
        """Read config.json's contents, in the layout of transformers 4 (rope_theta, rope_scaling)
        or 5 (rope_parameters).

        Raises MiniloraError where the file describes something other than a plain Llama.
        """

        return config_from_hf(cls, fields)

    def to_hf(self) -> dict[str, Any]:
        """Contents for config.json, in the layout that transformers 4 and 5 both read."""

        return config_to_hf(self)


NEEDED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)


def config_from_hf(cls: type[Config], fields: dict[str, Any]) -> Config:
    """config.json's contents → Config; see `Config.from_hf`."""
    kind = fields.get("model_type", "llama")
    if kind != "llama":
        raise MiniloraError(f"config.json: model_type is {kind!r}; only 'llama' is understood here")
    if fields.get("quantization_config"):
        method = fields["quantization_config"].get("quant_method", "unknown")
        raise MiniloraError(
            f"config.json: the weights are quantized ({method}); take the unquantized model "
            "and quantize it here"
        )
    if fields.get("hidden_act", "silu") != "silu":
        raise MiniloraError(
            f"config.json: hidden_act is {fields['hidden_act']!r}; a Llama's is 'silu'"
        )
    missing = [name for name in NEEDED if name not in fields]
    if missing:
        raise MiniloraError(f"config.json: {', '.join(missing)} missing; {AGAIN}")
    known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
    rope = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    if "rope_theta" in rope:
        known["rope_theta"] = rope.pop("rope_theta")
    if "type" in rope:  # the name before transformers 4.43
        rope.setdefault("rope_type", rope.pop("type"))
    known["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    return cls(**known)


def config_to_hf(config: Config) -> dict[str, Any]:
    """Config → contents for config.json; rope in the layout of transformers 4, which 5 reads
    too.
    """
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        **fields,
    }

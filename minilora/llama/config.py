"""The settings of a Llama, read from and written to a Hugging Face config.json."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from ..errors import MiniloraError
from ..quantize.stored_form import refuse_foreign
from ..system.json_files import require, shown
from .families import FAMILIES, FULL, OWN, SCHEMA, SLIDING, Family, family_name

# A frozen head's logits are made a portion at a time: at least so many rows, since its weight is
# read once for each, and about so many numbers where the vocabulary is small (`head_loss`).
HEAD_ROWS, HEAD_PORTION = 256, 1 << 20
ROPE_ROWS = 4096  # positions tabled at first; longer inputs grow the table (`rope`)

AGAIN = "download the folder again"
ROPE_TYPES = {  # and the numbers each needs
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
YARN_MAY = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


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
    model_type: str = "llama"
    sliding_window: int | None = None  # a query sees so many tokens, itself among them; None: all
    layer_types: list[str] | None = None  # which layers have the window; None: all

    @property
    def qkv_bias(self) -> bool:
        """Whether the projections to queries, keys and values have a bias."""
        return self.attention_bias or self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether each head's query and key is normed before it is turned."""
        return self.model_type == "qwen3"

    def window(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees at most, or None for all."""
        if self.layer_types is not None and self.layer_types[layer] != SLIDING:
            return None
        return self.sliding_window

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
        self._check_windows()

    def _check_rope(self) -> None:
        """Raise MiniloraError on a rope type that is unknown, or lacks a number, or has a wrong
        one.
        """
        scaling = self.rope_scaling or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ROPE_TYPES:
            raise MiniloraError(
                f"config: rope type {kind!r} is not supported; known are {', '.join(ROPE_TYPES)}"
            )
        may = [name for name in YARN_MAY if kind == "yarn" and scaling.get(name) is not None]
        for name in (*ROPE_TYPES[kind], *may):
            value = scaling.get(name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < cast(float, value) <= 1e9:
                raise MiniloraError(
                    f"config: rope type {kind!r} needs {name} as a number above 0, not "
                    f"{shown(value)}"
                )
        if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
            raise MiniloraError(
                f"config: high_freq_factor is {scaling['high_freq_factor']!r}; it must be above "
                f"low_freq_factor, {scaling['low_freq_factor']!r}"
            )
        if kind != "default" and scaling.get("partial_rotary_factor", 1) not in (1, None):
            raise MiniloraError(
                f"config: partial_rotary_factor is {scaling['partial_rotary_factor']!r}; with rope "
                f"type {kind!r} a Llama turns its whole heads, so it must be 1"
            )

    def _check_windows(self) -> None:
        """Raise MiniloraError unless each layer is said to see all, or a window that is given."""
        if self.layer_types is None:
            return
        strange = [kind for kind in self.layer_types if kind not in (FULL, SLIDING)]
        if strange:
            raise MiniloraError(
                f"config: layer_types names {strange[0]!r}; known are {FULL} and {SLIDING}"
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise MiniloraError(
                f"config: layer_types names {len(self.layer_types)} layers and num_hidden_layers "
                f"is {self.num_hidden_layers}"
            )
        if SLIDING in self.layer_types and self.sliding_window is None:
            raise MiniloraError(
                f"config: layer_types names {SLIDING}, but there is no sliding_window in use"
            )

    @classmethod
    def from_hf(cls, fields: dict[str, Any], name: str = "config.json") -> Config:
        """Read config.json's contents, in the layout of transformers 4 (rope_theta, rope_scaling)
        or 5 (rope_parameters). `name`: what errors call the file.

        Raises MiniloraError where the file describes something other than a Llama or one of the
        families that `families.py` knows, or where a field cannot be.
        """

        return config_from_hf(cls, fields, name)

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


def config_from_hf(cls: type[Config], fields: dict[str, Any], name: str) -> Config:
    """config.json's contents → Config; see `Config.from_hf`."""
    require(fields, {"type": "object"}, name, AGAIN)
    kind = family_name(fields, name)
    family = FAMILIES[kind]
    require(fields, SCHEMA, name, f"mend that field, or {AGAIN}")
    refuse_foreign(fields, name)
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):  # two names of one function
        found = fields["hidden_act"][:60]
        raise MiniloraError(f"{name}: hidden_act is {found!r}; a Llama's is 'silu'")
    missing = [each for each in NEEDED if each not in fields]
    if missing:
        raise MiniloraError(f"{name}: {', '.join(missing)} missing; {AGAIN}")
    fields = _missing(family, fields) | fields
    known = {
        each: fields[each]
        for each in cls.__dataclass_fields__
        if each in fields and (each not in OWN or each in family.own)
    }
    known |= {"model_type": kind, **_rope(fields), **_windows(fields, kind), **_ids(fields, name)}
    _check_heads(fields, name)
    try:
        return cls(**known)
    except MiniloraError as error:
        raise MiniloraError(str(error).replace("config:", f"{name}:", 1)) from error


def _missing(family: Family, fields: dict[str, Any]) -> dict[str, Any]:
    """What transformers takes for fields that the file leaves out, where it can be."""
    unfit = fields["num_attention_heads"] % family.missing.get("num_key_value_heads", 1)
    return family.missing | {"num_key_value_heads": None} if unfit else family.missing


def _check_heads(fields: dict[str, Any], name: str) -> None:
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    if fields.get("head_dim") is None and hidden % heads:
        raise MiniloraError(
            f"{name}: hidden_size is {hidden}, no multiple of num_attention_heads {heads}; "
            f"give head_dim, too, or {AGAIN}"
        )


def _rope(fields: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling, from either layout; which field goes before which is
    transformers' rule.
    """
    rope = dict(fields.get("rope_scaling") or fields.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", fields.get("rope_theta", 10000.0))
    old: str = rope.pop("type", "default")  # the name before transformers 4.43
    kind = str(rope.setdefault("rope_type", old))
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if "original_max_position_embeddings" in ROPE_TYPES.get(kind, ()):
        trained = fields.get("original_max_position_embeddings")
        longest = fields.get("max_position_embeddings", Config.max_position_embeddings)
        if trained is not None:
            rope["original_max_position_embeddings"] = trained
        rope.setdefault("original_max_position_embeddings", longest)
    return {"rope_theta": theta, "rope_scaling": rope}


def _windows(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """sliding_window and layer_types. A Qwen has a window only where it says that it uses it, and
    then from layer max_window_layers on.
    """
    if not kind.startswith("qwen"):
        return {}
    window = fields["sliding_window"] if fields.get("use_sliding_window") else None
    types, layers = fields.get("layer_types"), fields["num_hidden_layers"]
    if types is None and window is not None:
        first = fields.get("max_window_layers", 28)
        types = [SLIDING if layer >= first else FULL for layer in range(layers)]
    return {"sliding_window": window, "layer_types": types}


def _ids(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """The special ids; a negative one, as old conversions wrote it, is none."""
    found: dict[str, Any] = {}
    for each in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if each not in fields:
            continue
        value = fields[each]
        for one in value if isinstance(value, list) else [value]:
            if not isinstance(one, int | None):  # 2.0 is a whole number for JSON
                raise MiniloraError(f"{name}: {each} is {shown(value)}; give whole numbers")
        if isinstance(value, list):
            value = [one for one in value if one >= 0] or None
        elif value is not None and value < 0:
            value = None
        found[each] = value
    pad = found.get("pad_token_id")
    if pad is not None and pad >= fields["vocab_size"]:
        raise MiniloraError(
            f"{name}: pad_token_id is {pad}, and the ids of the vocabulary end at "
            f"{fields['vocab_size'] - 1}; give an id of the vocabulary, or null"
        )
    return found


def config_to_hf(config: Config) -> dict[str, Any]:
    """Config → contents for config.json; rope in the layout of transformers 4, which 5 reads
    too.
    """
    family = FAMILIES[config.model_type]
    fields = {
        name: deepcopy(getattr(config, name))  # transformers writes into a rope it is given
        for name in config.__dataclass_fields__
        if name not in OWN or name in family.own
    }
    del fields["model_type"]
    if "layer_types" in family.own:
        fields["use_sliding_window"] = config.sliding_window is not None
        fields["max_window_layers"] = next(
            (layer for layer in range(config.num_hidden_layers) if config.window(layer)),
            config.num_hidden_layers,
        )
    return {
        "architectures": [family.architecture],
        "model_type": config.model_type,
        "hidden_act": "silu",
        **fields,
    }

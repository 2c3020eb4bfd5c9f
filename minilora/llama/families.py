"""Which model families are Llamas, and what their config.json may say.

What it replaces: one configuration class for each family.
How it works: `FAMILIES` names the families that differ from a Llama only in a bias, in norms on
queries and keys, or in a window: for each its class in transformers, the fields that are its own,
and what transformers takes for a field that the file leaves out. `SCHEMA` says of every field that
is read which values it may have.
What it leaves out: every other family (Gemma scales its embeddings, Phi joins its matrices, GPT-2
has learned positions, a mixture has experts); those are refused by name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import MiniloraError


class Family(NamedTuple):
    """architecture: the class in transformers. own: fields that only some families have.
    missing: what a field is where config.json does not give it and the Llama's value is not meant.
    """

    architecture: str
    own: tuple[str, ...] = ()
    missing: dict[str, Any] = {}


QWEN = dict(
    num_key_value_heads=32,
    max_position_embeddings=32768,
    sliding_window=4096,
    bos_token_id=None,
    eos_token_id=None,
)
WINDOWED = ("sliding_window", "layer_types")
FAMILIES = {
    "llama": Family("LlamaForCausalLM", ("attention_bias", "mlp_bias")),
    "mistral": Family(
        "MistralForCausalLM",
        ("sliding_window",),
        dict(num_key_value_heads=8, max_position_embeddings=131072, sliding_window=4096),
    ),
    "qwen2": Family("Qwen2ForCausalLM", WINDOWED, QWEN),
    "qwen3": Family("Qwen3ForCausalLM", ("attention_bias", *WINDOWED), QWEN | {"head_dim": 128}),
}
OWN = {"attention_bias", "mlp_bias", *WINDOWED}

# What a Qwen's layer is called that sees the last `sliding_window` tokens, and one that sees all.
SLIDING, FULL = "sliding_attention", "full_attention"


def _whole(most: int, *others: str) -> dict[str, Any]:
    return {"type": ["integer", *others], "minimum": 1, "maximum": most}


ID_RANGE = {"minimum": -(2**31), "maximum": 2**31}
ID = {"type": ["integer", "null"], **ID_RANGE}
YES_NO = {"type": "boolean"}
THETA = {"type": "number", "exclusiveMinimum": 1, "maximum": 1e15}
ROPE = {
    "type": ["object", "null"],
    "properties": {
        "rope_type": {"type": "string"},
        "type": {"type": "string"},
        "rope_theta": THETA,
    },
}
SCHEMA: dict[str, Any] = {  # the bounds are far above every model there is
    "type": "object",
    "properties": {
        "model_type": {"type": "string"},
        "architectures": {"type": ["array", "null"], "items": {"type": "string"}},
        "vocab_size": _whole(10**8),
        "hidden_size": _whole(10**6),
        "intermediate_size": _whole(10**7),
        "num_hidden_layers": _whole(1000),
        "num_attention_heads": _whole(10**5),
        "num_key_value_heads": _whole(10**5, "null"),
        "head_dim": _whole(10**5, "null"),
        "max_position_embeddings": _whole(10**9),
        "original_max_position_embeddings": _whole(10**9, "null"),
        "rms_norm_eps": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "rope_theta": THETA,
        "rope_scaling": ROPE,
        "rope_parameters": ROPE,
        "tie_word_embeddings": YES_NO,
        "attention_bias": YES_NO,
        "mlp_bias": YES_NO,
        "use_sliding_window": YES_NO,
        "sliding_window": _whole(10**9, "null"),
        "max_window_layers": {"type": "integer", "minimum": 0},
        "layer_types": {"type": ["array", "null"], "items": {"type": "string"}},
        "hidden_act": {"type": "string"},
        "initializer_range": {"type": "number", "minimum": 0, "maximum": 1},
        "bos_token_id": ID,
        "eos_token_id": {
            "type": ["integer", "array", "null"],
            "items": {"type": "integer", **ID_RANGE},
            **ID_RANGE,
        },
        "pad_token_id": ID,
    },
}


def family_name(fields: dict[str, Any], name: str = "config.json") -> str:
    """The family that config.json, called `name` in errors, names by its model_type, or where it
    has none by its class.

    Raises MiniloraError for a family that does not load here.
    """
    known = ", ".join(FAMILIES)
    kind, classes = fields.get("model_type"), fields.get("architectures")
    if kind is None and isinstance(classes, list) and classes:
        for family, told in FAMILIES.items():
            # transformers calls the decoder alone a LlamaModel
            alone = told.architecture.replace("ForCausalLM", "Model")
            if told.architecture in classes or alone in classes:
                return family
        raise MiniloraError(
            f"{name}: architectures names {classes[0]!r}; the families that load here are {known}"
        )
    if kind not in (None, *FAMILIES):
        inner = fields.get("text_config")
        part = inner.get("model_type") if isinstance(inner, dict) else None
        hint = (
            f" (its text_config is a {part}; take that model itself)"
            if part in tuple(FAMILIES)
            else ""
        )
        raise MiniloraError(
            f"{name}: model_type is {kind!r}; the families that load here are {known}{hint}"
        )
    return kind or "llama"

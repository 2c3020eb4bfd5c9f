"""A Llama out of a GGUF, llama.cpp's file: its Config, and its weights under Hugging Face's names.

What it replaces: transformers' `gguf_file=`, and llama.cpp's converters read backwards.
How it works: the metadata is put under config.json's names and checked as config.json is. The
model is made without memory. gguf_tensors.py says how llama.cpp calls each of its tensors and in
which order it has their rows; those in the file must be these, in name and shape, before one is
decoded.
What it leaves out: every architecture that is no Llama, and what llama.cpp would compute beside one
(experts, scaled logits): those are refused by name.
Where numerics differ: nowhere; the weights are what the package decodes, to the bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from os import PathLike
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MiniloraError, printed
from ..system.gguf_reader import AGAIN, Entry, Header, read_header
from ..system.gguf_words import CONTROL, KNOWN_ENDS, SPM_IDS
from ..system.json_files import shown
from .checkpoint import require_finite
from .config import Config
from .families import FAMILIES
from .gguf_tensors import ARCHITECTURES, ROPE_FACTORS, from_there, names_there, rope_factors
from .rope import RotaryTable

Model = TypeVar("Model", bound=nn.Module)

SIZES = {  # llama.cpp's name, behind the architecture's → config.json's
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# What makes another model of a Llama, and the values at which it does not; for llama.cpp 0 means
# none.
FOREIGN: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.causal": (True,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "use_parallel_residual": (False,),
}
# Tensors that some converters wrote and that say nothing.
NOTHING = (ROPE_FACTORS, ".attn_rot_embd.weight", ".rotary_emb.inv_freq")
# Llama 3.1's scheme of rotary positions is in a file as one factor for each pair of numbers. To
# scale both frequencies' factors and the old length alike changes nothing: the low one is 1 here.
HIGH_FACTORS = (4.0, 2.0, 3.0, 8.0, 16.0, 32.0)
FACTORS_ALIKE = 1e-5  # converters compute them in 32 and in 64 bits
OLD_LENGTHS = (8192, *(1 << power for power in range(4, 24)))


def read_config(path: str | PathLike) -> Config:
    """The Config that a GGUF describes. Raises MiniloraError for what is no Llama."""
    return config_of(read_header(path))


def config_of(header: Header) -> Config:
    """A header's metadata as a Config."""
    family = _family(header)
    told = _under(header)
    for key, value in told.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise MiniloraError(f"{header.path}: {_architecture(header)}.{key} is {value}; {AGAIN}")
    missing = [f"{_architecture(header)}.{name}" for name in SIZES if name not in told]
    if missing:
        raise MiniloraError(f"{header.path}: the metadata lacks {', '.join(missing)}; {AGAIN}")
    fields = {ours: _plain(told[theirs]) for theirs, ours in SIZES.items()}
    fields["num_key_value_heads"] = told.get(
        "attention.head_count_kv", fields["num_attention_heads"]
    )
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    if "attention.key_length" in told:
        fields["head_dim"] = told["attention.key_length"]
    elif isinstance(hidden, int) and isinstance(heads, int) and heads and hidden % heads == 0:
        fields["head_dim"] = hidden // heads
    fields["vocab_size"] = _embedding(header).shape[0]
    fields["tie_word_embeddings"] = "output.weight" not in header.tensors
    fields["rope_theta"] = _plain(told.get("rope.freq_base", 10000.0))
    fields["rope_scaling"] = _stretched(header, told)
    # a Qwen2 has biases on q, k and v by its nature; a Llama has all four, or none
    parts = {name.split(".", 2)[-1] for name in header.tensors if name.startswith("blk.")}
    fields["attention_bias"] = family == "llama" and "attn_q.bias" in parts
    fields["mlp_bias"] = family == "llama" and "ffn_gate.bias" in parts
    fields |= {"architectures": [FAMILIES[family].architecture], "model_type": family}
    fields |= _ids(header)
    config = Config.from_hf(fields, str(header.path))
    _require_heads(header, told, config)
    if ROPE_FACTORS in header.tensors:
        config = dataclasses.replace(config, rope_scaling=_llama3(header, config))
    return config


def load(
    make: Callable[[Config], Model],
    path: str | PathLike,
    dtype: torch.dtype | None = torch.float32,
    device: str = "cpu",
    told: Callable[[int], object] = lambda numbers: None,
) -> Model:
    """Decode a GGUF into `make(config)`, the class that is wanted. dtype None: each tensor in the
    type of `kept_as`. told: gets how many numbers are decoded in all, after each tensor.

    Raises MiniloraError for a damaged file, another architecture, a tensor that is missing, too
    many or of a wrong shape, and for NaN.
    """
    header = read_header(path)
    config = config_of(header)
    with torch.device("meta"):
        model = make(config)
    expected = model.state_dict()
    names = names_there(_architecture(header), config.num_hidden_layers, expected)
    _require_same(header, {name: tuple(expected[key].shape) for key, name in names.items()})
    narrow = native(header)
    state: dict[str, Tensor] = {}
    for key, name in names.items():
        values = _read(header, header.tensors[name])
        values = from_there(key, values, config, _architecture(header))
        to = kept_as(values, header.tensors[name], narrow) if dtype is None else dtype
        state[key] = values.to(device=device, dtype=to)
        require_finite(key, state[key], header.path, f"{str(to)[6:]} is too narrow for it")
        told(sum(each.numel() for each in state.values()))
    model.load_state_dict(state, assign=True)
    rotary = model.get_submodule("model.rotary")
    assert isinstance(rotary, RotaryTable)
    rotary.build(len(rotary.cos), device)
    return model.requires_grad_(True).eval()


# --------------------------------------------------------------------------------------- metadata


def _architecture(header: Header) -> str:
    return str(header.fields.get("general.architecture"))


def _family(header: Header) -> str:
    """The model_type. Raises MiniloraError for an architecture that is no Llama."""
    name = header.fields.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise MiniloraError(
            f"{header.path} holds a model of the architecture {shown(name)}; those that load here "
            f"are {', '.join(ARCHITECTURES)}"
        )
    for key, harmless in FOREIGN.items():
        value = _under(header).get(key, harmless[0])
        if value not in harmless:
            raise MiniloraError(
                f"{header.path}: {name}.{key} is {shown(value)}, with which it is no plain Llama; "
                "take a model without it"
            )
    return ARCHITECTURES[name]


def _under(header: Header) -> dict[str, Any]:
    """The metadata below the architecture's name."""
    start = _architecture(header) + "."
    return {
        key.removeprefix(start): value
        for key, value in header.fields.items()
        if key.startswith(start)
    }


def _plain(value: Any) -> Any:
    """A number that was kept in 32 bits as a person writes it: 1e-05, not 9.999999747378752e-06.
    Both are the same number in 32 bits.
    """
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        shorter = (float(f"{value:.{digits}g}") for digits in range(1, 10))
        return next((each for each in shorter if np.float32(each) == np.float32(value)), value)


def _embedding(header: Header) -> Entry:
    entry = header.tensors.get("token_embd.weight")
    if entry is None or len(entry.shape) != 2:
        raise MiniloraError(
            f"{header.path} has no table of tokens (token_embd.weight); give the GGUF of a whole "
            "model"
        )
    return entry


def _require_heads(header: Header, told: dict[str, Any], config: Config) -> None:
    """Raise MiniloraError where heads are of several sizes, or are turned in part."""
    name = _architecture(header)
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if told.get(key, config.head_dim) != config.head_dim:
            raise MiniloraError(
                f"{header.path}: {name}.{key} is {shown(told[key])}, and heads have "
                f"{config.head_dim} numbers; a Llama's heads are of one size and turned whole"
            )


def _stretched(header: Header, told: dict[str, Any]) -> dict[str, Any] | None:
    """How positions are stretched, as rope_scaling of config.json has it."""
    kind = told.get("rope.scaling.type", "none")
    factor = told.get("rope.scaling.factor", told.get("rope.scale_linear", 1.0))
    if "rope.scaling.type" not in told and "rope.scale_linear" in told:
        kind = "linear"  # the one scheme before they had names
    if kind == "none" or kind == "linear" and factor in (0, 1):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": _plain(factor)}
    if kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": _plain(factor)}
        old = told.get("rope.scaling.original_context_length", told.get("context_length"))
        scaling["original_max_position_embeddings"] = old
        for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if f"rope.scaling.{theirs}" in told:
                scaling[ours] = _plain(told[f"rope.scaling.{theirs}"])
        return scaling
    raise MiniloraError(
        f"{header.path}: {_architecture(header)}.rope.scaling.type is {shown(kind)}; none, linear "
        "and yarn are read here"
    )


def _llama3(header: Header, config: Config) -> dict[str, Any]:
    """rope_scaling of Llama 3.1's scheme, whose factors for each pair of numbers are a tensor."""
    factors = _read(header, header.tensors[ROPE_FACTORS])
    wrong = f"{header.path}: rope_freqs.weight holds factors of rotary positions"
    if factors.shape != (config.head_dim // 2,) or not bool((factors > 0).all()):
        raise MiniloraError(f"{wrong} that are none for heads of {config.head_dim}; {AGAIN}")
    own = {"rope_type": "llama3", "factor": _plain(float(factors.max())), "low_freq_factor": 1.0}
    best, least = own, FACTORS_ALIKE
    for high in HIGH_FACTORS:
        for old in OLD_LENGTHS:
            tried = {**own, "high_freq_factor": high, "original_max_position_embeddings": old}
            made = rope_factors(dataclasses.replace(config, rope_scaling=tried))
            off = float((made / factors - 1).abs().max())
            if off < least:
                best, least = tried, off
    if best is own:
        raise MiniloraError(f"{wrong} by no scheme that is known here, Llama 3.1's and its like")
    return best


def _ids(header: Header) -> dict[str, Any]:
    """The special ids, as config.json has them; every id that ends a text for llama.cpp."""
    get = header.fields.get
    default = SPM_IDS if get("tokenizer.ggml.model") == "llama" else {}
    ends = [get("tokenizer.ggml.eos_token_id", default.get("eos"))]
    ends += [get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
    words, kinds = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    if isinstance(words, list) and isinstance(kinds, list):
        pairs = enumerate(zip(words, kinds))
        ends += [number for number, (word, kind) in pairs if kind == CONTROL and word in KNOWN_ENDS]
    size = _embedding(header).shape[0]
    kept = [each for each in dict.fromkeys(ends) if isinstance(each, int) and 0 <= each < size]
    bos, pad = (
        get("tokenizer.ggml.bos_token_id", default.get("bos")),
        get("tokenizer.ggml.padding_token_id"),
    )
    return {
        "bos_token_id": bos,
        "eos_token_id": kept if len(kept) > 1 else kept[0] if kept else None,
        "pad_token_id": pad,
    }


# ---------------------------------------------------------------------------------------- weights


def _require_same(header: Header, expected: dict[str, tuple[int, ...]]) -> None:
    """Raise MiniloraError unless the file's tensors are those expected, in name and shape."""
    there = {
        name: entry.shape
        for name, entry in header.tensors.items()
        if name in expected or not name.endswith(NOTHING)
    }
    missing = [name for name in expected if name not in there]
    extra = [name for name in there if name not in expected]
    if missing:
        raise MiniloraError(
            f"{header.path} has no tensor {_few(missing)}; give the GGUF of a whole model"
        )
    if extra:
        raise MiniloraError(
            f"{header.path} has the tensor {_few(extra)}, which is in no plain Llama; take a model "
            "without it"
        )
    for name, shape in expected.items():
        if there[name] != shape:
            raise MiniloraError(
                f"{header.path}: {name} has the shape {list(there[name])}, and the metadata asks "
                f"for {list(shape)}; {AGAIN}"
            )


def _few(names: list[str]) -> str:
    return printed(names[0], 80) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _read(header: Header, entry: Entry) -> Tensor:
    """A tensor's numbers in fp32. Raises MiniloraError on NaN and infinity."""
    out = torch.empty(math.prod(entry.shape[:-1]), entry.shape[-1])
    at = 0
    for part in header.rows(entry.name):
        out[at : at + len(part)] = torch.from_numpy(part)
        at += len(part)
    require_finite(entry.name, out, header.path, AGAIN)
    return out.reshape(entry.shape)


def native(header: Header) -> torch.dtype:
    """The type in which a file's numbers are kept after decoding: its own where it has plain
    numbers, bf16 where it has blocks of few bits.
    """
    plain = {"F32": torch.float32, "F16": torch.float16}
    return plain.get(_embedding(header).kind, torch.bfloat16)


def kept_as(values: Tensor, entry: Entry, narrow: torch.dtype) -> torch.dtype:
    """The type for a decoded tensor: that of `native`, but what the file has in 16 or 32 bits stays
    as it is unless it fits without a change.
    """
    own = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(entry.kind)
    if own in (None, narrow) or torch.equal(values.to(narrow).float(), values):
        return narrow
    return own

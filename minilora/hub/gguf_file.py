"""A model with its tokenizer in one file of llama.cpp's format, GGUF.

What it replaces: llama.cpp's `convert_hf_to_gguf.py` and, for Q8_0, its `llama-quantize`.
How it works: the `gguf` package writes the file and holds llama.cpp's names. A tensor is converted
and written before the next one is looked at. Vectors (norms, biases) stay in fp32. What is not in
the weights is metadata: sizes, rotary frequencies, the vocabulary, the ids at which an answer ends,
the chat template.
What it leaves out: K-quants (`llama-quantize` makes them from a file in f16 or bf16), several files
for one model.
Where numerics differ: nowhere but in rounding to the type that is asked for. The rows of q and k
change places (llama/gguf_tensors.py), which leaves every product q·k as it was.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..errors import MiniloraError
from ..llama.gguf_tensors import (
    ARCHITECTURES,
    ROPE_FACTORS,
    names_there,
    rope_factors,
    to_there,
)
from ..system.gguf_reader import library
from ..system.gguf_words import KNOWN_ENDS, UNKNOWN
from . import gguf_vocabulary

if TYPE_CHECKING:
    from ..llama.config import Config
    from ..llama.model import Llama
    from ..text.tokenizer import Tokenizer

Q8_BLOCK = 32  # numbers that share a scale in Q8_0
F16_MOST = 65504.0
GOOD_STATE = "go back to the last good state and lower the learning rate"
TYPES = ("f16", "bf16", "q8_0", "f32")
FAMILIES = {ours: theirs for theirs, ours in ARCHITECTURES.items()} | {"mistral": "llama"}
# what llama.cpp takes where YaRN's numbers are not in the file; others are not obeyed by all of it
YARN_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "attention_factor": None, "truncate": True}
YARN_DEFAULTS |= {"mscale": None, "mscale_all_dim": None}
MOST_STOPS = 3  # llama.cpp has a place for the ends of a text, of a turn and of a message
# the format of a tokenizer without a template (`text.prompts.plain_pieces`), as a template;
# without one, llama.cpp takes a format of its own
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)


def write(
    model: Llama,
    tokenizer: Tokenizer,
    stops: list[int],
    path: Path,
    kind: str = "f16",
    name: str = "model",
) -> list[str]:
    """Write a plain Llama (no adapters, no quantized layers) to the file `path`.

    stops: the ids at which an answer ends, the tokenizer's EOS first. kind: one of TYPES, for the
    matrices. Returns what the user should know. Raises MiniloraError where llama.cpp has nothing
    that computes the same; `path` then is as it was.
    """
    from ..system.files import atomic_write

    gguf = library()
    config = model.config
    vocabulary = gguf_vocabulary.read(tokenizer, config.vocab_size)
    with atomic_write(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture(config))
        try:
            writer.add_type("model")
            writer.add_name(name)
            writer.add_file_type(getattr(gguf.LlamaFileType, _file_type(kind)))
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _add_config(writer, config)
            _add_vocabulary(writer, vocabulary)
            _add_special(writer, tokenizer, stops, vocabulary.tokens)
            _write_tensors(writer, model, kind)
        finally:
            writer.close()
    return vocabulary.notes


def architecture(config: Config) -> str:
    """llama.cpp's name for the model's family. Raises MiniloraError where it has none."""
    family = config.model_type
    if family not in FAMILIES:
        raise MiniloraError(
            f"a model of the family {family} is not written as GGUF here, only one of "
            f"{', '.join(FAMILIES)}; take llama.cpp's convert_hf_to_gguf.py"
        )
    return FAMILIES[family]


def _file_type(kind: str) -> str:
    return "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"


def _add_config(writer: Any, config: Config) -> None:
    """The sizes; as context, what every layer sees, for llama.cpp gives these models no window."""
    windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
    seen = [window for window in windows if window is not None]
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(min([config.max_position_embeddings, *seen]))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    _add_rope(writer, config.rope_scaling or {})


def _add_rope(writer: Any, scaling: dict) -> None:
    """How positions are stretched. Raises MiniloraError for what llama.cpp would not obey."""
    kinds = library().RopeScalingType
    kind = _rope_kind(scaling)
    if kind in ("default", "llama3"):  # llama3's is a tensor, `rope_freqs`
        return
    own = [name for name in YARN_DEFAULTS if scaling.get(name) not in (None, YARN_DEFAULTS[name])]
    if kind not in ("linear", "yarn") or own:
        raise MiniloraError(
            f"config.json: the rope type {kind!r}{' with ' + own[0] if own else ''} is not written "
            "as GGUF here; take llama.cpp's convert_hf_to_gguf.py"
        )
    writer.add_rope_scaling_type(kinds(kind))
    writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


def _rope_kind(scaling: dict) -> str:
    return scaling.get("rope_type", scaling.get("type", "default"))


def _add_vocabulary(writer: Any, vocabulary: gguf_vocabulary.Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if UNKNOWN in vocabulary.types:
        writer.add_unk_token_id(vocabulary.types.index(UNKNOWN))
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.space_prefix)


def _add_special(writer: Any, tokenizer: Tokenizer, stops: list[int], tokens: list[str]) -> None:
    """What a text begins with, what an answer ends with, and the format of a chat."""
    template = tokenizer.template or PLAIN
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    elif tokenizer.template is None:
        template = template.removeprefix("{{ bos_token }}")
    elif "bos_token" in template:
        raise MiniloraError(
            "the chat template writes bos_token, and the tokenizer has none; llama.cpp would write "
            "another token there, so take bos_token out of the template"
        )
    writer.add_eos_token_id(stops[0])
    writer.add_pad_token_id(tokenizer.pad_id)
    more = [stop for stop in stops[1:] if tokens[stop] not in KNOWN_ENDS]
    if len(more) >= MOST_STOPS:
        raise MiniloraError(
            f"an answer ends at {len(stops)} tokens ({', '.join(tokens[stop] for stop in stops)}), "
            f"and llama.cpp knows {MOST_STOPS}; keep the ones in use in generation_config.json"
        )
    for add, stop in zip((writer.add_eot_token_id, writer.add_eom_token_id), more):
        add(stop)
    ids = tokenizer.backend.encode("a", add_special_tokens=True).ids
    plain = tokenizer.backend.encode("a", add_special_tokens=False).ids
    if tokenizer.opening not in ([], [tokenizer.bos_id]) or ids[-len(plain) :] != plain:
        raise MiniloraError(
            "the tokenizer puts more than BOS around a text, and llama.cpp would not; take it out "
            "of the post_processor in tokenizer.json"
        )
    writer.add_add_bos_token(tokenizer.opening != [])
    writer.add_add_eos_token(False)
    writer.add_chat_template(template)


def _write_tensors(writer: Any, model: Llama, kind: str) -> None:
    """Announce all tensors, then convert and write them one by one."""
    gguf = library()
    config = model.config
    state = model.state_dict()
    kin = architecture(config)
    names = names_there(kin, config.num_hidden_layers, state)
    entries = [(names[key], key, tensor.detach()) for key, tensor in state.items()]
    if _rope_kind(config.rope_scaling or {}) == "llama3":
        entries.append((ROPE_FACTORS, ROPE_FACTORS, rope_factors(config)))
    for name, _, tensor in entries:
        to = _tensor_kind(tensor, kind)
        shape = gguf.quant_shape_to_byte_shape(tuple(tensor.shape), to)
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, key, tensor in entries:
        values = to_there(key, tensor, config, kin).float().cpu().numpy()
        writer.write_tensor_data(_converted(name, values, _tensor_kind(tensor, kind)))


def _tensor_kind(tensor: Tensor, kind: str) -> Any:
    """How a tensor is kept: vectors in fp32; rows that are no whole blocks of 32 in f16, as
    llama.cpp does.
    """
    kinds = library().GGMLQuantizationType
    if tensor.dim() < 2:
        return kinds.F32
    return kinds[(kind if kind != "q8_0" or tensor.shape[-1] % Q8_BLOCK == 0 else "f16").upper()]


def _converted(name: str, values: np.ndarray, kind: Any) -> np.ndarray:
    """fp32 → the bytes of `kind`. Raises MiniloraError where a value is beyond what it holds."""
    with np.errstate(over="ignore"):
        made = library().quants.quantize(np.ascontiguousarray(values), kind)
    if kind.name == "F32" and not np.isfinite(made).all():
        raise MiniloraError(f"the tensor {name} holds NaN or infinity; {GOOD_STATE}")
    if kind.name in ("F16", "Q8_0"):
        largest = float(np.abs(values).max(initial=0.0))
        limit = F16_MOST * (1 if kind.name == "F16" else 127)
        if not largest <= limit:
            raise MiniloraError(
                f"the tensor {name} holds {largest:.3g}, beyond {kind.name}'s {limit:.5g}; take "
                "--type bf16 or f32"
            )
    return made

"""Small GGUF files, written by the `gguf` package from transformers' models: none of our code has a
part in them.
"""

import json
import math

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def permuted(values, heads):
    """llama.cpp's own `LlamaModel.permute`."""
    return (
        values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        .swapaxes(1, 2)
        .reshape(values.shape)
    )


def name_there(key):
    """llama.cpp's name of a tensor of transformers'."""
    stem, _, suffix = key.rpartition(".")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.{suffix}"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{PARTS[part]}.{suffix}"


def llama3_factors(config):
    """The tensor in which llama.cpp's converter keeps Llama 3.1's positions, computed as there."""
    rope = config.rope_parameters
    dim = config.head_dim
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    old = rope["original_max_position_embeddings"]
    found = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        if wavelength < old / high:
            found.append(1)
        elif wavelength > old / low:
            found.append(rope["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(found, np.float32)


def write(path, model, kind="F32", arch="llama", fields=None, words=None, drop=(), extra=None):
    """`model` of transformers as a GGUF, matrices in `kind`. fields: more metadata, or other values
    (None: left out); words: gets the writer, to add a vocabulary; drop: tensors left out.
    """
    config, state = model.config, model.state_dict()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, arch)
    told = {
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": head,
        f"{arch}.attention.value_length": head,
        f"{arch}.rope.dimension_count": head,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{arch}.vocab_size": config.vocab_size,
        **(fields or {}),
    }
    for key, value in told.items():
        add = {str: writer.add_string, float: writer.add_float32, bool: writer.add_bool}
        if value is not None:
            (
                writer.add_array
                if isinstance(value, list)
                else add.get(type(value), writer.add_uint32)
            )(key, value)
    if words:
        words(writer)
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for key, tensor in state.items():
        values = tensor.float().numpy()
        part = key.split(".")[-2]
        if arch == "llama" and part in ("q_proj", "k_proj"):
            heads = "num_attention_heads" if part == "q_proj" else "num_key_value_heads"
            values = permuted(values, getattr(config, heads))
        if name_there(key) not in drop:
            add_tensor(writer, name_there(key), values, kind if values.ndim > 1 else "F32")
    if config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config))
    for name, values in (extra or {}).items():
        add_tensor(writer, name, values, "F32")
    finish(writer)
    return path


def add_tensor(writer, name, values, kind):
    kind = gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(np.ascontiguousarray(values), kind)
    writer.add_tensor(name, packed, raw_dtype=kind)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def words_of(backend):
    """(texts by id, types by id, merges) of a tokenizer.json"""
    fields = json.loads(backend.to_str())
    entries = fields["model"]["vocab"] | {t["content"]: t["id"] for t in fields["added_tokens"]}
    words = sorted(entries, key=entries.get)
    kinds = {t["content"]: 3 if t["special"] else 4 for t in fields["added_tokens"]}
    kinds |= {"<unk>": 2} | {f"<0x{byte:02X}>": 6 for byte in range(256)}
    return words, [kinds.get(word, 1) for word in words], fields["model"]["merges"]


def add_words(writer, backend, pre=None, bos="<|bos|>", eos="<|eos|>"):
    """The tokenizer `backend` as metadata: byte-level by the rules `pre`, else SentencePiece's."""
    words, kinds, merges = words_of(backend)
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    writer.add_token_list(words), writer.add_token_types(kinds)
    if pre:
        writer.add_tokenizer_pre(pre), writer.add_token_merges([" ".join(m) for m in merges])
    else:
        order = {}
        for left, right in merges:
            order.setdefault(left + right, -float(len(order)))
        writer.add_token_scores([order.get(word, 0.0) for word in words])
    writer.add_bos_token_id(words.index(bos)), writer.add_eos_token_id(words.index(eos))

"""A GGUF file says what the model's folder says: its tensors and sizes, read back by the `gguf`
package and by transformers.
"""

import numpy as np
import pytest
import torch
from exported_gguf import ROPES, SHAPES, gguf, model_of, tensors, value, written

from minilora.errors import MiniloraError
from minilora.hub import gguf_file


def unturned(rows, heads):
    """Rows of q or k as Hugging Face has them: the even ones of a head, then the odd ones."""
    order = []
    width = len(rows) // heads
    for head in range(heads):
        order += [head * width + i for i in (*range(0, width, 2), *range(1, width, 2))]
    return rows[order]


@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_and_sizes_are_the_models(shape, tokenizer, tmp_path):
    model = model_of(tokenizer, **SHAPES[shape])
    config = model.config
    reader = written(model, tokenizer, tmp_path / "m.gguf")
    kept, state = tensors(reader), model.state_dict()
    assert len(kept) == len(state)
    layer = {
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    turned = not config.model_type.startswith("qwen")
    for name, tensor in kept.items():
        *block, part, kind = name.split(".")
        key = f"model.layers.{block[1]}.{layer[part]}" if block else whole[part]
        rows = np.array(tensor.data)
        if part in ("attn_q", "attn_k") and turned:
            heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
            rows = unturned(rows, heads)
        assert np.array_equal(rows, state[f"{key}.{kind}"].numpy()), name
    architecture = {"mistral": "llama"}.get(config.model_type, config.model_type)
    assert value(reader, "general.architecture") == architecture
    expected = {
        "context_length": config.sliding_window or 256,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }
    for key, wanted in expected.items():
        assert value(reader, f"{architecture}.{key}") == wanted, key
    assert value(reader, f"{architecture}.rope.freq_base") == config.rope_theta
    eps = value(reader, f"{architecture}.attention.layer_norm_rms_epsilon")
    assert np.float32(eps) == np.float32(config.rms_norm_eps)


def rounded(model, kind):
    """The same model with matrices as a reader of the file has them, by `gguf`'s own numbers."""
    to = gguf.GGMLQuantizationType[kind.upper()]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                made = gguf.quants.quantize(weight.numpy(), to)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(made, to)))
    return model


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "bf16"])
@pytest.mark.parametrize("shape", ["plain", "tied", "wide heads", "qwen2", "qwen3"])
def test_transformers_reads_the_same_model(shape, kind, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    model = model_of(tokenizer, **SHAPES[shape])
    written(model, tokenizer, tmp_path / "m.gguf", kind)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    ).eval()
    ids = torch.randint(0, tokenizer.vocab_size, (2, 40))
    with torch.no_grad():
        wanted, got = rounded(model, kind)(ids), theirs(ids).logits
    assert (wanted - got).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_matrices_are_rounded_as_gguf_rounds_and_vectors_stay(kind, tokenizer, tmp_path):
    model = model_of(tokenizer, model_type="qwen2")
    reader = written(model, tokenizer, tmp_path / "m.gguf", kind)
    to = gguf.GGMLQuantizationType[kind.upper()]
    state = model.state_dict()
    for name, key in (
        ("blk.1.attn_v.weight", "model.layers.1.self_attn.v_proj.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output.weight", "lm_head.weight"),
    ):
        tensor = tensors(reader)[name]
        wanted = gguf.quants.quantize(state[key].numpy(), to)
        assert tensor.tensor_type == to
        assert np.array_equal(np.array(tensor.data).view(np.uint8), wanted.view(np.uint8)), name
    for name in ("blk.0.attn_norm.weight", "blk.0.attn_v.bias", "output_norm.weight"):
        assert tensors(reader)[name].tensor_type == gguf.GGMLQuantizationType.F32
    names = {"f16": 1, "bf16": 32, "q8_0": 7}
    assert value(reader, "general.file_type") == names[kind]


def test_rows_that_are_no_whole_blocks_stay_in_16_bits(tokenizer, tmp_path):
    model = model_of(tokenizer, intermediate_size=40)
    kept = tensors(written(model, tokenizer, tmp_path / "m.gguf", "q8_0"))
    assert kept["blk.0.ffn_down.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    assert kept["blk.0.ffn_up.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0


@pytest.mark.parametrize("rope", ROPES)
def test_rope_of_long_contexts(rope, tokenizer, tmp_path):
    model = model_of(tokenizer, rope_scaling=ROPES[rope])
    reader = written(model, tokenizer, tmp_path / "m.gguf")
    if rope == "linear":
        assert value(reader, "llama.rope.scaling.type") == "linear"
        assert value(reader, "llama.rope.scaling.factor") == 4.0
        return
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    theirs = LlamaRotaryEmbedding(LlamaConfig(**model.config.to_hf())).inv_freq.numpy()
    plain = 1.0 / 10000.0 ** (np.arange(0, 16, 2) / 16)
    factors = np.array(tensors(reader)["rope_freqs.weight"].data)
    assert factors[0] == 1.0 and factors[-1] == pytest.approx(8.0)
    assert np.allclose(plain / factors, theirs, rtol=1e-6)


def test_what_16_bits_cannot_hold_is_refused(tokenizer, tmp_path):
    model = model_of(tokenizer)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[1, 2] = 7e4
    with pytest.raises(MiniloraError, match="blk.0.ffn_up.weight holds 7e"):
        written(model, tokenizer, tmp_path / "m.gguf", "f16")
    assert not list(tmp_path.iterdir())
    for kind in ("q8_0", "bf16", "f32"):  # 7e4 / 127 is no large scale
        written(model, tokenizer, tmp_path / f"{kind}.gguf", kind)


def test_nan_is_refused(tokenizer, tmp_path):
    model = model_of(tokenizer)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    for kind in gguf_file.TYPES:
        with pytest.raises(MiniloraError, match="output_norm.weight holds NaN"):
            written(model, tokenizer, tmp_path / "m.gguf", kind)
    assert not list(tmp_path.iterdir())


def test_other_ropes_are_refused(tokenizer, tmp_path):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    model = model_of(tokenizer, rope_scaling=scaling | {"beta_fast": 16})
    with pytest.raises(MiniloraError, match="'yarn' with beta_fast is not written"):
        written(model, tokenizer, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())

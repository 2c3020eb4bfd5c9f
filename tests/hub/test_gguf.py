"""A GGUF file says what the model's folder says: read back by the `gguf` package and by
transformers, and, where llama.cpp's Python binding is installed, by llama.cpp.

llama.cpp is built from its source package in ten minutes, in an environment of its own:
    python -m venv llamacpp && llamacpp/bin/pip install llama_cpp_python==0.3.36
    MINILORA_LLAMA_CPP=llamacpp/bin/python pytest tests/hub/test_gguf.py
"""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import little_vocabularies
import numpy as np
import pytest
import torch
from tokenizers import (
    Regex,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

from minilora import lora
from minilora.cli.main import main
from minilora.errors import MiniloraError
from minilora.hub import gguf_file, gguf_vocabulary
from minilora.llama import Config, Llama
from minilora.recipes import load, merge
from minilora.system.files import data_folder
from minilora.text.prompts import encode_prompt
from minilora.text.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"]
TEXTS = [
    "the cat sat on the mat",
    "Who was there? I've 12 of 345 cats'",
    "\n\n  x = {'a': 1}  ",
    "é中",
]
# no small letter, space or sign before an apostrophe
SAFE = ["the cats sat, Cat The the", 'a b "the" -- !! x=1']
# as Llama 3's own tokenizer.json has it
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES]),
    "smaug-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "removed", invert=True), BYTES]
    ),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), BYTES]),
    "superbpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(gguf_vocabulary.OURS), "isolated"), BYTES]
    ),
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level(cut, texts=TEXTS, size=400, **model) -> Tokenizer:
    """A byte-level tokenizer with this pre-tokenizer, trained on a few words."""
    backend = Backend(models.BPE(**model))
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts * 4, trainer)
    if model.get("ignore_merges"):
        fields = json.loads(backend.to_str())
        fields["model"]["ignore_merges"] = True
        backend = Backend.from_str(json.dumps(fields))
    return opened(Tokenizer(backend, "<|bos|>", "<|eos|>", "<|pad|>", TEMPLATE))


def opened(tokenizer: Tokenizer) -> Tokenizer:
    """With the opening that a folder would give it: what the post-processor does."""
    ids = tokenizer.backend.encode("a", add_special_tokens=True).ids
    tokenizer.opening = [tokenizer.bos_id] if ids[0] == tokenizer.bos_id else []
    return tokenizer


def of_pieces(*args, **named) -> Tokenizer:
    """A tokenizer as Llama-2's, with BOS before a text."""
    backend = little_vocabularies.of_pieces(*args, **named)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return opened(Tokenizer(backend, "<s>", "</s>", None, None))


def model_of(tokenizer, seed=0, **fields) -> Llama:
    """A random model with a row for each token and three more."""
    torch.manual_seed(seed)
    shape = dict(
        vocab_size=tokenizer.vocab_size + 3,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.15,
    )
    model = Llama(Config(**(shape | fields))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:  # norms and biases that are not 1 and 0
                weight.add_(torch.randn(weight.shape) * 0.1)
    return model


SHAPES = {
    "plain": {},
    "tied": dict(tie_word_embeddings=True),
    "wide heads": dict(head_dim=32, num_key_value_heads=4),
    "one head for all": dict(num_key_value_heads=1, rms_norm_eps=1e-4, rope_theta=5e5),
    "mistral": dict(model_type="mistral", sliding_window=64),
    "qwen2": dict(model_type="qwen2", tie_word_embeddings=True),
    "qwen3": dict(model_type="qwen3", head_dim=128),  # what transformers takes it to be
}
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level(CUTS["gpt-2"])


def written(model, tokenizer, path, kind="f32", stops=(2,)):
    gguf_file.write(model, tokenizer, list(stops), path, kind)
    return gguf.GGUFReader(path)


def value(reader, key):
    """A field's content: a number, a text or a list."""
    return reader.get_field(key).contents()


def tensors(reader):
    return {tensor.name: tensor for tensor in reader.tensors}


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


def test_the_vocabulary_is_the_tokenizers(tokenizer, tmp_path):
    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.add_tokens(["kitten"])
    tokenizer = opened(Tokenizer(backend, "<|bos|>", "<|eos|>", "<|pad|>", TEMPLATE))
    reader = written(model_of(tokenizer), tokenizer, tmp_path / "m.gguf")
    tokens = value(reader, "tokenizer.ggml.tokens")
    vocab = tokenizer.backend.get_vocab(with_added_tokens=True)
    assert {token: number for number, token in enumerate(tokens[:-3])} == vocab
    types = value(reader, "tokenizer.ggml.token_type")
    assert types[:5] == [3] * 5 and set(types[5:-4]) == {1} and types[-4:] == [4, 5, 5, 5]
    merges = json.loads(tokenizer.backend.to_str())["model"]["merges"]
    assert value(reader, "tokenizer.ggml.merges") == [" ".join(pair) for pair in merges]
    for key, wanted in (("bos", 1), ("eos", 2), ("padding", 0)):
        assert value(reader, f"tokenizer.ggml.{key}_token_id") == wanted
    assert value(reader, "tokenizer.ggml.add_bos_token") is False
    assert value(reader, "tokenizer.chat_template") == TEMPLATE


@pytest.mark.parametrize("name", CUTS)
def test_the_cut_has_llama_cpps_name(name):
    texts = SAFE if name == "superbpe" else TEXTS
    made = byte_level(CUTS[name], texts, ignore_merges=name == "llama-bpe")
    assert gguf_vocabulary.read(made, made.vocab_size).pre == name


WRONG = {
    "a space first": dict(cut=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "words": dict(cut=pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), BYTES])),
    "another pattern": dict(
        cut=pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{L}+|."), "isolated"), BYTES])
    ),
    "matches are merged": dict(
        cut=pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3), "merged_with_next"), BYTES]
        )
    ),
    "whole words first": dict(cut=CUTS["gpt-2"], ignore_merges=True),
    "digits in threes, unmerged": dict(cut=CUTS["qwen2"], ignore_merges=True),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_cut_that_llama_cpp_has_not_is_refused(name):
    made = byte_level(**WRONG[name])
    with pytest.raises(MiniloraError, match="llama.cpp has no tokenizer that is the same"):
        gguf_vocabulary.read(made, made.vocab_size)


CROSSING = ["n '", "' '", "1 2", "Ġ Ġ", "! '", "Ã ©", "A B"]


@pytest.mark.parametrize("pair", CROSSING, ids=range(len(CROSSING)))
def test_a_merge_across_a_cut_of_the_shipped_tokenizer_is_refused(pair):
    with pytest.raises(MiniloraError, match="may cross a cut"):
        gguf_vocabulary._no_merge_crosses([tuple(pair.split())])


def test_a_merge_within_the_pieces_of_the_shipped_tokenizer_is_taken():
    inside = ["a b", "Ġ a", "T he", "Ġan '", 'Ġ "', "! !"]
    gguf_vocabulary._no_merge_crosses([tuple(pair.split()) for pair in inside])


def changed(tokenizer, change):
    fields = json.loads(tokenizer.backend.to_str())
    change(fields)
    backend = Backend.from_str(json.dumps(fields))
    return opened(Tokenizer(backend, tokenizer.bos, tokenizer.eos, None, tokenizer.template))


@pytest.mark.parametrize(
    "told, change",
    [
        ("its dropout is 0.1", lambda f: f["model"].update(dropout=0.1)),
        ("has rstrip", lambda f: f["added_tokens"][3].update(rstrip=True)),
        ("has single_word", lambda f: f["added_tokens"][3].update(single_word=True)),
        ("it normalizes text by", lambda f: f.update(normalizer={"type": "Lowercase"})),
    ],
    ids=["dropout", "rstrip", "single word", "lower case"],
)
def test_a_tokenizer_with_other_rules_is_refused(told, change, tokenizer):
    made = changed(tokenizer, change)
    with pytest.raises(MiniloraError, match="llama.cpp has no tokenizer that is the same") as error:
        gguf_vocabulary.read(made, made.vocab_size)
    assert told in str(error.value)


def test_nfc_is_written_with_a_note(tokenizer):
    made = changed(tokenizer, lambda f: f.update(normalizer={"type": "NFC"}))
    assert "NFC" in gguf_vocabulary.read(made, made.vocab_size).notes[0]


def test_bytes_without_a_token_are_told(tokenizer):
    letters = gguf_vocabulary.byte_letters()

    def without(*bytes_):
        def change(fields):
            model = fields["model"]
            gone = {letters[byte] for byte in bytes_}
            left = [token for token in model["vocab"] if token not in gone]
            model["vocab"] = {token: number for number, token in enumerate(left)}

        return changed(tokenizer, change)

    never = without(0xC0, 0xFF)  # in no text
    assert gguf_vocabulary.read(never, never.vocab_size).notes == []
    control = without(0x04, 0xFF)
    assert "1 bytes have no token (0x4)" in gguf_vocabulary.read(control, 400).notes[0]
    one_for_all = changed(control, lambda f: f["model"].update(unk_token="<|pad|>"))
    with pytest.raises(MiniloraError, match="one token for all unknown bytes"):
        gguf_vocabulary.read(one_for_all, 400)


def test_more_tokens_than_rows_are_refused(tokenizer):
    with pytest.raises(MiniloraError, match="embedding only 100 rows"):
        gguf_vocabulary.read(tokenizer, 100)


def test_a_llama_2_tokenizer_gets_scores(tmp_path):
    made = of_pieces()
    reader = written(model_of(made), made, tmp_path / "m.gguf")
    assert value(reader, "tokenizer.ggml.model") == "llama"
    types = value(reader, "tokenizer.ggml.token_type")
    assert types[:3] == [2, 3, 3] and types[3:259] == [6] * 256
    scores = value(reader, "tokenizer.ggml.scores")
    tokens = value(reader, "tokenizer.ggml.tokens")
    merges = json.loads(made.backend.to_str())["model"]["merges"]
    made_of = [left + right for left, right in merges if left + right != "<s>"]
    ranks = [scores[tokens.index(piece)] for piece in made_of]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) == len(set(made_of))
    assert value(reader, "tokenizer.ggml.unknown_token_id") == 0
    assert value(reader, "tokenizer.ggml.add_space_prefix") is True
    assert value(reader, "tokenizer.ggml.add_bos_token") is True
    # the plain format of a tokenizer without a template
    messages = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "sat"}]
    folder = tmp_path / "t"
    folder.mkdir()
    with_template = Tokenizer(
        made.backend, made.bos, made.eos, None, value(reader, "tokenizer.chat_template")
    )
    assert with_template.chat(messages) == made.chat(messages)


METASPACE = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "first",
    "split": False,
}


def tear_apart(merges):
    """Put one of two ways to make a piece at the end."""
    words = ["".join(pair) for pair in merges]
    first = next(i for i, word in enumerate(words) if word == words[i + 1] != "<s>")
    merges.append(merges.pop(first))


@pytest.mark.parametrize(
    "told, change",
    [
        ("spaces before words", lambda f: f.update(pre_tokenizer=METASPACE)),
        ("are no merge", lambda f: f["model"]["merges"].pop()),
        ("do not stand together", lambda f: tear_apart(f["model"]["merges"])),
        ("256 bytes", lambda f: f["model"].update(byte_fallback=False)),
        ("one special token", lambda f: f["added_tokens"][1].update(normalized=True)),
    ],
    ids=["first", "a merge gone", "order", "no bytes", "normalized"],
)
def test_a_llama_2_tokenizer_with_other_rules_is_refused(told, change):
    made = changed(of_pieces(), change)
    with pytest.raises(MiniloraError, match=told):
        gguf_vocabulary.read(made, made.vocab_size)


def test_stops_get_the_places_there_are(tokenizer, tmp_path):
    model = model_of(tokenizer)
    reader = written(model, tokenizer, tmp_path / "a.gguf", stops=(2, 3, 4))
    found = [value(reader, f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    assert found == [2, 3, 4]
    with pytest.raises(MiniloraError, match="ends at 4 tokens"):
        written(model, tokenizer, tmp_path / "b.gguf", stops=(2, 3, 4, 0))
    assert not (tmp_path / "b.gguf").exists()


def test_a_tokenizer_that_ends_texts_itself_is_refused(tokenizer, tmp_path):
    ending = {"type": "TemplateProcessing", "pair": []}
    ending["single"] = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<|eos|>", "type_id": 0}},
    ]
    ending["special_tokens"] = {"<|eos|>": {"id": "<|eos|>", "ids": [2], "tokens": ["<|eos|>"]}}
    made = changed(tokenizer, lambda f: f.update(post_processor=ending))
    with pytest.raises(MiniloraError, match="more than BOS around a text"):
        written(model_of(made), made, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_the_shipped_base_begins_texts_as_its_folder_says(tmp_path):
    assert main(["export", "--type", "q8_0", "--out", str(tmp_path / "m.gguf")]) == 0
    told = Tokenizer.from_pretrained(data_folder() / "base").opening != []
    assert value(gguf.GGUFReader(tmp_path / "m.gguf"), "tokenizer.ggml.add_bos_token") is told


def test_a_tokenizer_without_bos(tokenizer, tmp_path):
    def without(template):
        made = Tokenizer(tokenizer.backend, None, "<|eos|>", "<|pad|>", template)
        reader = written(model_of(made), made, tmp_path / f"{len(template or '')}.gguf")
        assert reader.get_field("tokenizer.ggml.bos_token_id") is None
        assert value(reader, "tokenizer.ggml.add_bos_token") is False
        return made, value(reader, "tokenizer.chat_template")

    assert without("{{ messages[0]['content'] }}")[1] == "{{ messages[0]['content'] }}"
    made, plain = without(None)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    told = Tokenizer(tokenizer.backend, None, "<|eos|>", None, plain)
    assert told.chat(messages) == made.chat(messages) and "bos_token" not in plain
    with pytest.raises(MiniloraError, match="writes bos_token, and the tokenizer has none"):
        without(TEMPLATE)


def test_a_missing_package_is_named(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    out = tmp_path / "m.gguf"
    assert main(["export", "--model", str(tiny_folder), "--out", str(out)]) == 2
    assert "pip install 'minilora[hub]'" in capsys.readouterr().err and not out.exists()


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


# ------------------------------------------------------------------------------ the command


def adapter_for(folder, path):
    """A trained-looking adapter over the model in `folder`."""
    model = Llama.from_pretrained(folder)
    lora.add_lora(model, rank=4, alpha=8)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape) * 0.05)
    lora.save_adapter(model, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_export_merges_the_adapter_as_merge_does(dtype, tiny_folder, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    Llama.from_pretrained(tiny_folder).to(dtype).save_pretrained(base)
    adapter_for(base, tmp_path / "adapter")
    common = ["--model", str(base), "--adapter", str(tmp_path / "adapter")]
    assert main(["merge", *common, "--out", str(tmp_path / "merged")]) == 0
    assert main(["export", *common, "--type", "f32", "--out", str(tmp_path / "a.gguf")]) == 0
    again = ["--model", str(tmp_path / "merged"), "--type", "f32"]
    assert main(["export", *again, "--out", str(tmp_path / "b.gguf")]) == 0
    one, other = (tensors(gguf.GGUFReader(tmp_path / f"{name}.gguf")) for name in "ab")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name].data, other[name].data) for name in one)
    assert "merged in, f32" in capsys.readouterr().out


@pytest.mark.parametrize("there", ["file", "folder", "link", "empty", "slash"])
def test_nothing_that_is_there_is_replaced(there, tiny_folder, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    if there == "file":
        out.write_text("mine")
    elif there == "folder":
        out.mkdir()
    elif there == "link":
        out.symlink_to(tmp_path / "nowhere")
    name = {"empty": "", "slash": f"{tmp_path}/new/"}.get(there, str(out))
    before = sorted(tmp_path.iterdir())
    assert main(["export", "--model", str(tiny_folder), "--out", name]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--out" in line
    assert sorted(tmp_path.iterdir()) == before
    assert there != "file" or out.read_text() == "mine"


def test_a_model_in_4_bits_is_decoded(tiny_folder, tmp_path):
    options = ["--model", str(tiny_folder), "--type", "f32"]
    assert main(["export", *options, "--code", "nf4", "--out", str(tmp_path / "a.gguf")]) == 0
    from minilora import qlora

    model = qlora.quantize_model(Llama.from_pretrained(tiny_folder), "nf4")
    layer = model.model.layers[0].mlp.down_proj
    kept = tensors(gguf.GGUFReader(tmp_path / "a.gguf"))["blk.0.ffn_down.weight"]
    assert np.array_equal(kept.data, layer.dense_weight().detach().numpy())


# ------------------------------------------------------------------------------ llama.cpp itself

SCRIPT = Path(__file__).parent / "answers_of_llama_cpp.py"
PYTHON = os.environ.get("MINILORA_LLAMA_CPP") or (
    sys.executable if importlib.util.find_spec("llama_cpp") else None
)
needs_llama_cpp = pytest.mark.skipif(
    PYTHON is None, reason="llama_cpp is not installed; the head of this file says how to run this"
)


def ask(path, **asked):
    """What llama.cpp says; see `answers_of_llama_cpp.py`."""
    done = subprocess.run(
        [PYTHON, str(SCRIPT)],
        input=json.dumps({"file": str(path), "max_new": 64, **asked}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def greedy(model, ids, count, stops=(2,)):
    """The likeliest continuation, up to a stop."""
    made = model.generate(torch.tensor([ids]), max_new_tokens=count)[0].tolist()[len(ids) :]
    ends = [made.index(stop) for stop in stops if stop in made]
    return made[: min(ends)] if ends else made


def odd_texts(count, seed):
    """Texts of letters, signs, digits, spaces and special tokens in all orders."""
    draw = random.Random(seed)
    pieces = [
        "a",
        "b",
        "the",
        "cat",
        " ",
        "  ",
        "'",
        "'s",
        '"',
        ",",
        ".",
        "!",
        "\n",
        "\t",
        "1",
        "23",
    ]
    pieces += [
        "A",
        "Z",
        "é",
        "中",
        "😀",
        "²",
        "٣",
        "½",
        "\u00a0",
        "<|user|>",
        "<|eos|>",
        "_",
        "don't",
    ]
    return ["".join(draw.choices(pieces, k=draw.randrange(1, 30))) for _ in range(count)]


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
def test_llama_cpp_answers_as_we_do_on_40_prompts(kind, tmp_path):
    folder = data_folder()
    adapter = folder / "adapters" / "extract"
    out = tmp_path / "m.gguf"
    assert main(["export", "--adapter", str(adapter), "--type", kind, "--out", str(out)]) == 0
    model, tokenizer = load.load("tiny", str(adapter))
    merge.decode_rest(lora.unload(lora.merge(model)))
    lines = (folder / "tasks" / "extract" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line)["prompt"] for line in lines[:40]]
    prompts = [encode_prompt(prompt, tokenizer) for prompt in asked]
    texts = [tokenizer.chat([{"role": "user", "content": prompt}], True) for prompt in asked]
    chats = [[{"role": "user", "content": prompt}] for prompt in asked]
    theirs = ask(out, texts=texts, prompts=prompts, chats=chats)
    ours = [greedy(model, ids, 64) for ids in prompts]
    assert theirs["ids"] == prompts
    equal = sum(mine == other for mine, other in zip(ours, theirs["answers"]))
    spoken = sum(tokenizer.decode(mine) == other for mine, other in zip(ours, theirs["chats"]))
    assert (equal, spoken) == (40, 40)


@needs_llama_cpp
def test_llama_cpp_cuts_as_the_shipped_tokenizer_does(tmp_path):
    assert main(["export", "--type", "q8_0", "--out", str(tmp_path / "m.gguf")]) == 0
    tokenizer = Tokenizer.from_pretrained(data_folder() / "base")
    texts = odd_texts(2000, 0)
    assert ask(tmp_path / "m.gguf", texts=texts)["ids"] == [tokenizer.encode(t) for t in texts]


@needs_llama_cpp
@pytest.mark.parametrize("name", [*CUTS, "pieces", "pieces without a space"])
def test_llama_cpp_has_the_same_tokens(name, tmp_path):
    if name.startswith("pieces"):
        made = of_pieces(prefix=name == "pieces")
    else:
        texts = SAFE if name == "superbpe" else [*TEXTS, "a b  the  the\n\n\ncat don't THE Cat!!"]
        made = byte_level(CUTS[name], texts, ignore_merges=name == "llama-bpe")
    written(model_of(made), made, tmp_path / "m.gguf")
    texts = odd_texts(1000, 1)
    if name.startswith("pieces"):
        texts = [t.replace("<|user|>", "<s>").replace("<|eos|>", "</s>") for t in texts]
        texts += ["the cat sat", " the  hat that", "<s>the</s> a<s> cat", "cat▁hat", "   "]
    theirs = ask(tmp_path / "m.gguf", texts=texts)
    ours = [made.encode(text) for text in texts]
    assert theirs["ids"] == ours
    assert theirs["begun"] == made.backend.encode("a", add_special_tokens=True).ids


@needs_llama_cpp
@pytest.mark.parametrize("shape", [*SHAPES, *ROPES, "yarn", "biases"])
def test_llama_cpp_computes_the_same_model(shape, tokenizer, tmp_path):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    others = {"yarn": dict(rope_scaling=yarn), "biases": dict(attention_bias=True, mlp_bias=True)}
    fields = SHAPES.get(shape) or others.get(shape) or {}
    if shape in ROPES:
        fields = dict(rope_scaling=ROPES[shape])
    model = model_of(tokenizer, **fields)
    written(model, tokenizer, tmp_path / "m.gguf")
    draw = random.Random(0)
    prompts = [
        [1] + [draw.randrange(5, 300) for _ in range(draw.randrange(1, 60))] for _ in range(8)
    ]
    context = model.config.sliding_window or 256
    prompts = [ids[: context - 41] for ids in prompts]
    theirs = ask(tmp_path / "m.gguf", prompts=prompts, max_new=40, exact_cache=True)["answers"]
    assert theirs == [greedy(model, ids, 40) for ids in prompts]


def test_the_script_for_llama_cpp_is_there():
    assert SCRIPT.is_file() and shutil.which(PYTHON or sys.executable)

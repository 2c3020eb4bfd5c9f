"""Through GGUF and back: a folder that was exported reads as it was, and a file that was read is
exported as it was, bit for bit.
"""

import json

import numpy as np
import pytest
import torch
from family_twins import LLAMA3, SMALL, their_model
from little_vocabularies import RULES, byte_level, of_pieces
from safetensors.torch import load_file
from strings_of_all_scripts import strings
from tiny_gguf import add_words, gguf, write

from minilora.budget import catalog
from minilora.cli.main import main
from minilora.llama import Llama
from minilora.models import from_gguf
from minilora.qlora import resolve
from minilora.text.tokenizer import Tokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
SHAPES = {
    "llama": dict(model_type="llama"),
    "llama, tied, heads of their own size": dict(
        model_type="llama", tie_word_embeddings=True, head_dim=12
    ),
    "llama, its positions stretched": dict(model_type="llama", rope_scaling=LLAMA3),
    "llama, biased": dict(model_type="llama", attention_bias=True, mlp_bias=True),
    "mistral": dict(model_type="mistral", sliding_window=None, rope_theta=1e6),
    "qwen2": dict(model_type="qwen2"),
    "qwen2, tied": dict(model_type="qwen2", tie_word_embeddings=True),
    "qwen3": dict(model_type="qwen3", head_dim=16),
}
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "home"))


def tokenizers():
    """(backend, llama.cpp's name of its rules) by name."""
    found = {pre: (byte_level(RULES[pre]), pre) for pre in ("gpt-2", "smollm", "qwen2")}
    whole = byte_level(RULES["llama-bpe"], ignore_merges=True)
    return found | {"llama-bpe": (whole, "llama-bpe"), "sentencepiece": (of_pieces(), None)}


def special_of(pre):
    return ("<|bos|>", "<|eos|>") if pre else ("<s>", "</s>")


def folder_of(path, shape, backend, pre, dtype):
    """A folder as transformers writes it."""
    rows = backend.get_vocab_size() + 3
    bos, eos = (backend.token_to_id(word) for word in special_of(pre))
    fields = SHAPES[shape] | dict(vocab_size=rows, bos_token_id=bos, eos_token_id=eos)
    their_model(fields).to(dtype).save_pretrained(path)
    backend.save(str(path / "tokenizer.json"))
    names = dict(zip(("bos_token", "eos_token"), special_of(pre)))
    (path / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": TEMPLATE}))
    return path


def export(source, file, kind):
    assert main(["export", "--model", str(source), "--type", kind, "--out", str(file)]) == 0
    return file


def require_same_ids(one, other, texts):
    one, other = (Tokenizer.from_pretrained(folder) for folder in (one, other))
    for text in texts:
        assert one.encode(text) == other.encode(text), text
    assert (one.bos_id, one.eos_id, one.template) == (other.bos_id, other.eos_id, other.template)


def require_same_folder(one, other):
    """The same tensors to the bit, and a config.json that means the same."""
    before, after = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    one, other = Llama.from_pretrained(one), Llama.from_pretrained(other)
    ids = torch.randint(0, one.config.vocab_size, (2, 80))
    with torch.no_grad():
        assert torch.equal(one(ids), other(ids))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_comes_back_as_it_was(tmp_path, shape, kind):
    backend, pre = tokenizers()["gpt-2"]
    folder = folder_of(tmp_path / "folder", shape, backend, pre, TYPES[kind])
    again = resolve(str(export(folder, tmp_path / "model.gguf", kind)))
    require_same_folder(folder, again)
    require_same_ids(folder, again, strings()[:50])


@pytest.mark.parametrize("name", tokenizers())
def test_a_tokenizer_comes_back_with_its_ids(tmp_path, name):
    backend, pre = tokenizers()[name]
    folder = folder_of(tmp_path / "folder", "llama", backend, pre, torch.float32)
    again = resolve(str(export(folder, tmp_path / "model.gguf", "f32")))
    require_same_ids(folder, again, strings())


def test_the_shipped_base_comes_back_as_it_is(tmp_path):
    base = resolve("tiny")
    again = resolve(str(export("tiny", tmp_path / "tiny.gguf", "bf16")))
    require_same_folder(base, again)
    texts = [text for text in strings() if text.isascii()]
    texts += ["The cat's hat. 12 of 345", "Who's there? -- x = 1\n"]
    require_same_ids(base, again, texts)


def file_of(path, shape, backend, pre, kind):
    """A GGUF in which none of our code has a part."""

    def words(writer):
        add_words(writer, backend, pre, *special_of(pre))
        writer.add_add_bos_token(False)
        writer.add_chat_template(TEMPLATE)

    fields = SHAPES[shape] | dict(vocab_size=backend.get_vocab_size())
    arch = {"mistral": "llama"}.get(fields["model_type"], fields["model_type"])
    return write(path, their_model(fields), kind.upper(), arch, words=words)


def content(file):
    """(tensors: type, shape and bytes by name; metadata by key)"""
    reader = gguf.GGUFReader(file)
    tensors = {
        t.name: (t.tensor_type.name, list(t.shape), t.data.tobytes()) for t in reader.tensors
    }
    return tensors, {key: field.contents() for key, field in reader.fields.items()}


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_file_comes_back_as_it_was(tmp_path, shape, kind):
    backend, pre = tokenizers()["qwen2"]
    file = file_of(tmp_path / "one.gguf", shape, backend, pre, kind)
    tensors, told = content(file)
    again, told_again = content(export(file, tmp_path / "two.gguf", kind))
    assert tensors.keys() == again.keys()
    for name, tensor in tensors.items():
        if name == "rope_freqs.weight":  # computed, there in 64 bits and here in 32
            factors = [np.frombuffer(each[name][2], np.float32) for each in (tensors, again)]
            assert np.allclose(*factors, rtol=1e-6, atol=0)
        else:
            assert tensor == again[name], name
    arch = told["general.architecture"]
    for key, value in told.items():
        if key.startswith((f"{arch}.", "tokenizer.")):
            assert told_again[key] == value, key


@pytest.mark.parametrize("name", tokenizers())
def test_a_files_vocabulary_comes_back_as_it_was(tmp_path, name):
    backend, pre = tokenizers()[name]
    file = file_of(tmp_path / "one.gguf", "llama", backend, pre, "f16")
    _, told = content(file)
    _, again = content(export(file, tmp_path / "two.gguf", "f16"))
    for key, value in told.items():
        if key == "tokenizer.ggml.scores":  # only their order means something
            assert best_first(again) == best_first(told)
        elif key.startswith("tokenizer."):
            assert again[key] == value, key


def best_first(told):
    """The pieces of more than a letter, in the order in which they are made."""
    scores, kinds = told["tokenizer.ggml.scores"], told["tokenizer.ggml.token_type"]
    words = zip(told["tokenizer.ggml.tokens"], kinds, scores)
    made = [(score, word) for word, kind, score in words if kind == 1 and len(word) > 1]
    return [word for _, word in sorted(made, reverse=True)]


def test_the_budget_reads_a_gguf(tmp_path, capsys):
    backend, pre = tokenizers()["qwen2"]
    file = file_of(tmp_path / "one.gguf", "qwen2, tied", backend, pre, "f16")
    shape, folder = catalog.model(file), from_gguf.of_user(file)
    model = Llama.from_pretrained(folder)
    assert shape.parameters == sum(each.numel() for each in model.parameters())
    assert shape.context == SMALL["max_position_embeddings"] and shape.tied and shape.qkv_bias
    assert main(["budget", "--model", str(file), "--batch", "1", "--seq", "64"]) == 0
    assert "qlora on one.gguf" in capsys.readouterr().out

"""Small tokenizers and random models of ours, and the GGUF files that are written of them."""

import json

import little_vocabularies
import pytest
import torch
from family_twins import LLAMA3 as LLAMA3_ROPE
from little_vocabularies import BYTES, LLAMA3, RULES, split, trained
from llama_sizes import sizes
from tokenizers import (
    Regex,
    pre_tokenizers,
    processors,
)
from tokenizers import Tokenizer as Backend

from minilora.hub import gguf_file, gguf_vocabulary
from minilora.llama import Config, Llama
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
CUTS = {name: RULES[name] for name in ("gpt-2", "smollm", "llama-bpe", "qwen2")} | {
    "smaug-bpe": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "removed", invert=True), BYTES]
    ),
    "superbpe": split(gguf_vocabulary.OURS),
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level(cut, texts=TEXTS, size=400, **model) -> Tokenizer:
    """A byte-level tokenizer with this pre-tokenizer, trained on a few words."""
    backend = trained(cut, texts * 4, size, SPECIAL, **model)
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
    rows = tokenizer.vocab_size + 3
    shape = sizes(vocab=rows, hidden=64, ffn=96, layers=2, heads=4, kv_heads=2, context=256) | dict(
        bos_token_id=1, eos_token_id=2, initializer_range=0.15
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
    "llama3": LLAMA3_ROPE,
}


def written(model, tokenizer, path, kind="f32", stops=(2,)):
    gguf_file.write(model, tokenizer, list(stops), path, kind)
    return gguf.GGUFReader(path)


def value(reader, key):
    """A field's content: a number, a text or a list."""
    return reader.get_field(key).contents()


def tensors(reader):
    return {tensor.name: tensor for tensor in reader.tensors}

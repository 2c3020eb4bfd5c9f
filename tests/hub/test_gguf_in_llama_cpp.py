"""What llama.cpp makes of an exported GGUF file: the same tokens, the same answers. Skipped where
its Python binding is not installed.

llama.cpp is built from its source package in ten minutes, in an environment of its own:
    python -m venv llamacpp && llamacpp/bin/pip install llama_cpp_python==0.3.36
    MINILORA_LLAMA_CPP=llamacpp/bin/python pytest tests/hub/test_gguf_in_llama_cpp.py
"""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exported_gguf import (
    CUTS,
    ROPES,
    SAFE,
    SHAPES,
    TEXTS,
    byte_level,
    model_of,
    of_pieces,
    written,
)

from minilora import lora
from minilora.cli.main import main
from minilora.recipes import load, merge
from minilora.system.files import data_folder
from minilora.text.prompts import encode_prompt
from minilora.text.tokenizer import Tokenizer

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

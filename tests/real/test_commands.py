"""SmolLM2-135M through the commands: there and back by GGUF, two steps of QLoRA, chat."""

import json

import pytest
import torch
from strings_of_all_scripts import strings

from minilora.cli.main import main
from minilora.llama import Llama
from minilora.models import cache
from minilora.qlora import resolve
from minilora.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.real, pytest.mark.slow]

NAME = "smollm2-135m"
ASK = "What is the capital of Italy?"


def test_it_comes_back_from_gguf_to_the_bit(folder, tokenizer, tmp_path, monkeypatch):
    file = tmp_path / "again.gguf"
    assert main(["export", "--model", NAME, "--type", "bf16", "--out", str(file)]) == 0
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    again = resolve(str(file))
    one, other = (Llama.from_pretrained(each).state_dict() for each in (folder, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    theirs = Tokenizer.from_pretrained(again)
    assert all(tokenizer.encode(text) == theirs.encode(text) for text in strings())


def examples(folder):
    """Rows in a form of their own, few enough that validating takes no minutes."""
    folder.mkdir()
    for name, count in (("train", 4), ("valid", 1)):
        rows = [{"prompt": f"What is {n} + {n}?", "response": f"={2 * n}!"} for n in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


def test_two_steps_of_qlora_and_what_the_adapter_answers(tmp_path, answer_in_chat, capsys):
    run = str(tmp_path / "run")
    words = [
        "--model",
        NAME,
        "--data",
        examples(tmp_path / "data"),
        "--method",
        "qlora",
        "--out",
        run,
    ]
    assert main(["finetune", *words, "--steps", "2", "--batch", "2", "--lr", "5e-3"]) == 0
    plain = answer_in_chat(ASK)
    ask = ["generate", "--model", NAME, "--adapter", run, "--prompt", ASK, "--max-new", "12"]
    assert main(ask) == 0
    answer = capsys.readouterr().out
    assert answer.strip() and answer == answer_in_chat(ASK, "--adapter", run)
    assert answer != plain

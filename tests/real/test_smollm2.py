"""SmolLM2-135M beside transformers: logits, ids, answers."""

import json

import pytest
import torch
from strings_of_all_scripts import strings

from minilora.llama import Llama
from minilora.llama.generate import generate
from minilora.models import cache
from minilora.text.prompts import encode_prompt

transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.real, pytest.mark.slow]

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
def both(folder):
    """Our model and transformers', in fp32."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Llama.from_pretrained(folder), theirs


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


@pytest.mark.parity
def test_chat_answers_as_transformers_does(both, tokenizer, answer_in_chat):
    ids = torch.tensor([encode_prompt(ASK, tokenizer)])
    found = both[1].generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
    )
    wanted = tokenizer.decode(found[0, ids.shape[1] :].tolist())
    assert answer_in_chat(ASK).strip() == wanted.strip()

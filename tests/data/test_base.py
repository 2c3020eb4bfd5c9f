"""The shipped base: its size, its card, what it can look up, and that every token a task answers
with was trained.
"""

import json
import sys
from collections import Counter
from itertools import islice

import pytest
import torch

from minilora.llama import Llama
from minilora.recipes import pretrain
from minilora.system.files import data_folder
from minilora.text import Tokenizer

BASE = data_folder() / "base"
sys.path.insert(0, str(data_folder()))


@pytest.fixture(scope="module")
def model():
    return Llama.from_pretrained(BASE)


@pytest.fixture(scope="module")
def raw_tokenizer():
    from tokenizers import Tokenizer as Raw

    return Raw.from_file(str(BASE / "tokenizer.json"))


def test_it_is_small_and_every_linear_fits_blocks_of_64(model):
    assert sum(p.numel() for p in model.parameters()) <= 6_000_000
    assert sum(f.stat().st_size for f in BASE.iterdir()) <= 12_000_000
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert linears and all(m.in_features % 64 == m.out_features % 64 == 0 for m in linears)
    config = model.config
    assert config.tie_word_embeddings and config.num_key_value_heads < config.num_attention_heads
    assert 2000 <= config.vocab_size <= 4096


@pytest.mark.slow
def test_it_looks_up_what_stands_in_its_context(model, raw_tokenizer):
    """Ten families, fewer documents than the card's table; the card's look-up share must not be
    better than the truth.
    """
    facts = json.loads((BASE / "training.json").read_text(encoding="utf-8"))["examined"][-1]
    measured = pretrain.examine(model, raw_tokenizer, count=30)
    assert facts["lookup"] >= 0.95
    assert measured["lookup"] >= facts["lookup"] - 0.03
    assert measured["loss"] == pytest.approx(facts["loss"], abs=0.05)


def test_the_card_says_what_was_run():
    facts = json.loads((BASE / "training.json").read_text(encoding="utf-8"))
    card = (BASE / "README.md").read_text(encoding="utf-8")
    assert f"`{facts['command']}`" in card
    assert f"{facts['tokens']:,} tokens" in card
    assert f"**{facts['examined'][-1]['loss']:.4f}**" in card
    assert (BASE / "training.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_the_tokenizer_is_the_one_that_the_corpus_gives(raw_tokenizer):
    made = pretrain.corpus().tokens.train_tokenizer(raw_tokenizer.get_vocab_size())
    assert made.get_vocab() == raw_tokenizer.get_vocab()


def test_our_chat_format_is_the_corpus_format_and_the_template(raw_tokenizer):
    from corpus.tokens import encode

    tokenizer = Tokenizer.from_pretrained(BASE)
    document = [
        ("user", "Who has the hat?"),
        ("assistant", "Mira"),
        ("user", "Since when?"),
        ("assistant", "today"),
    ]
    messages = [{"role": role, "content": text} for role, text in document]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(BASE).apply_chat_template(
        messages, return_dict=False
    )
    expected, _ = encode(raw_tokenizer, document)
    assert list(theirs) == expected
    from minilora.text import encode_example

    ids, labels = encode_example({"messages": messages}, tokenizer, 512)
    assert ids == expected


def test_a_name_is_the_same_tokens_wherever_it_stands(raw_tokenizer):
    for name in ("Mira", "Thornwick", "Genotar"):
        alone = raw_tokenizer.encode(name).ids
        for text in (f"saw {name}", f'"{name}"', f"{name}.", f"({name}"):
            ids = raw_tokenizer.encode(text).ids
            assert any(ids[i : i + len(alone)] == alone for i in range(len(ids))), (name, text)


@pytest.fixture(scope="module")
def trained_tokens(raw_tokenizer):
    """The tokens of 12,000 documents of each mixture."""
    from corpus import families, tokens

    seen: set = set()
    for mixture in families.MIXTURES:
        for _, document in islice(families.documents(0, mixture), 12_000):
            seen.update(tokens.encode(raw_tokenizer, document)[0])
    return seen


# Pieces of words that only these prompts have ("growled", "yesterday"): the base reads them with an
# embedding it never trained.
UNREAD = {"mood": {"Ġgrow", "Ġche", "Ġtre", "Ġsho", "Ġno", "Ġgood"}, "sums": {"terday", "Ġne"}}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["extract", "mood", "style", "sums"])
def test_every_token_of_an_answer_was_trained(task, raw_tokenizer, trained_tokens):
    """Under LoRA embedding and head are frozen: what the base never wrote, no adapter can make it
    write. Of prompts up to 1 % is new to it.
    """
    used = {"prompt": Counter(), "response": Counter()}
    for split in ("train", "valid", "test"):
        for line in (
            (data_folder() / "tasks" / task / f"{split}.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()
        ):
            for part, counts in used.items():
                counts.update(raw_tokenizer.encode(json.loads(line)[part]).ids)
    new = {
        part: {
            raw_tokenizer.id_to_token(i): n for i, n in counts.items() if i not in trained_tokens
        }
        for part, counts in used.items()
    }
    assert new["response"] == {}
    assert set(new["prompt"]) == UNREAD.get(task, set())
    assert sum(new["prompt"].values()) <= 0.01 * used["prompt"].total()

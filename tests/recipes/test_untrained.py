"""Tokens that the shipped base was never trained on: found, and told where data use them."""

import json

import pytest
import torch

from minilora.cli.main import main
from minilora.llama import Llama
from minilora.recipes import untrained
from minilora.system.files import data_folder
from minilora.text import Tokenizer, encode_rows, read_split

BASE, TASKS = data_folder() / "base", data_folder() / "tasks"


@pytest.fixture(scope="module")
def base():
    return Llama.from_pretrained(BASE).requires_grad_(False), Tokenizer.from_pretrained(BASE)


def rows_of(tokenizer, *pairs):
    return encode_rows([{"prompt": p, "response": r} for p, r in pairs], tokenizer)


def test_the_bases_are_found_and_no_word_of_its_text_is_among_them(base):
    model, tokenizer = base
    found = set(untrained.untrained_tokens(model.model.embed_tokens.weight))
    assert 400 <= len(found) <= 500
    pieces = {tokenizer.decode([token]) for token in found}
    assert {" step", " keep", "\x00"} <= pieces
    told = tokenizer.encode('{"who": "Mira", "what": "the copper arrow", "where": "the mill"}')
    assert not found & set(told)


@pytest.mark.parametrize("group, found", [(15, 0), (16, 16), (40, 40)])
def test_a_group_of_like_rows_is_found_whole_and_alone(group, found):
    torch.manual_seed(group)
    table = torch.randn(500, 64)
    ids = torch.randperm(500)[:group]
    table[ids] = torch.randn(64) * 3 + 0.1 * torch.randn(group, 64)
    assert untrained.untrained_tokens(table.bfloat16()) == (sorted(ids.tolist()) if found else [])


def test_a_table_of_zeros_and_a_large_one_have_none():
    assert untrained.untrained_tokens(torch.zeros(64, 8)) == []
    assert untrained.untrained_tokens(torch.ones(untrained.LARGEST + 1, 2)) == []


def test_words_that_the_base_never_saw_are_told_with_the_most_frequent_first(base, capsys):
    model, tokenizer = base
    rows = rows_of(tokenizer, ("Which one?", "step by step"), ("Which one?", "and keep it"))
    untrained.warn(model, tokenizer, rows, "tiny", "mine.jsonl")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "in mine.jsonl are pieces that tiny was never" in said
    assert "(' step', ' keep')" in said and "--model smollm2-135m" in said


def test_it_is_answers_that_count_where_prompts_are_long(base, capsys):
    """One of 150 tokens is under 1 %; it is one of five that are to be learned."""
    model, tokenizer = base
    long = " ".join(["the old mill"] * 50)
    rows = rows_of(tokenizer, (long, "one step"))
    untrained.warn(model, tokenizer, rows, "tiny", "mine.jsonl")
    said = capsys.readouterr().err
    assert "of the tokens to be learned in mine.jsonl" in said and "' step'" in said
    untrained.warn(model, tokenizer, rows_of(tokenizer, (long + " step", "one")), "tiny", "x")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("task", sorted(path.name for path in TASKS.iterdir() if path.is_dir()))
def test_nothing_is_said_of_the_shipped_tasks(base, task, capsys):
    model, tokenizer = base
    rows = encode_rows(read_split(TASKS / task, "train"), tokenizer)
    untrained.warn(model, tokenizer, rows, "tiny", task)
    assert capsys.readouterr().err == ""


def test_finetune_says_it_and_trains(tmp_path, capsys):
    data = tmp_path / "mine\x1b[2J.jsonl"
    data.write_text(json.dumps({"prompt": "How?", "response": "step by step, keep it cool"}))
    told = ["--method", "lora", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(["finetune", "--model", "tiny", "--data", str(data), *told]) == 0
    said = capsys.readouterr().err
    assert "was never trained on" in said and "\x1b" not in said


@pytest.mark.parametrize(
    "told", [["--method", "full"], ["--targets", "embed_tokens"]], ids=" ".join
)
def test_a_table_that_learns_is_passed_over(tmp_path, capsys, told):
    """Its rows can still be told apart; and one under an adapter has another name."""
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"prompt": "How?", "response": "step by step, keep it cool"}))
    told = ["--method", "lora", *told, "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(["finetune", "--model", "tiny", "--data", str(data), *told]) == 0
    assert "was never trained on" not in capsys.readouterr().err

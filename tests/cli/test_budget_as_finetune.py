"""`minilora budget` counts the run that `minilora finetune` makes of the same words."""

import argparse
import json

import pytest
from budget_words import said_by_itself

from minilora import budget
from minilora.budget import catalog
from minilora.cli import budget as command
from minilora.cli import budget_answer
from minilora.cli import finetune as finetune_command
from minilora.recipes import memory_warning
from minilora.recipes.settings import Settings
from minilora.train.config import declared


def test_advice_that_finetune_cannot_follow_is_marked():
    """Every option of the advice is one of finetune's, with a value that it takes, or is marked."""
    parser = argparse.ArgumentParser()
    finetune_command.add_arguments(parser)
    known = {name: action for action in parser._actions for name in action.option_strings}
    seen = set()
    for start in (
        dict(method="full", attention="eager"),
        dict(method="lora", checkpointing=False, precision="fp32", batch=4, rank=64),
    ):
        for change in budget.advice.changes(budget.estimate("llama-7b", **start).setup):
            name, _, value = budget_answer.flag(change.settings).partition(" ")
            takes = name in known and (not known[name].choices or value in known[name].choices)
            assert budget_answer.only_here(change.settings) == (not takes), (name, value)
            assert bool(budget_answer.mark(change)) == (not takes)
            seen.add((name, takes))
    assert {
        ("--optimizer", False),
        ("--fused", False),
        ("--attention", False),
        ("--batch", True),
        ("--checkpointing", True),
        ("--method", True),
        ("--method", False),
    } <= seen


def parsers() -> dict[str, argparse.ArgumentParser]:
    made = {}
    for name, each in (("budget", command), ("finetune", finetune_command)):
        made[name] = argparse.ArgumentParser(prog=name)
        each.add_arguments(made[name])
    return made


def test_the_help_names_the_options_that_finetune_lacks():
    """What both have stands in one group of the help, what only one has in another."""
    made = parsers()
    ours, theirs = (
        {flag for action in parser._actions for flag in action.option_strings}
        for parser in made.values()
    )
    groups = {
        group.title: {flag for action in group._group_actions for flag in action.option_strings}
        for group in made["budget"]._action_groups
    }
    assert groups["as finetune has them"] <= theirs
    assert not groups["what finetune has no option for"] & theirs
    assert (
        ours - theirs - groups["time and cost"] - groups["what is printed"]
        == groups["what finetune has no option for"]
    )


def test_the_defaults_are_those_of_finetune():
    made = parsers()
    both = {a.dest for a in made["budget"]._actions} & set(declared(Settings))
    assert both >= {"model", "method", "rank", "targets", "batch", "seq", "checkpointing", "code"}
    assert budget_answer.STEPS == declared(Settings)["steps"].default
    for name in both - {"device", "steps"}:
        assert made["budget"].get_default(name) == declared(Settings)[name].default, name


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize(
    "words", ["", "--method lora", "--method int8", "--method full", "--rank 4 --batch 2"]
)
def test_the_same_words_count_the_run_that_finetune_makes(capsys, monkeypatch, words, device):
    monkeypatch.setattr(memory_warning, "keeps_halves", lambda device: device == "cuda")
    argv = ["--model", "llama-7b", *words.split()]
    found = json.loads(said_by_itself(capsys, *argv, "--device", device, "--json"))
    typed = vars(parsers()["finetune"].parse_args(argv))
    settings = Settings(**{n: value for n, value in typed.items() if n in declared(Settings)})
    shape = catalog.model("llama-7b")
    run = memory_warning.setup_of(settings, shape, device, 512)
    assert found["peak_allocated"] == budget.estimate(run).peak_allocated


@pytest.mark.parametrize(
    "method, precision, library, cuda, bf16, words",
    [
        ("qlora", "auto", "minilora", True, True, ("qlora", "bf16")),
        ("qlora", "auto", "minilora", True, False, ("qlora", "autocast")),
        ("lora", "auto", "transformers", True, False, ("lora", "fp16")),
        ("lora", "auto", "minilora", False, False, ("lora", "fp32")),
        ("lora", "fp32", "minilora", True, True, ("lora", "fp32")),
        ("lora", "fp16", "minilora", False, False, ("lora", "autocast")),
        ("full", "auto", "minilora", True, True, ("mixed", None)),
        ("full", "auto", "minilora", False, False, ("full", None)),
    ],
)
def test_a_run_of_finetune_in_the_words_of_the_budget(
    method, precision, library, cuda, bf16, words
):
    assert memory_warning.in_budget_words(method, precision, library, cuda, bf16) == words


def test_a_card_without_bf16_computes_in_fp16_over_a_base_in_32_bits(capsys):
    argv = ["--model", "llama-7b", "--method", "lora", "--batch", "1", "--gpu", "T4"]
    old, new = (
        json.loads(said_by_itself(capsys, *argv[:-1], card, "--json"))["setup"]["precision"]
        for card in ("T4", "A100 80")
    )
    assert (old, new) == ("autocast", "bf16")
    lines = said_by_itself(capsys, *argv).splitlines()
    advice = [line for line in lines if "--precision bf16" in line]
    assert advice and all("(`budget` only" in line for line in advice)


def test_what_our_llama_cannot_run_is_counted_in_transformers_and_said(capsys):
    text = said_by_itself(capsys, "--model", "gpt-neox-20b", "--method", "inference")
    assert "note: counted in transformers' Llama: ours cannot run gpt-neox-20b" in text
    for name in ("llama-7b", "qwen2.5-0.5b", "mistral-7b"):
        assert "transformers" not in said_by_itself(capsys, "--model", name)

"""`minilora budget --gpu`: whether a card holds the run, and what to change where it does not."""

import json
import re

import pytest
from budget_words import SEVEN, said

from minilora import budget
from minilora.budget import catalog
from minilora.budget.table import decimal


def test_a_card_that_holds_the_run(capsys):
    text = said(capsys, *SEVEN, "--gpu", "t4")
    free = catalog.gpu("T4").usable - budget.estimate("llama-7b", method="qlora", rank=8).needs(
        "T4"
    )
    assert (
        f"the run fits, {decimal(free)} stay free" in text
        and "T4 has no bf16" in text
        and "no price" in text
    )


def test_a_card_that_does_not_hold_it_and_what_to_change(capsys):
    argv = [
        "--model",
        "llama-2-13b",
        "--method",
        "lora",
        "--rank",
        "64",
        "--batch",
        "8",
        "--seq",
        "2048",
        "--no-checkpointing",
        "--gpu",
        "RTX 4090",
    ]
    text = said(capsys, *argv)
    assert "the run does not fit" in text and "what makes it fit:" in text
    options = re.findall(r"^  (--\S+(?: \S+)?) +saves", text, re.M)
    assert options
    again = said(capsys, *argv, *[word for option in options for word in option.split()])
    assert "the run fits" in again, "the command's own advice does not help"
    assert "so changed, 300 steps" in text and "so changed" not in again


def test_fewer_rows_at_a_time_are_accumulated_to_the_same_updates(capsys):
    argv = ["--model", "llama-7b", "--batch", "64", "--seq", "2048", "--gpu", "T4", "--steps", "70"]
    found = json.loads(said(capsys, *argv, "--json"))
    assert any(change["option"].startswith("--batch") for change in found["gpu"]["advice"])
    assert found["time"]["updates"] == 70 and "so changed, 70 steps" in said(capsys, *argv)


@pytest.mark.parametrize("rows", [7, 30, 33])
def test_rows_are_parted_evenly_so_that_the_update_stays_the_same(capsys, rows):
    """Half of 7 would be 3, and twice 3 rows are another update."""
    argv = [
        "--model",
        "mistral-7b",
        "--method",
        "lora",
        "--rank",
        "1",
        "--batch",
        str(rows),
        "--seq",
        "4096",
        "--optimizer",
        "sgd",
        "--gpu",
        "RTX 4090",
        "--steps",
        "70",
    ]
    found = json.loads(said(capsys, *argv, "--json"))
    parts = [
        int(change["option"].split()[1])
        for change in found["gpu"]["advice"]
        if change["option"].startswith("--batch")
    ]
    assert parts and rows % parts[0] == 0 and found["time"]["updates"] == 70


@pytest.mark.parametrize(
    "argv",
    [
        [
            "--model",
            "llama-33b",
            "--method",
            "lora",
            "--precision",
            "fp32",
            "--targets",
            "q_proj,v_proj",
            "--fused",
            "--gpu",
            "L4",
        ],
        ["--model", "llama-7b", "--method", "full", "--precision", "fp32", "--gpu", "RTX 4090"],
        [
            "--model",
            "llama-3.3-70b",
            "--method",
            "lora",
            "--precision",
            "autocast",
            "--fused",
            "--batch",
            "1",
            "--rank",
            "3",
            "--targets",
            "down_proj",
            "--gpu",
            "A100 80",
        ],
    ],
)
def test_advice_holds_where_a_precision_was_asked_for(capsys, argv):
    """What was typed stays typed: another method in the same precision would not fit."""
    found = json.loads(said(capsys, *argv, "--json"))["gpu"]
    options = [word for change in found["advice"] for word in change["option"].split()]
    assert "--method" in options and "--precision" in options
    again = json.loads(said(capsys, *argv, *options, "--json"))["gpu"]
    assert again["fits"] and again["need"] == found["need"] - sum(
        change["saves"] for change in found["advice"]
    )
    assert all(change["option"] in said(capsys, *argv) for change in found["advice"])


def test_a_run_that_nothing_saves_names_what_saves_most(capsys):
    text = said(capsys, "--model", "llama-3.1-405b", "--gpu", "T4")
    assert "nothing that this command can change makes it fit" in text and re.search(
        r"--\w+.*saves", text
    )
    assert "no single card of the catalogue" in said(
        capsys, "--model", "llama-3.1-405b", "--method", "full"
    )


def test_without_a_card_the_smallest_is_named(capsys):
    told = budget.estimate("llama-7b", method="full-bf16", batch=1)
    text = said(capsys, "--model", "llama-7b", "--method", "full-bf16")
    name = re.search(r"the smallest card that holds it: (.+?),", text)[1]
    fits = {card.name for card in catalog.GPUS.values() if told.needs(card) <= card.usable}
    assert name in fits and catalog.gpu(name).memory == min(
        catalog.gpu(each).memory for each in fits
    )

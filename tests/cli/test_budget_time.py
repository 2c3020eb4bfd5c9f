"""`minilora budget`: steps, time, tokens a second and cost."""

import json
import re

import pytest
from budget_words import SEVEN, said

from minilora.budget.forms import compute
from minilora.cli import budget_answer


@pytest.mark.parametrize("rows", [1, 4])
def test_inference_is_told_in_tokens_a_second(capsys, rows):
    argv = [
        "--model",
        "llama-7b",
        "--method",
        "inference",
        "--seq",
        "100",
        "--gpu",
        "RTX 4090",
        "--batch",
        str(rows),
    ]
    # weights but the token table, and the cache
    read = 2 * (6_738_415_616 - 32000 * 4096) + rows * 2 * 2 * 32 * 100 * 4096
    rate = 0.6 * rows * 1008e9 / read
    text, found = said(capsys, *argv), json.loads(said(capsys, *argv, "--json"))
    assert (
        f"about {rate:,.{0 if rate >= 10 else 1}f} tokens a second" in text
        and "60 %" in text
        and "steps" not in text
        and "loss" not in text
    )
    assert (f"in all {rows} rows together" in text) == (rows > 1)
    assert (
        found["time"]["tokens_per_second"] == pytest.approx(rate) and "updates" not in found["time"]
    )


def test_inference_that_fits_only_when_changed_is_timed_as_changed(capsys):
    argv = ["--model", "llama-7b", "--method", "inference", "--seq", "100", "--gpu", "RTX 4090"]
    changed, halves = said(capsys, *argv, "--precision", "fp32"), said(capsys, *argv)
    rate = re.search(r"about \S+ tokens a second", halves)[0]
    assert (
        "--precision bf16" in changed
        and f"so changed, {rate}" in changed
        and "so changed" not in halves
    )


@pytest.mark.parametrize(
    "seconds, text",
    [(0.41, "0.41 s"), (59, "59 s"), (300, "5.0 min"), (9000, "2.5 h"), (864000, "10.0 days")],
)
def test_time_is_told_as_people_do(seconds, text):
    assert budget_answer.duration(seconds) == text


def test_examples_epochs_and_cards_give_updates_time_and_cost(capsys):
    argv = [
        *SEVEN,
        "--gpu",
        "H100",
        "--batch",
        "4",
        "--examples",
        "1001",
        "--epochs",
        "3",
        "--devices",
        "2",
        "--utilisation",
        "0.2",
    ]
    found, text = json.loads(said(capsys, *argv, "--json"))["time"], said(capsys, *argv)
    assert found["updates"] == 3 * 126  # ⌈1001 / (4 rows · 2 cards)⌉ for each epoch
    assert (
        "378 steps (1,001 examples × 3 epochs) on 2 cards" in text
        and "at 20 % of" in text
        and "send one another is not counted" in text
    )
    assert (found["examples"], found["epochs"], found["devices"], found["utilisation"]) == (
        1001,
        3,
        2,
        0.2,
    )
    half = json.loads(
        said(capsys, *SEVEN, "--gpu", "H100", "--batch", "4", "--steps", "378", "--json")
    )["time"]
    # half the utilisation of the default
    assert found["step_seconds"] == pytest.approx(2 * half["step_seconds"])
    # twice as long on twice as many
    assert found["cost"] == pytest.approx([2 * 2 * price for price in half["cost"]])


def test_steps_on_several_cards_are_as_many_and_take_as_long(capsys):
    one, four = (
        json.loads(
            said(capsys, *SEVEN, "--gpu", "T4", "--steps", "50", "--devices", cards, "--json")
        )["time"]
        for cards in ("1", "4")
    )
    assert (
        one["updates"] == four["updates"] == 50
        and one["seconds"] == four["seconds"]
        and "examples" not in one
    )


def test_inference_reaches_the_share_that_is_asked_for(capsys):
    argv = ["--model", "llama-7b", "--method", "inference", "--gpu", "RTX 4090", "--json"]
    usual, asked = (
        json.loads(said(capsys, *argv, *more))["time"] for more in ([], ["--utilisation", "0.3"])
    )
    assert (
        usual["utilisation"] == compute.DECODING == budget_answer.DECODING
        and asked["utilisation"] == 0.3
    )
    assert asked["tokens_per_second"] == pytest.approx(usual["tokens_per_second"] / 2)


def test_prices_carry_their_date(capsys):
    assert re.search(
        r"\$[\d.]+ to \$[\d.]+ at prices of March 2026", said(capsys, *SEVEN, "--gpu", "H100")
    )

"""A preference that can be counted: short answers to sums, by a model that has learned to answer
either way.

What it replaces: thousands of judgements by people, which a course cannot ask for.
How it works: the shipped adapter `talkative` has learned the sums of the task with some answers "7"
and more of them "Let me see. The answer is 7.", at random; so it answers either way, and merged
into the base it is the reference (`talkative_model`). A judge who knows no arithmetic compares two
answers drawn from it: the shorter is preferred (`judged_pairs`). A reward (`reward`) is given by
one who does. `tally` counts, for answers to other questions, how many are short and how many name
the right number, in whatever words.
What it leaves out: people, whose preferences are neither this clear nor this consistent.
Where numerics differ: draws depend on the model's last bits; other machines may draw a few other
answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import torch
from torch import nn

from .. import lora
from ..llama.model import Llama
from ..system.files import data_folder
from ..text.examples import read_split
from ..text.tokenizer import Tokenizer
from ..train.preference import Pair, Settings, answer_text, fit_dpo, fit_policy, sample_answers

TASK = "sums"

# share of the answers spelled out; the adapter that training starts from has seen short ones only
AT_LENGTH = 0.7

PORTION = 50  # questions answered at once


def at_length(number: str) -> str:
    """The same answer in more words."""
    return f"Let me see. The answer is {number}."


def two_ways(examples: Sequence[dict], seed: int = 0) -> list[dict]:
    """The examples with most of the answers at length, drawn by the seed."""
    dice = random.Random(seed)
    return [
        {**e, "response": at_length(e["response"]) if dice.random() < AT_LENGTH else e["response"]}
        for e in examples
    ]


def is_short(answer: str) -> bool:
    """Nothing but one number."""
    return re.fullmatch(r"\s*\d+\s*", answer) is not None


def is_right(example: dict, answer: str) -> bool:
    """The answer names one number, in whatever words, and it is the wanted one."""
    return re.findall(r"\d+", answer) == [example["response"]]


def questions(split: str) -> list[dict]:
    """The sums of a split; of "test", only those whose prompt does not stand in "train"."""
    folder = data_folder() / "tasks" / TASK
    seen = (
        {example["prompt"] for example in read_split(folder, "train")}
        if split != "train"
        else set()
    )
    return [example for example in read_split(folder, split) if example["prompt"] not in seen]


def talkative_model() -> tuple[Llama, Tokenizer]:
    """(model, tokenizer): plain linear layers, no adapter; it solves sums and answers either
    way.
    """
    folder = data_folder()
    tokenizer = Tokenizer.from_pretrained(folder / "base")
    model = lora.load_adapter(
        Llama.from_pretrained(folder / "base"), folder / "adapters" / "talkative"
    )
    return lora.unload(lora.merge(model)), tokenizer


def answers(
    model: nn.Module, tokenizer: Tokenizer, examples: Sequence[dict], seed: int = 0
) -> list[str]:
    """One answer to each question, drawn at temperature 1: what the policy does, not only what it
    likes best.
    """
    found = []
    for start in range(0, len(examples), PORTION):
        prompts = [example["prompt"] for example in examples[start : start + PORTION]]
        found += [
            answer_text(row, tokenizer)
            for row in sample_answers(model, tokenizer, prompts, seed=seed + start)
        ]
    return found


def tally(examples: Sequence[dict], given: Sequence[str]) -> tuple[float, float]:
    """(preferred share, task score) in percent: how many answers are short, and how many are right
    in whatever words.
    """
    short, right = sum(map(is_short, given)), sum(map(is_right, examples, given))
    return 100 * short / len(examples), 100 * right / len(examples)


def judged_pairs(
    model: nn.Module, tokenizer: Tokenizer, examples: Sequence[dict], seed: int = 0
) -> list[Pair]:
    """Two answers drawn for each question; where one is shorter, it is the chosen one. The judge
    does not look at the number.
    """
    pairs = []
    for start in range(0, len(examples), PORTION):
        prompts = [example["prompt"] for example in examples[start : start + PORTION]]
        first, second = (
            sample_answers(model, tokenizer, prompts, seed=10_000 * turn + seed + start)
            for turn in (1, 2)
        )
        for rows in zip(first, second):
            short, long = sorted(rows, key=lambda row: len(answer_text(row, tokenizer)))
            if len(answer_text(short, tokenizer)) < len(answer_text(long, tokenizer)):
                pairs.append(Pair(short, long))
    return pairs


def reward(example: dict, answer: str) -> float:
    """1 for a short answer that is right, else 0."""
    return float(is_short(answer) and is_right(example, answer))


def learn(model: nn.Module, tokenizer: Tokenizer, recipe: dict) -> list[dict]:
    """Put a fresh adapter on `model` and teach it short answers by a recipe of
    benchmarks/tasks/preference.py: method "dpo" or "policy".
    """
    torch.manual_seed(recipe["seed"])
    examples = questions("train")
    settings = Settings(
        **{name: recipe[name] for name in ("steps", "batch_size", "lr", "beta", "seed")}
    )
    if recipe["method"] == "dpo":
        pairs = judged_pairs(model, tokenizer, examples[: recipe["judged"]], recipe["seed"])
        return fit_dpo(lora.add_lora(model, recipe["rank"], 2 * recipe["rank"]), pairs, settings)
    lora.add_lora(model, recipe["rank"], 2 * recipe["rank"])
    return fit_policy(model, tokenizer, examples, reward, settings)

"""The judge, the reward and the count behind lesson 09's preference, and the tables and adapters
that the lesson shows.
"""

import json

import pytest
import torch

from benchmarks.kit import short_runs
from benchmarks.tasks import adapters, mixing
from benchmarks.tasks import preference as preferences
from minilora import lora
from minilora.course import short_answers
from minilora.llama import Llama
from minilora.system.files import data_folder
from minilora.text import Tokenizer
from minilora.train import preference

SUM = {"prompt": "1 + 6?", "response": "7"}


@pytest.mark.parametrize(
    "answer, short, right",
    [
        ("7", True, True),
        (" 7\n", True, True),
        ("8", True, False),
        ("17", True, False),
        (short_answers.at_length("7"), False, True),
        (short_answers.at_length("8"), False, False),
        ("7 or 8", False, False),
        ("seven", False, False),
        ("", False, False),
        ("7 7", False, False),
    ],
)
def test_short_and_right_are_two_things(answer, short, right):
    assert (short_answers.is_short(answer), short_answers.is_right(SUM, answer)) == (short, right)
    assert short_answers.reward(SUM, answer) == float(short and right)


def test_the_tally_is_in_percent():
    assert short_answers.tally([SUM] * 4, ["7", "8", short_answers.at_length("7"), "no"]) == (
        50,
        50,
    )


def test_the_two_ways_have_the_same_numbers_and_no_question_is_held_out_twice():
    train, test = short_answers.questions("train"), short_answers.questions("test")
    ways = short_answers.two_ways(train, seed=1)
    long = [way["response"] != example["response"] for way, example in zip(ways, train)]
    assert short_answers.tally(train, [way["response"] for way in ways])[1] == 100
    assert 0.65 < sum(long) / len(long) < 0.75 and ways != short_answers.two_ways(train, seed=2)
    assert not {example["prompt"] for example in test} & {example["prompt"] for example in train}


def test_the_shorter_of_two_answers_is_the_chosen_one(monkeypatch):
    folder = data_folder() / "base"
    tokenizer = Tokenizer.from_pretrained(folder)
    said = {1: ["5", "seven", "9"], 2: ["fifty five", "7", "9"]}  # by draw

    def draw(model, tokenizer, prompts, seed, **more):
        return [
            ([1, *tokenizer.encode(text)], [-100, *tokenizer.encode(text)])
            for text in said[seed // 10_000]
        ]

    monkeypatch.setattr(short_answers, "sample_answers", draw)
    pairs = short_answers.judged_pairs(None, tokenizer, [SUM] * 3)
    told = [
        tuple(preference.answer_text(row, tokenizer) for row in (pair.chosen, pair.rejected))
        for pair in pairs
    ]
    # of two answers of one length none is preferred
    assert told == [("5", "fifty five"), ("7", "seven")]


def test_the_shipped_adapters_belong_to_the_base_and_do_their_tasks():
    book = json.loads((data_folder() / "adapters" / "adapters.json").read_text(encoding="utf-8"))
    assert book["base"] == short_runs.fingerprint(), (
        "made with another base; run benchmarks/tasks/adapters.py again"
    )
    assert [record["task"] for record in book["adapters"]] == list(adapters.ALL)
    assert (data_folder() / "adapters" / "README.md").read_text(
        encoding="utf-8"
    ) == adapters.readme(book)
    least = {"extract": 0.85, "mood": 0.95, "style": 0.95, "sums": 0.95, "talkative": 0.9}
    model = Llama.from_pretrained(data_folder() / "base")
    for record in book["adapters"]:
        assert record["hits"] / record["of"] >= least[record["task"]] and record[
            "command"
        ] == adapters.shown(record["task"], 0)
        folder = data_folder() / "adapters" / record["task"]
        assert (
            sum((folder / name).stat().st_size for name in adapters.FILES)
            == record["bytes"]
            < 400_000
        )
        lora.load_adapter(model, folder, record["task"])
        assert lora.adapters(model)[record["task"]].base_model == "data/base"


def test_the_shipped_adapters_load_in_peft():
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        data_folder() / "base", dtype=torch.float32
    )
    ours, ids = Llama.from_pretrained(data_folder() / "base"), torch.arange(20, 40)[None]
    for name in adapters.ALL:
        folder = data_folder() / "adapters" / name
        if name == adapters.ALL[0]:
            theirs = peft.PeftModel.from_pretrained(theirs, folder, adapter_name=name)
        else:
            theirs.load_adapter(folder, adapter_name=name)
        theirs.set_adapter(name)
        with torch.no_grad():
            torch.testing.assert_close(
                theirs(ids).logits, lora.load_adapter(ours, folder, name)(ids), rtol=1e-3, atol=1e-3
            )


def test_the_tables_of_the_lesson_are_whole_and_of_the_shipped_base():
    told = json.loads((short_runs.RESULTS / "sweep-mixing.json").read_text(encoding="utf-8"))
    assert told["base"] == short_runs.fingerprint(), (
        "made with another base; run benchmarks/tasks/mixing.py again"
    )
    assert [(" + ".join(run["adapters"]), run["seed"]) for run in told["runs"]] == [
        (pair, seed) for seed in mixing.SEEDS for pair in mixing.PAIRS
    ]
    for run in told["runs"]:
        assert len(run["points"]) == len(run["answers"]) == len(mixing.WEIGHTS) ** 2
        assert all(0 <= hits <= run["asked"] for _, _, *right in run["points"] for hits in right)
    told = json.loads((short_runs.RESULTS / "sweep-preference.json").read_text(encoding="utf-8"))
    assert told["base"] == short_runs.fingerprint(), (
        "made with another base; run benchmarks/tasks/preference.py again"
    )
    assert len(told["runs"]) == sum(
        len(preferences.SEEDS) * len(betas) for betas in preferences.BETAS.values()
    )
    assert all(len(run["records"]) == run["steps"] for run in told["runs"])


def test_dpo_raises_the_preferred_share_and_keeps_the_score_with_every_seed():
    """The lesson's point, in the shipped table: 20 points more, the task score within 5."""
    told = json.loads((short_runs.RESULTS / "sweep-preference.json").read_text(encoding="utf-8"))
    runs = [run for run in told["runs"] if run["method"] == "dpo" and run["beta"] == 0.1]
    assert len(runs) >= 3
    for run in runs:
        assert run["after"]["short"] - run["before"]["short"] >= 20
        assert abs(run["after"]["right"] - run["before"]["right"]) <= 5

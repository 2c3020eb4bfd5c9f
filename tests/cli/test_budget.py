"""`minilora budget`: its table, JSON, picture and advice agree with `estimate`; and `finetune`
warns before it would run out.
"""

import argparse
import json
import re
from dataclasses import replace

import pytest

from minilora import budget
from minilora.budget import catalog
from minilora.budget.forms import compute
from minilora.budget.setup import METHODS
from minilora.budget.table import GB, binary, decimal
from minilora.cli import budget as command
from minilora.cli import budget_answer
from minilora.cli import finetune as finetune_command
from minilora.cli.main import main
from minilora.recipes import memory_warning
from minilora.recipes.settings import Settings
from minilora.system import memory
from minilora.system.files import data_folder
from minilora.train.config import declared

SEVEN = ["--model", "llama-7b", "--method", "qlora", "--rank", "8"]
OTHER = ["--batch", "1", "--checkpointing", "--library", "transformers"]  # than finetune's


def other(argv) -> list[str]:
    """The defaults of `budget.estimate`, typed: the method's own precision among them."""
    method = argv[argv.index("--method") + 1] if "--method" in argv else "qlora"
    words = [word for word in OTHER if (word, method) != ("--checkpointing", "inference")]
    return [*words, "--precision", METHODS.get(method, (None, "bf16"))[1]]


def said(capsys, *argv) -> str:
    return said_by_itself(capsys, *other(argv), *argv)


def said_by_itself(capsys, *argv) -> str:
    assert main(["budget", *argv]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def complaint(capsys, *argv) -> str:
    assert main(["budget", *other(argv), *argv]) == 2
    captured = capsys.readouterr()
    assert (
        captured.out == ""
        and captured.err.startswith("minilora: ")
        and captured.err.count("\n") == 1
    )
    return captured.err


# ------------------------------------------------------------------------------------- what it says


def test_the_table_is_what_estimate_says(capsys):
    told = budget.estimate("llama-7b", method="qlora", rank=8)
    text = said(capsys, *SEVEN)
    for name, part in told.parts.items():
        if part.bytes:
            assert re.search(
                rf"^{re.escape(name)} +{re.escape(decimal(part.bytes, told.total))} "
                rf"+{re.escape(binary(part.bytes, told.total))}  {re.escape(part.what)}$",
                text,
                re.M,
            )
    assert decimal(told.peak_allocated, told.total) in text and told.moment in text
    assert f"{told.trainable:,} of {told.parameters:,} parameters learn" in text


def test_the_parts_add_up_in_the_table(capsys):
    text = said(capsys, *SEVEN)
    rows = re.findall(r"^(\S.*?)  +([\d.]+) GB ", text, re.M)
    sizes = {name.strip(): float(size) for name, size in rows}
    parts = sum(
        size
        for name, size in sizes.items()
        if name not in ("all parts", "peak allocated", "on the card")
    )
    assert abs(parts - sizes["all parts"]) < 0.01 and sizes["peak allocated"] <= sizes["all parts"]


def test_explain_shows_formulas(capsys):
    plain, explained = said(capsys, *SEVEN), said(capsys, *SEVEN, "--explain")
    assert "4/8 B × 6,476,005,376 weights" in explained and "4/8 B" not in plain


def test_json_holds_the_bytes_the_card_and_the_time(capsys):
    found = json.loads(said(capsys, *SEVEN, "--json", "--gpu", "A100 80", "--steps", "100"))
    told = budget.estimate("llama-7b", method="qlora", rank=8)
    assert (
        found["peak_allocated"] == told.peak_allocated
        and found["parts"]["weights"]["bytes"] == told.parts["weights"].bytes
    )
    card = catalog.gpu("A100 80")
    assert (
        found["gpu"]["need"] == told.needs(card)
        and found["gpu"]["free"] == card.usable - told.needs(card)
        and found["gpu"]["fits"] is True
    )
    assert (
        found["time"]["updates"] == 100
        and found["time"]["cost"]
        and found["time"]["seconds"] > 0
        and found["gpu"]["advice"] == []
    )


@pytest.mark.parametrize(
    "argv, settings",
    [
        (["--batch", "4", "--seq", "128"], {"batch": 4, "seq": 128}),
        (["--no-checkpointing"], {"checkpointing": False}),
        (["--optimizer", "adamw8bit"], {"optimizer": "adamw8bit"}),
        (["--targets", "q_proj,v_proj", "--rank", "4"], {"targets": "q_proj,v_proj", "rank": 4}),
        (["--method", "full"], {"method": "full"}),
        (["--method", "lora", "--precision", "fp32"], {"method": "lora", "precision": "fp32"}),
        (["--fused"], {"foreach": False}),
        (["--method", "inference"], {"method": "inference"}),
        # torch takes AdamW's parameters one by one on a processor
        (
            ["--library", "minilora", "--device", "cpu"],
            {"library": "minilora", "device": "cpu", "foreach": False},
        ),
    ],
)
def test_each_option_reaches_the_estimate(capsys, argv, settings):
    found = json.loads(said(capsys, "--model", "llama-7b", *argv, "--json"))
    wanted = budget.estimate("llama-7b", **settings)
    assert (found["peak_allocated"], found["total"]) == (wanted.peak_allocated, wanted.total)
    assert found["total"] != budget.estimate("llama-7b").total, (
        "the option changes nothing, so this test could not fail"
    )


def test_a_folder_and_tiny_are_models_too(capsys):
    assert "qlora on tiny" in said(capsys)
    by_path = json.loads(said(capsys, "--model", str(data_folder() / "base"), "--json"))
    assert by_path["parameters"] == budget.estimate("tiny").parameters


# -------------------------------------------------------------------------------------------- cards


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


def test_rows_longer_than_the_model_was_made_for_are_noted_once(capsys):
    for more in ([], ["--gpu", "T4"]):
        assert (
            said(capsys, "--model", "tinyllama-1.1b", "--seq", "2049", *more).count(
                "note: 2,049 tokens are more than the 2,048 that tinyllama-1.1b was made for"
            )
            == 1
        )
        assert "was made for" not in said(
            capsys, "--model", "tinyllama-1.1b", "--seq", "2048", *more
        )
    assert json.loads(said(capsys, "--model", "tinyllama-1.1b", "--seq", "2049", "--json"))["notes"]


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


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--model", "lama-7b"], "unknown model 'lama-7b'.*llama-7b"),
        (["--gpu", "T5"], "unknown GPU 'T5'.*T4"),
        (["--batch", "0"], "batch is 0.*at least 1"),
        (["--rank", "257"], "rank 257 is above .* at most 128"),
        (["--rank", "0"], "rank is 0"),
        (["--seq", "0"], "seq is 0"),
        (["--steps", "0"], "--steps is 0"),
        (["--gpu", "T4", "--examples", "0"], "--examples is 0.*1 or more"),
        (["--gpu", "T4", "--devices", "-1"], "--devices is -1.*1 or more"),
        (["--gpu", "T4", "--examples", "9", "--epochs", "0"], "--epochs is 0.*above 0"),
        (["--gpu", "T4", "--examples", "9", "--epochs", "nan"], "--epochs is nan"),
        (["--gpu", "T4", "--utilisation", "1.5"], "--utilisation is 1.5.*at most 1"),
        (["--gpu", "T4", "--utilisation", "nan"], "--utilisation is nan"),
        (["--gpu", "T4", "--steps", "9", "--examples", "9"], "--steps and --examples .*leave one"),
        (["--gpu", "T4", "--epochs", "2"], "--epochs .*--examples"),
        (["--examples", "9"], "--examples .*add --gpu NAME"),
        (["--utilisation", "0.3"], "--utilisation .*add --gpu NAME"),
        (["--gpu", "T4", "--method", "inference", "--devices", "2"], "--devices is for training"),
        (["--method", "qlra"], "'qlra'.*qlora"),
        (["--targets", "q_prj"], "'q_prj'.*q_proj"),
        (["--optimizer", "adamw8"], "'adamw8'.*adamw8bit"),
        (["--precision", "bf61"], "'bf61'.*bf16"),
        (["--picture", "budget.gif"], "budget.gif.*svg"),
        (["--bathc", "1"], "--bathc.*--help"),
        (["--gpu", "T4", "--device", "cpu"], "--gpu T4 .* --device cpu .*leave one"),
        (["--model", "tests"], "tests|config.json"),
        (["--model", "mt0-large"], "mt0-large is no Llama.*inference"),
        (["--picture", "/proc/budget.svg"], "cannot write"),
        (["--gpu", ""], "unknown GPU ''"),
        (["--picture", ""], "--picture .*svg"),
        (["--batch", "9" * 20], "batch is 99,.*at most"),
        (["--seq", "9" * 14], "seq is 99,.*at most"),
        (["--gpu", "H100", "--steps", "9" * 400], "--steps has 400 digits.*at most"),
        (["--gpu", "H100", "--examples", "9" * 15], "--examples is 1e.15.*at most"),
        (["--gpu", "H100", "--examples", "9", "--epochs", "1e308"], "--epochs is 1e.308.*at most"),
        (["--gpu", "H100", "--utilisation", "1e-320"], "--utilisation is .*e-3.*at most 1"),
    ],
)
def test_the_impossible_gets_one_line(capsys, argv, message):
    assert re.search(message, complaint(capsys, *argv))


# ----------------------------------------------------------------------------------------- finetune


def settings(**more):
    return Settings(data="x", **more)


BASE = data_folder() / "base"


@pytest.mark.parametrize(
    "more", [{"variant": "dora"}, {"dropout": 0.05}, {"variant": "dora", "dropout": 0.05}]
)
def test_a_run_with_dora_or_dropout_is_told_to_need_more(more):
    plain, asked = (
        memory_warning.takes(memory_warning.setup_of(each, BASE, "cpu", 200), each)
        for each in (settings(method="lora"), settings(method="lora", **more))
    )
    assert asked > 1.02 * plain
    assert (
        memory_warning.warning(
            settings(method="lora"), BASE, "cpu", 200, plain + memory_warning.LIBRARIES
        )
        is None
    )
    assert f"about {decimal(asked + memory_warning.LIBRARIES)}" in memory_warning.warning(
        settings(method="lora", **more), BASE, "cpu", 200, plain + memory_warning.LIBRARIES
    )
    full = [
        memory_warning.takes(memory_warning.setup_of(each, BASE, "cpu", 200), each)
        for each in (settings(method="full"), settings(method="full", **more))
    ]
    assert full[0] == full[1]  # there is no adapter that could drop out


@pytest.mark.parametrize("method", ["qlora", "lora", "int8", "full"])
def test_a_run_that_would_not_fit_is_named_with_a_remedy_that_helps(method):
    need = (
        budget.estimate(
            memory_warning.setup_of(settings(method=method), BASE, "cpu", 200)
        ).peak_allocated
        + memory_warning.LIBRARIES
    )
    assert memory_warning.warning(settings(method=method), BASE, "cpu", 200, need) is None
    line = memory_warning.warning(settings(method=method), BASE, "cpu", 200, int(need - 80e6))
    assert decimal(need) in line and decimal(int(need - 80e6)) in line and "add --" in line
    options = dict(re.findall(r"--(batch|seq|method|checkpointing) ?(\w+)?", line.split("; ")[1]))
    changed = {"checkpointing": True} if "checkpointing" in options else {}
    changed |= {name: int(options[name]) for name in ("batch", "seq") if options.get(name)} | (
        {"method": options["method"]} if "method" in options else {}
    )
    longest = changed.pop("seq", 200)
    assert (
        memory_warning.warning(
            settings(**{"method": method, **changed}), BASE, "cpu", longest, int(need - 80e6)
        )
        is None
    ), "the remedy does not help"


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "fp32", "rank": 64},
        {"precision": "bf16"},
        {"method": "full", "rank": 64, "targets": "q_proj"},
    ],
)
def test_another_method_is_counted_with_the_precision_and_rank_that_were_asked_for(more):
    asked = settings(**{"method": "lora", **more})
    setup = memory_warning.setup_of(asked, BASE, "cpu", 100)
    really = memory_warning.setup_of(replace(asked, method="qlora"), BASE, "cpu", 100)
    assert (
        memory_warning.takes(setup, asked, method="qlora") == budget.estimate(really).with_context
    )
    assert (
        memory_warning.takes(setup, asked, method="qlora", batch=2)
        == budget.estimate(really, batch=2).with_context
    )


def test_where_nothing_helps_another_machine_is_named():
    assert "smaller model" in memory_warning.warning(settings(), BASE, "cpu", 200, 1000)


def test_where_the_system_does_not_say_what_is_free_there_is_no_warning(monkeypatch):
    monkeypatch.setattr(memory, "_system", lambda: None)
    assert memory_warning.warning(settings(), BASE, "cpu", 100) is None


def test_finetune_warns_and_trains_all_the_same(tmp_path, capsys, monkeypatch):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "say a", "response": "a"}\n' * 4)
    argv = ["finetune", "--model", "tiny", "--data", str(data), "--steps", "1", "--batch", "2"]
    assert main([*argv, "--out", str(tmp_path / "calm")]) == 0
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(memory_warning, "available", lambda device: 10**6)
    assert main([*argv, "--out", str(tmp_path / "warned")]) == 0
    err = capsys.readouterr().err
    assert (
        err.count("minilora: warning: this run will need about") == 1
        and "1.00 MB are free on cpu" in err
    )

    def broken(device):
        raise RuntimeError("no such figure")

    monkeypatch.setattr(memory_warning, "available", broken)
    assert main([*argv, "--out", str(tmp_path / "blind")]) == 0
    assert "warning" not in capsys.readouterr().err


def test_sizes_are_told_in_one_unit_per_table():
    assert (
        decimal(3.2384e9) == "3.238 GB"
        and decimal(15.83e9) == "15.83 GB"
        and decimal(4e6) == "4.00 MB"
        and decimal(4e6, 5 * GB) == "0.004 GB"
    )
    assert binary(2**30) == "1.000 GiB" and binary(2**20) == "1.00 MiB"

"""`minilora budget`: its table, JSON and refusals agree with `estimate`."""

import json
import re

import pytest
from budget_words import SEVEN, complaint, said

from minilora import budget
from minilora.budget import catalog
from minilora.budget.table import GB, binary, decimal
from minilora.system.files import data_folder


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


def test_sizes_are_told_in_one_unit_per_table():
    assert (
        decimal(3.2384e9) == "3.238 GB"
        and decimal(15.83e9) == "15.83 GB"
        and decimal(4e6) == "4.00 MB"
        and decimal(4e6, 5 * GB) == "0.004 GB"
    )
    assert binary(2**30) == "1.000 GiB" and binary(2**20) == "1.00 MiB"

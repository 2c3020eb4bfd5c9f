"""When a run is told of a full memory, and what `finetune` may change then, the mildest first."""

import re
from dataclasses import replace

import pytest

from minilora import budget
from minilora.budget.setup import make
from minilora.budget.table import decimal
from minilora.cli.main import main
from minilora.recipes import memory_warning
from minilora.recipes.memory_warning import options
from minilora.recipes.settings import Settings
from minilora.system import memory
from minilora.system.files import data_folder


def test_a_step_is_cut_into_any_parts_that_divide_it_down_to_single_rows():
    setup = make("llama-7b", method="qlora", batch=12, seq=256, checkpointing=False)
    assert [option for _, option in options(setup, accumulate=2)] == [
        "--checkpointing",
        "--batch 6 --accumulate 4",
        "--batch 4 --accumulate 6",
        "--batch 3 --accumulate 8",
        "--batch 2 --accumulate 12",
        "--batch 1 --accumulate 24",
        "--seq 128",
        "--seq 64",
        "--seq 32",
    ]


def test_an_option_changes_what_it_says():
    setup = make("llama-7b", method="lora", batch=2, seq=64, checkpointing=True)
    assert options(setup) == [
        ({"batch": 1}, "--batch 1 --accumulate 2"),
        ({"method": "qlora"}, "--method qlora"),
        ({"seq": 32}, "--seq 32"),
    ]


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

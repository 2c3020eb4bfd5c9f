"""The benchmarks on the real model: points are measured once and kept, rates are chosen by what was
tried, and the tables say what the files hold.
"""

import argparse
import json

import pytest

from benchmarks.kit import points
from benchmarks.real import model, precision, speed, step_parts, tasks
from minilora.llama import Llama
from minilora.qlora.base import quantize_base, recipe
from tools import real_tables

KEYS = ["a/one", "a/two", "b/one"]


def options(tmp_path, **more):
    return argparse.Namespace(**{"out": tmp_path / "r.json", "only": [], "again": False} | more)


def test_a_point_that_stands_in_the_file_is_not_measured_again(tmp_path):
    asked = []

    def measure(key, found):
        asked.append((key, sorted(found)))
        if key == "b/one":
            raise SystemExit("broken off")
        return {"n": len(asked)}

    with pytest.raises(SystemExit):
        points.run(options(tmp_path), {"what": "x"}, KEYS, measure)
    assert asked == [("a/one", []), ("a/two", ["a/one"]), ("b/one", ["a/one", "a/two"])]
    found = points.run(options(tmp_path, only=["a"]), {"what": "x"}, KEYS, measure)
    assert len(asked) == 3 and found["a/two"]["n"] == 2
    again = points.run(options(tmp_path, only=["a/two"], again=True), {}, KEYS, measure)
    assert again["a/two"]["n"] == 4 and again["a/one"]["n"] == 1
    told = json.loads((tmp_path / "r.json").read_text())
    assert {"date", "machine", "versions"} <= told.keys()
    assert [point["key"] for point in told["points"]] == ["a/one", "a/two"]


def test_points_are_named_whole_or_by_their_beginning():
    assert points.wanted(KEYS, []) == KEYS
    assert points.wanted(KEYS, ["b", "a/two"]) == ["a/two", "b/one"]
    with pytest.raises(SystemExit, match="there is no point a/o"):
        points.wanted(KEYS, ["a/o"])


def test_a_process_that_fails_ends_the_program_with_its_key():
    with pytest.raises(SystemExit, match=r"(?s)^nothing: .*JSONDecodeError"):
        points.measured("benchmarks.real.precision", "nothing", 1)


def test_the_best_rate_is_that_of_the_least_loss_and_lies_inside():
    low, middle, *more, high = tasks.RATES["qlora"]
    found = {
        f"rate/qlora/{r:g}": {"valid_loss": abs(r - middle)} for r in (low, middle, *more, high)
    }
    assert tasks.best_rate(found, "qlora") == middle
    assert tasks.taken_rate(found, "qlora") == low
    full = {f"rate/full/{r:g}": {"valid_loss": abs(r - 3e-4)} for r in tasks.RATES["full"]}
    assert tasks.taken_rate(full, "full") == 3e-4
    for end in (low, high):
        at_end = {**found, f"rate/qlora/{end:g}": {"valid_loss": -1.0}}
        with pytest.raises(SystemExit, match=f"{end:g} is best and at an end"):
            tasks.best_rate(at_end, "qlora")
    with pytest.raises(SystemExit, match="measure its rates first"):
        tasks.best_rate(found, "full")
    tried = {f"rate/int3/{r:g}": {"unseen_loss": r} for r in precision.RATES}
    assert precision.best_rate(tried) == min(precision.RATES)
    with pytest.raises(SystemExit, match="measure the rates first"):
        precision.best_rate({})


def test_every_run_has_what_it_needs_measured_before_it():
    keys = tasks.keys()
    assert len(keys) == len(set(keys)) and len(precision.keys()) == len(set(precision.keys()))
    assert max(i for i, key in enumerate(keys) if key.startswith("rate/")) < keys.index(
        "extract/lora"
    )


@pytest.mark.parametrize("code, least", [("nf4", 4.1), ("int3", 3.1)])
def test_bits_are_what_is_stored(tiny_folder, code, least):
    """The codes, and an eighth for the scales."""
    llama = quantize_base(Llama.from_pretrained(tiny_folder), **recipe(code))
    assert least < precision.bits(llama) < least + 0.1
    assert precision.bits(Llama.from_pretrained(tiny_folder)) == 32


def test_the_parts_of_a_step_add_up_and_have_their_names():
    from benchmarks.tasks.peers_train import Run

    run = Run("mood", "minilora", "cpu", batch=2)
    found = step_parts.parts(lambda: run.step(0))
    named = {step_parts.DECODING, step_parts.OPTIMIZER, step_parts.PRODUCTS, "head and loss"}
    assert named <= found.keys() and all(ms > 0 for ms in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_quick_never_replaces_what_was_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["speed", "--quick"])
    with pytest.raises(SystemExit):
        speed.main()
    assert "give another --out" in capsys.readouterr().err


def test_without_the_model_a_benchmark_is_left_out_in_a_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path))
    assert model.folder() is None
    assert model.NAME in capsys.readouterr().out


ABOUT = {
    "model": "m",
    "weights": "abc",
    "source": "s",
    "went_through": "Q4_1",
    "text": "24 × 256 tokens of docstrings",
    "date": "2026-01-02",
    "batch": 8,
    "machine": {"processor": "P", "cores": 2},
    "versions": {"python": "3.11", "torch": "2.1+cpu"},
}


def test_the_table_of_precisions_says_what_was_lost_and_what_is_left_after_training():
    found = [
        {"key": "loss/fp32", "code": "fp32", "bits": 32.0, "text_loss": 2.0},
        {"key": "loss/int3", "code": "int3", "bits": 3.13, "text_loss": 4.5},
        {"key": "won/int3", "code": "int3", "text_loss": 2.6, "steps": 60, "lr": 1e-3},
        {"key": "won/fp32", "code": "fp32", "text_loss": 1.9, "steps": 60, "lr": 1e-3},
    ]
    tried = {"code": "int3", "seed": 1, "steps": 15}
    text = real_tables.precision(ABOUT | {"points": found, "tokens": 128, "tried": tried})
    assert "| int3 | 3.13 | 4.500 | +2.500 | 2.600 | +0.700 |" in text
    assert "| fp32 | 32.00 | 2.000 | +0.000 | 1.900 | +0.000 |" in text
    assert "rate 0.001, chosen at int3" in text
    assert real_tables.precision(None).startswith("To come")


def test_the_table_of_tasks_joins_base_run_memory_and_forgetting():
    run = {"hits": 94, "of": 100, "text_loss": 3.1, "peak": 3 * 10**9, "resident_before": 10**9}
    run |= {"predicted": 1_900_000_000, "predicted_process": 3_300_000_000, "seconds": None}
    run |= {"key": "extract/qlora", "method": "qlora", "lr": 1e-3, "threads": 1}
    base = {"key": "base/extract", "hits": 0, "of": 100}
    text_loss = {"key": "text/qlora", "text_loss": 3.0}
    tried = {"task": "extract", "seed": 1, "steps": 15}
    text = real_tables.tasks(ABOUT | {"points": [run, base, text_loss], "tried": tried})
    assert (
        "| extract, QLoRA | 0 | 94 | 3.000 | 3.100 | +0.100 | 3.30 (+10 %) | 3.00 "
        "| 1.90 (−5 %) | 2.00 | – |"
    ) in text
    assert "| extract, LoRA | 0 | – | – |" in text and "1 of 12 runs" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_rates_are_told_with_their_trials_and_what_the_best_of_them_costs():
    points = [
        {"key": f"rate/lora/{rate:g}", "lr": rate, "valid_loss": loss}
        for rate, loss in ((1e-3, 0.2), (1e-2, 0.1), (3e-2, 9.0))
    ]
    run = {"hits": 93, "of": 100, "valid_loss": 0.003, "steps": 60, "method": "lora"}
    points.append({"key": "text/lora", "text_loss": 3.0})
    found = ABOUT | {"points": points, "tried": {"task": "extract", "seed": 1, "steps": 15}}
    assert "best at: LoRA 0.01. One seed each" in real_tables.tasks(found)
    points.append({"key": "front/lora/0.01", "lr": 1e-2, "text_loss": 8.5, **run})
    points.append({"key": "front/lora/0.001", "lr": 1e-3, "text_loss": 3.25, **run})
    assert "LoRA's 0.01 raises the loss on real text by 5.5 nats" in real_tables.tasks(found)
    lines = real_tables.front(found).splitlines()
    assert lines[2] == "| LoRA, 0.001 | 93 | 0.0030 | 3.250 | +0.250 |"
    assert lines[3] == "| LoRA, 0.01 | 93 | 0.0030 | 8.500 | +5.500 |"
    assert real_tables.front(None).startswith("To come")


def test_the_table_of_speed_marks_what_missed_its_goal():
    step = {"key": "lora/1", "ms": {"minilora": 900.0, "peft": 1000.0}, "goal": 0.8}
    step |= {"ratios": {"peft": [0.9, 0.88, 0.92]}, "threads": 1, "rounds": 7, "load": [0.1, 1]}
    names = ("minilora fp32", "transformers fp32", "llama.cpp Q4_1")
    write = {"key": "generation/1", "tokens_per_second": dict(zip(names, (6.0, 3.0, 12.0)))}
    write |= {"ratios": {"fp32": [2.0, 1.9, 2.1]}, "ratios_llama_cpp": {"fp32": [0.5, 0.4, 0.6]}}
    write |= {"goal": 1.5, "threads": 1, "rounds": 7, "load": [0.1, 0.2]}
    parts = {"key": "parts/1", "ms": {"qlora": {"a": 3.0, "b": 1.0}}, "threads": 1}
    parts |= {"rounds": 7, "load": [0.3, 0.3]}
    text = real_tables.speed(ABOUT | {"points": [step, write, parts]})
    assert (
        "| LoRA step, threads: 1 | 0.90 s | 1.00 s | 0.90 (0.88 to 0.92) | ≤ 0.8, **missed** |"
        in text
    )
    assert "6.0 tokens/s | 3.0 tokens/s | 2.00 (1.90 to 2.10) | ≥ 1.5 |" in text
    assert "- QLoRA step, 1 thread: a 75 %, b 25 %." in text and "0.1 to 1" in text

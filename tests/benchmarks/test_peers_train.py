"""The benchmark of whole fine-tuning runs beside the libraries': both sides take the same step,
records replace each other, the table shows them.
"""

import argparse
import json

import pytest

from benchmarks.tasks import peers_train
from tools import readme


@pytest.mark.slow
def test_both_take_the_same_steps_in_turn_and_memory_is_counted(monkeypatch):
    for library in ("transformers", "peft", "bitsandbytes"):
        pytest.importorskip(library)
    monkeypatch.setattr(peers_train, "TIMED", 2)
    monkeypatch.setattr(peers_train, "STEPS", 1)
    found = peers_train.time_section("cpu", "mood")
    # the third step of both, after two updates
    assert found["losses_apart"] < 1e-3 and found["steps"] == 2
    assert (
        set(found["ms"]) == set(peers_train.BACKENDS)
        and found["quarters"][0] <= found["ratio"] <= found["quarters"][1]
    )
    ours, theirs = (
        peers_train.memory_section("cpu", "mood", backend)["storages"]
        for backend in peers_train.BACKENDS
    )
    assert 5e6 < ours < theirs


def test_a_record_replaces_the_one_before_it(monkeypatch, tmp_path):
    monkeypatch.setattr(peers_train, "RESULTS", tmp_path / "results" / "peers-train.json")
    peers_train.keep({"key": "cpu time mood", "ratio": 1.0})
    peers_train.keep({"key": "cpu memory mood peft", "storages": 5})
    peers_train.keep({"key": "cpu time mood", "ratio": 0.5})
    found = json.loads(peers_train.RESULTS.read_text())
    assert found["records"] == [
        {"key": "cpu memory mood peft", "storages": 5},
        {"key": "cpu time mood", "ratio": 0.5},
    ]
    assert (
        found["threads"] == 1
        and found["versions"]["torch"]
        and found["machine"]["cores"]
        and found["date"]
    )


def test_what_is_asked_for_is_named_once():
    options = argparse.Namespace(
        device=["cpu", "cuda"],
        sections=["exact", "time", "memory"],
        tasks=["extract", "mood"],
        seeds=[0, 1],
        steps=300,
    )
    keys = peers_train.keys(options)
    assert len(keys) == len(set(keys)) == 2 * 2 * (2 * 2 + 1 + 2)
    assert keys[:3] == [
        "cpu exact extract minilora 300 0",
        "cpu exact extract peft 300 0",
        "cpu exact extract minilora 300 1",
    ]
    assert "cpu time mood" in keys and "cuda memory extract peft" in keys


def test_the_readme_shows_both_sides_and_leaves_open_what_was_not_measured(monkeypatch):
    records = [
        {"key": f"cpu exact mood {backend} {steps} {seed}", "hits": hits, "of": 200, "steps": steps}
        for backend, steps, seed, hits in (
            ("minilora", 300, 0, 190),
            ("minilora", 300, 1, 191),
            ("minilora", 60, 0, 100),
            ("peft", 300, 0, 188),
        )
    ]
    records += [
        {"key": "cpu time mood", "ms": {"minilora": 250.4, "peft": 300.2}, "ratio": 0.834},
        {"key": "cpu memory mood minilora", "storages": 134_600_000, "resident_rise": None},
    ]
    found = {
        "what": "x",
        "threads": 1,
        "date": "2026-01-02",
        "machine": {"processor": "P", "cores": 2},
        "records": records,
        "versions": {"torch": "2+cpu", "transformers": "5", "peft": None, "bitsandbytes": "1"},
    }
    monkeypatch.setattr(readme, "results", lambda name: found)
    text = readme.training_table()
    assert (
        "| mood, processor | 50.0 (60 steps); 95.0 95.5 (300 steps) | 94.0 (300 steps) | 250 "
        "| 300 | 0.83 | 135 | – | – | – |"
    ) in text
    assert "torch 2, transformers 5, bitsandbytes 1; 2026-01-02" in text

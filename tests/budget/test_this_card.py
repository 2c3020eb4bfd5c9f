"""The card of this machine by CUDA's name for it, what was measured on cards, and the picture of
lesson 14 that asks both.
"""

import json
import types

import pytest
import torch

from minilora.budget import catalog, estimate, this_card
from minilora.budget.published import on_cards
from minilora.course.explore import cards

GIB = 2**30


@pytest.mark.parametrize(
    "name, gib, wanted",
    [
        ("Tesla T4", 14.74, "T4"),
        ("NVIDIA L4", 22.03, "L4"),
        ("NVIDIA A10G", 22.06, "A10G"),
        ("Tesla P100-PCIE-16GB", 15.89, "P100"),
        ("NVIDIA A100-SXM4-40GB", 39.39, "A100 40"),
        ("NVIDIA A100 80GB PCIe", 79.15, "A100 80"),
        ("NVIDIA A100-SXM4-80GB", 79.15, "A100 80"),
        ("NVIDIA H100 80GB HBM3", 79.11, "H100"),
        ("NVIDIA H200", 139.72, "H200"),
        ("NVIDIA GeForce RTX 4090", 23.64, "RTX 4090"),
        ("NVIDIA RTX A6000", 47.54, "RTX A6000"),
        ("NVIDIA L40S", 44.4, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.99, None),
        ("NVIDIA RTX 6000 Ada Generation", 47.5, None),
        ("NVIDIA H100 NVL", 93.1, None),
    ],
)
def test_a_card_is_known_by_its_words_and_its_memory(name, gib, wanted):
    found = this_card.match(name, int(gib * GIB))
    assert (found and found.name) == wanted


@pytest.mark.parametrize(
    "name, major, total, halves",
    [
        ("Tesla T4", 7, 15.0 * GIB, {"fp16"}),
        ("Some Card 9000", 9, 30 * GIB, {"bf16", "fp16"}),
        ("Old Card", 7, 9 * GIB, {"fp16"}),
    ],
)
def test_the_usable_bytes_are_cudas_own(monkeypatch, name, major, total, halves):
    told = types.SimpleNamespace(name=name, major=major, total_memory=int(total))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: told)
    card = this_card.card("cuda")
    assert (
        card.usable == int(total)
        and halves <= set(card.rates)
        and ("bf16" in card.rates) == ("bf16" in halves)
    )
    assert estimate("tinyllama-1.1b").needs(card) > 0 and this_card.card("cpu") is None


def results(**changes):
    """A file as `benchmarks/gpu/gpu.py` writes it, of a card."""
    done = {"status": "done", "allocated": 3 * GIB, "predicted": 3 * GIB, "losses": [7.0, 6.5]}
    parts = {
        "a1": {
            "status": "partial",
            "settings": {"shape": {"name": "llama-3.2-1b"}},
            "contenders": {
                "ours": done | {"tokens_per_second": 4321.0},
                "theirs": {"status": "not run", "error": "ImportError: <peft>"},
            },
        },
        "b20": {
            "status": "done",
            "settings": {"shape": {"name": "llama-20b"}},
            "trainings": [
                done | {"rank": 64, "cap": {"GiB": 22.03}, "under_cap": True, "falls": True},
                {"status": "out of memory", "error": "x", "rank": 128, "cap": {"GiB": 22.03}},
            ],
        },
        "b65": {
            "status": "left out",
            "settings": {"shape": {"name": "llama-65b"}},
            "error": "the card has 22 GiB",
        },
    }
    versions = {name: "1.0" for name in ("torch", "transformers", "peft", "bitsandbytes")}
    return {
        "command": "python -m benchmarks.gpu.gpu",
        "device": {"name": "NVIDIA L4", "memory_GiB": 22.03, "capability": "8.9"},
        "versions": versions,
        "date": "2026-01-02",
        "parts": parts,
    } | changes


def test_only_real_shapes_on_a_card_are_results(tmp_path):
    for name, content in {
        "gpu-l4": results(),
        "gpu-cpu-tiny": results(device={"name": "cpu"}),
        "gpu-l4-tiny": results(command="python -m benchmarks.gpu.gpu --tiny"),
        "other": results(),
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert on_cards.read(tmp_path) == [results()] and on_cards.read(tmp_path / "nothing") == []


def test_a_table_shows_what_ran_and_what_did_not():
    table = on_cards.table(results())
    told = str(table)
    for words in (
        "4,321",
        "not run: ImportError: <peft>",
        "rank 64 under 22.03 GiB",
        "out of memory",
        "left out: the card has 22 GiB",
        "NVIDIA L4",
        "torch 1.0",
        "2026-01-02",
    ):
        assert words in told
    assert "&lt;peft&gt;" in table._repr_html_()
    assert [each["rank"] for each in on_cards.trained(results(), "b20")] == [
        64
    ] and on_cards.trained(results(), "b65") == on_cards.trained(results(), "b7") == []


def test_a_training_above_its_cap_or_without_progress_is_none():
    for broken in ({"under_cap": False}, {"falls": False}, {"status": "failed"}):
        run = results()
        run["parts"]["b20"]["trainings"][0].update(broken)
        assert on_cards.trained(run, "b20") == []


@pytest.mark.parametrize(
    "model, rank, precision, seq",
    [
        ("llama-3.2-1b", 8, "4 bits", 512),
        ("llama-65b", 128, "16 bits", 8192),
        ("smollm2-360m", 1, "8 bits", 128),
    ],
)
def test_the_picture_says_what_the_budget_says(model, rank, precision, seq):
    found = cards.compute(model, rank, precision, seq)
    told = estimate(
        model,
        method=cards.BASES[precision],
        rank=rank,
        batch=cards.ROWS,
        seq=seq,
        checkpointing=True,
        foreach=False,
        detour="plain",
    )
    assert sum(found["parts"].values()) == told.peak_allocated and min(found["parts"].values()) > 0
    assert found["cards"] == {
        name: (told.needs(name), catalog.gpu(name).usable) for name in cards.CARDS
    }


def test_the_picture_names_the_smallest_card_and_what_is_too_long():
    label, picture = cards.render(cards.compute("llama-3.2-1b", 8, "4 bits", 512))
    assert "the T4" in label and picture.count("✓") + picture.count("✗") == len(cards.CARDS)
    label, picture = cards.render(cards.compute("llama-65b", 8, "16 bits", 8192))
    assert "✗" in picture and "rows of 2,048 tokens at most" in label

"""The numbers behind the slider of lesson 10, and the five exercises' own run."""

import json

import pytest

from minilora.budget import catalog, estimate
from minilora.course.explore import qlora, stored
from minilora.errors import MiniloraError
from minilora.system.files import data_folder

TABLE = data_folder().parent / "benchmarks" / "results" / "sweep-precision.json"


def test_what_is_measured_is_the_table():
    recorded = json.loads(TABLE.read_text(encoding="utf-8"))["runs"]
    for precision in qlora.PRECISIONS:
        for rank in qlora.RANKS:
            mine = [
                100 * run["exact"] / run["asked"]
                for run in recorded
                if (run["precision"], run["rank"], run["method"]) == (precision, rank, "lora")
            ]
            assert qlora.shares((precision, rank)) == mine
    found = qlora.compute("nf4", 4, "adapter", "tiny")
    got = found["shares"]["nf4", 4]
    assert (
        f"{sum(got) / len(got):.0f} % of the cards exactly right ({min(got):.0f} to "
        f"{max(got):.0f} over {len(got)} seeds)"
    ) in qlora.render(found)[0]


@pytest.mark.parametrize(
    "precision, method", [("bf16", "lora"), ("int8", "int8"), ("nf4", "qlora")]
)
def test_the_prediction_is_the_budgets(precision, method):
    for name, more in (
        ("adapter", {}),
        ("and checkpointing", {"checkpointing": True}),
        ("and 8-bit AdamW", {"checkpointing": True, "optimizer": "adamw8bit"}),
    ):
        told = estimate(
            "llama-13b",
            method=method,
            rank=16,
            seq=512,
            foreach=False,
            **{"checkpointing": False, **more},
        )
        assert qlora.peak("llama-13b", precision, 16, name) == told.peak_allocated


def test_fewer_bits_shrink_the_codes_alone():
    weights = catalog.model("llama-7b").linear_parameters
    four, three, two = (
        qlora.peak("llama-7b", precision, 64, "adapter") for precision in ("nf4", "int3", "int2")
    )
    assert four - three == weights // 8 and four - two == weights // 4


def test_full_fine_tuning_needs_numbers_of_sixteen_bits():
    whole = qlora.compute("bf16", 16, qlora.FULL, "llama-7b")
    assert (
        whole["rank"] == 0
        and whole["peaks"][qlora.FULL]
        == estimate(
            "llama-7b", method="full-bf16", foreach=False, checkpointing=False
        ).peak_allocated
    )
    label, picture = qlora.render(qlora.compute("nf4", 16, qlora.FULL, "llama-7b"))
    assert "cannot be" in label and "not possible" in picture


def test_the_smallest_card_is_named_and_none_is_admitted():
    assert qlora.smallest(6 * 10**9) == "T4" and qlora.smallest(20 * 10**9) in (
        "L4",
        "A10G",
        "RTX 4090",
        "RTX 3090",
    )
    assert qlora.smallest(10**12) is None
    assert (
        "no single card holds it"
        in qlora.render(qlora.compute("bf16", 64, qlora.FULL, "llama-65b"))[0]
    )


def test_a_missing_table_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(stored, "results_folder", lambda: tmp_path)
    with pytest.raises(MiniloraError, match="benchmarks.tasks.sweeps precision"):
        qlora.runs.__wrapped__()

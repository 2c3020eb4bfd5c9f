"""The rules of others, by hand; and the committed table of peers is what the rules and the budget
say today.
"""

import json

import pytest

from minilora import budget
from minilora.budget.published import peers
from minilora.budget.setup import make
from tools import memory_tables
from tools.project import ROOT

FOUND = json.loads((ROOT / "benchmarks" / "results" / "peers.json").read_text(encoding="utf-8"))
P = 6_738_415_616  # LLaMA-7B


@pytest.mark.parametrize(
    "settings, wanted",
    [
        (
            dict(method="full"),
            {
                "accelerate": 16 * P,
                "weights × 4": 16 * P,
                "weights × 1.2": 4.8 * P,
                "LLaMA-Factory": 120e9,
                "Unsloth": None,
            },
        ),
        (
            dict(method="full-bf16"),
            {
                "accelerate": 8 * P,
                "weights × 4": 8 * P,
                "weights × 1.2": 2.4 * P,
                "LLaMA-Factory": 60e9,
                "Unsloth": None,
            },
        ),
        (
            dict(method="lora"),
            {
                "accelerate": 8 * P,
                "weights × 4": 8 * P,
                "weights × 1.2": 2.4 * P,
                "LLaMA-Factory": 16e9,
                "Unsloth": 19e9,
            },
        ),
        (
            dict(method="int8"),
            {"accelerate": P, "weights × 4": 4 * P, "LLaMA-Factory": 10e9, "Unsloth": None},
        ),
        (
            dict(method="qlora"),
            {
                "accelerate": P / 2,
                "weights × 4": 2 * P,
                "weights × 1.2": 0.6 * P,
                "LLaMA-Factory": 6e9,
                "Unsloth": 5e9,
            },
        ),
    ],
)
def test_the_rules_by_hand(settings, wanted):
    setup = make("llama-7b", **settings)
    said = {peer.name: peer.rule(setup) for peer in peers.PEERS}
    for name, value in wanted.items():
        assert said[name] == (value if value is None else pytest.approx(value, rel=1e-9)), name


def test_transformer_math_adds_its_activations():
    plain, saved = (
        peers.transformer_math(make("llama-7b", method="full-bf16", batch=2, checkpointing=saving))
        for saving in (False, True)
    )
    tokens, hidden, layers, heads, seq = 1024, 4096, 32, 32, 512
    assert saved == 2 * P + 14 * P + 2 * tokens * hidden * layers
    assert plain == pytest.approx(
        16 * P + tokens * hidden * layers * (34 + 5 * heads * seq / hidden)
    )


def test_sizes_without_a_row_take_the_column_or_nothing():
    small = make("tinyllama-1.1b", method="qlora")
    assert (
        peers.llama_factory(small) == pytest.approx(0.5 * small.shape.parameters)
        and peers.unsloth(small) is None
    )
    assert (
        peers.unsloth(make("gpt-neox-20b", method="lora")) is None
        and peers.unsloth(make("llama-13b", method="lora")) == 33e9
    )


@pytest.mark.parametrize("row", FOUND["rows"], ids=lambda row: row["told"])
def test_the_committed_rows_are_what_is_said_today(row):
    setup = make(**row["setup"])
    assert row["peers"] == {
        peer.name: pytest.approx(peer.rule(setup)) if peer.rule(setup) is not None else None
        for peer in peers.PEERS
    }
    assert row["ours"] == pytest.approx(budget.estimate(setup).peak_allocated, rel=0.001)
    assert row["ours"] == pytest.approx(row["ledger"], rel=0.01)


def test_the_table_covers_ten_setups_and_the_sources():
    assert len(FOUND["rows"]) == 10 and len({row["told"] for row in FOUND["rows"]}) == 10
    assert FOUND["sources"] == {
        peer.name: {"source": peer.source, "reading": peer.reading} for peer in peers.PEERS
    }
    text = memory_tables.peers_table()
    assert all(row["told"] in text for row in FOUND["rows"]) and all(
        peer.name in text for peer in peers.PEERS
    )
    means = {name: found["mean"] for name, found in FOUND["errors"].items()}
    assert min(means, key=means.get) == "minilora"

"""The tables under lessons 00 and 08: scored rightly, gone on with rightly, and made with the base
that is shipped.
"""

import json

import pytest

from benchmarks.kit import short_runs
from benchmarks.tasks import placement, sweeps, taste
from minilora.system.files import data_folder

ROOT = data_folder().parent


CARD = {"response": '{"who": "Verra", "what": "the iron skate", "where": "the jail"}'}


@pytest.mark.parametrize(
    "answer, right",
    [
        (CARD["response"], (1, 1, 1)),
        ('{"where": "the jail", "who": "Kelfa"}', (0, 0, 1)),
        ('{"who": "Verra"', (0, 0, 0)),
        ("the iron skate", (0, 0, 0)),
        ("[1]", (0, 0, 0)),
        ("", (0, 0, 0)),
        ("3", (0, 0, 0)),
    ],
)
def test_fields_are_counted_one_by_one(answer, right):
    assert short_runs.fields_right([answer], [CARD]) == dict(zip(("who", "what", "where"), right))


def test_a_sweep_goes_on_with_records_of_the_same_base_and_recipe_only(tmp_path):
    path = tmp_path / "table.json"
    recipe = {**short_runs.RECIPE, "rank": 4}
    told = {
        "base": short_runs.fingerprint(),
        "runs": [{**recipe, "exact": 7}, {**recipe, "steps": 1, "exact": 9}],
    }
    assert short_runs._kept(path, [recipe]) == []
    path.write_text(json.dumps(told))
    assert [record["exact"] for record in short_runs._kept(path, [recipe])] == [7]
    path.write_text(json.dumps({**told, "base": "another"}))
    assert short_runs._kept(path, [recipe]) == []


def test_places_hold_as_many_numbers():
    """Rank times the sum of the sides of the shipped base's matrices, as the table's docstring
    says.
    """
    config = json.loads((data_folder() / "base" / "config.json").read_text())
    h, f, kv = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_key_value_heads"] * config["head_dim"],
    )
    sides = {
        "q_proj": h + h,
        "k_proj": h + kv,
        "v_proj": h + kv,
        "o_proj": h + h,
        "gate_proj": h + f,
        "up_proj": h + f,
        "down_proj": f + h,
    }
    sizes = [
        config["num_hidden_layers"]
        * rank
        * sum(sides[t] for t in (sides if targets == "all" else targets))
        for targets, rank in placement.PLACES
    ]
    assert sizes == [143_360, 143_360, 138_240, 143_360]


@pytest.mark.parametrize(
    "name, recipes",
    [
        (
            "taste.json",
            [{"rank": r, "precision": p} for p in taste.PRECISIONS for r in taste.RANKS],
        ),
        (
            "placement.json",
            [
                {"rank": r, "targets": t if t == "all" else list(t), "seed": s}
                for s in placement.SEEDS
                for t, r in placement.PLACES
            ],
        ),
    ],
)
def test_the_shipped_tables_are_whole_and_of_the_shipped_base(name, recipes):
    told = json.loads((short_runs.RESULTS / name).read_text(encoding="utf-8"))
    assert told["base"] == short_runs.fingerprint(), (
        f"{name} was made with another base; run its script in benchmarks/ again"
    )
    assert [{k: run[k] for k in recipes[0]} for run in told["runs"]] == recipes
    assert (
        {"cpus", "system", "processor", "threads"} <= set(told["machine"])
        and told["date"]
        and told["command"]
    )
    for run in told["runs"]:
        assert len(run["loss"]) == run["steps"] and 0 <= run["exact"] <= run["asked"]


@pytest.mark.parametrize("rank", sweeps.SHAPES)
def test_small_models_have_as_many_numbers_as_lora_of_their_rank_trains(rank):
    config = json.loads((data_folder() / "base" / "config.json").read_text())
    h, f, kv = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_key_value_heads"] * config["head_dim"],
    )
    trained = config["num_hidden_layers"] * rank * (2 * (h + h) + 2 * (h + kv) + 3 * (h + f))
    small = sum(p.numel() for p in short_runs.smaller(sweeps.SHAPES[rank]).parameters())
    assert abs(small / trained - 1) < 0.004


def test_each_rank_gets_the_rate_that_did_best_at_the_nearest_tried_rank():
    tried = [
        {"task": "style", "method": "lora", "rank": rank, "lr": lr, "valid_loss": loss}
        for rank, lr, loss in (
            (1, 1e-3, 0.5),
            (1, 2e-3, 0.4),
            (8, 1e-3, 0.2),
            (8, 2e-3, 0.3),
            (64, 1e-3, 0.9),
            (64, 2e-3, 0.1),
        )
    ]
    assert [sweeps.best(tried, "style", "lora", rank) for rank in (1, 2, 4, 8, 32, 64)] == [
        2e-3,
        2e-3,
        1e-3,
        1e-3,
        2e-3,
        2e-3,
    ]
    with pytest.raises(ValueError):
        sweeps.best(tried, "style", "full")


def test_shares_of_an_update_are_those_of_a_planted_one():
    """An update that lies in LoRA's columns and rows is wholly inside; one beside them is not
    inside at all.
    """
    import torch

    torch.manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(12, 12))
    P, _ = torch.linalg.qr(torch.randn(9, 9))
    delta = Q[:, :2] @ torch.diag(torch.tensor([3.0, 1.0])) @ P[:, :2].T
    within, beside = (
        Q[:, :2] @ torch.randn(2, 2) @ P[:, :2].T,
        Q[:, 2:5] @ torch.randn(3, 4) @ P[:, 5:].T,
    )
    shares = sweeps.compared(torch.randn(12, 9), within, delta, 2)
    assert (
        shares["inside"] == shares["columns"] == shares["rows"] == shares["best"] == 1
        and shares["sides"] == 9
    )
    shares = sweeps.compared(torch.randn(12, 9), beside, delta, 2)
    assert shares["inside"] == shares["columns"] == shares["rows"] == 0 < shares["best"] < 1
    assert shares["by_chance"] == round(4 / 108, 5)


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("sweep-rates.json", sweeps.rates),
        ("sweep-ranks.json", sweeps.ranks),
        ("sweep-update.json", sweeps.updates),
        ("sweep-precision.json", sweeps.precisions),
    ],
)
def test_the_shipped_sweeps_are_whole_and_of_the_shipped_base(name, wanted):
    tables = {
        file: json.loads((short_runs.RESULTS / file).read_text(encoding="utf-8"))
        for file in (name, "sweep-rates.json")
    }
    told = tables[name]
    recipes = wanted() if name == "sweep-rates.json" else wanted(tables["sweep-rates.json"]["runs"])
    assert told["base"] == short_runs.fingerprint(), (
        f"{name} was made with another base; run benchmarks/tasks/sweeps.py again"
    )
    assert [
        {k: run[k] for k in recipe} for run, recipe in zip(told["runs"], recipes, strict=True)
    ] == recipes
    assert name == "sweep-rates.json" or {recipe["seed"] for recipe in recipes} == set(sweeps.SEEDS)

"""One point of each stored table, run again: it comes out as it is stored.

Another processor adds in another order, and 60 steps of training magnify that. So a loss may be off
by LOSS of itself (or .002, whichever is more), a count of right answers by RIGHT of those asked;
where nothing is trained the limits are EXACT. On the machine that made a table all is equal.
"""

import json

import pytest

from benchmarks.kit import short_runs
from benchmarks.tasks import mixing, precision, preference, sweeps, tasks

LOSS, RIGHT, EXACT = 0.25, 0.08, 1e-3
pytestmark = pytest.mark.slow


def stored(name: str, *values) -> dict:
    """The quickest run of a file whose values hold all of those."""
    told = json.loads((short_runs.RESULTS / name).read_text(encoding="utf-8"))
    fitting = [run for run in told["runs"] if set(values) <= {str(v) for v in run.values()}]
    return min(fitting, key=lambda run: run["seconds"])


def recipe_of(run: dict, names) -> dict:
    return {name: run[name] for name in names if name in run}


@pytest.mark.parametrize(
    "name, values",
    [
        ("taste.json", ["nf4"]),
        ("placement.json", ["extract"]),
        ("sweep-rates.json", ["style", "lora"]),
        ("sweep-ranks.json", ["style", "lora"]),
        ("sweep-precision.json", ["int3"]),
    ],
)
def test_a_short_run(name, values):
    run = stored(name, *values)
    names = [*short_runs.RECIPE, "method", "shape"]
    again = short_runs.one_run(recipe_of(run, names))
    assert again["valid_loss"] == pytest.approx(run["valid_loss"], rel=LOSS, abs=0.002)
    assert abs(again["exact"] - run["exact"]) <= RIGHT * run["asked"]
    assert again["loss"][0] == pytest.approx(run["loss"][0], abs=EXACT)  # nothing trained yet
    assert again["trained"] == run["trained"]


def test_the_base_at_a_precision():
    run = stored("precision.json", "nf4", "1024")
    again = precision.one_run(recipe_of(run, ("code", "block", "double")))
    assert again["bits"] == run["bits"]
    assert again["loss"] == pytest.approx(run["loss"], abs=EXACT)
    assert again["lookup"] == pytest.approx(run["lookup"], abs=0.01)


def test_a_mixture():
    run = stored("sweep-mixing.json", "0")
    again = mixing.one_pair(recipe_of(run, ("adapters", "seed", "asked")))
    for (a, b, *now), (c, d, *then) in zip(again["points"], run["points"], strict=True):
        assert (a, b) == (c, d)
        assert all(abs(x - y) <= 1 for x, y in zip(now, then))


def test_an_update():
    run = stored("sweep-update.json", "style")
    plan = recipe_of(run, ("task", "rank", "steps", "lr", "lr_full", "seed"))
    again = sweeps.update_run(plan)["layers"]
    path = "model.layers.2.self_attn.v_proj"
    assert again[path]["wide_W"] == pytest.approx(run["layers"][path]["wide_W"], rel=EXACT)
    for share in ("inside", "best"):
        assert again[path][share] == pytest.approx(run["layers"][path][share], abs=0.05)


def test_a_preference():
    run = stored("sweep-preference.json", "dpo")
    recipe = {name: run[name] for name in run if name in (*preference.DPO, "beta", "seed")}
    again = preference.one_run(recipe)
    assert again["before"] == pytest.approx(run["before"], abs=2)  # percent; nothing trained
    for told in ("short", "right"):
        assert again["after"][told] == pytest.approx(run["after"][told], abs=100 * RIGHT)


def test_a_task_by_its_command():
    found = json.loads((short_runs.RESULTS / "tasks.json").read_text(encoding="utf-8"))["runs"]
    run = next(r for r in found if (r["task"], r["method"]) == ("style", "lora-qv"))
    again = tasks.run_one("style", "lora-qv")
    assert again["command"] == run["command"] and again["of"] == run["of"]
    assert abs(again["hits"] - run["hits"]) <= RIGHT * run["of"]

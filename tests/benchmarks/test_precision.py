"""The table of lesson 05: complete, made with the base that is shipped, and its sizes are what the
package stores.
"""

import json

import pytest

from benchmarks.kit import short_runs
from benchmarks.tasks import precision
from minilora.system.files import data_folder

ROOT = data_folder().parent

TABLE = json.loads((ROOT / "benchmarks" / "results" / "precision.json").read_text(encoding="utf-8"))


def test_the_table_has_every_recipe_once_and_belongs_to_the_shipped_base():
    made = [{name: run[name] for name in ("code", "block", "double")} for run in TABLE["runs"]]
    assert made == precision.recipes()
    assert TABLE["base"] == short_runs.fingerprint(), (
        "made with another base; run python -m benchmarks.tasks.precision again"
    )


@pytest.mark.parametrize(
    "run",
    [TABLE["runs"][i] for i in (0, 2, 4, 11, -1)],
    ids=lambda run: f"{run['code']}-{run['block']}",
)
def test_the_sizes_are_what_is_stored(run):
    model, bits = precision.model_at(run["code"], run["block"], run["double"])
    assert round(bits, 4) == run["bits"]


def test_only_the_linear_layers_were_changed():
    model, _ = precision.model_at("int2", "tensor")
    plain, _ = precision.model_at("fp32")
    changed = {
        name for (name, p), q in zip(model.named_parameters(), plain.parameters()) if not p.equal(q)
    }
    assert changed == {name for name in plain.state_dict() if "_proj" in name}

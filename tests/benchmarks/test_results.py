"""Each stored result says which weights it came from, and they are those that are shipped."""

import json

import pytest

from benchmarks.kit import short_runs

# What no trained weights enter: bytes, times of random or published shapes, times of sliders.
WITHOUT_WEIGHTS = {
    "budget.json",
    "cpu.json",
    "memory.json",
    "peers.json",
    "slider-latency.json",
    "slider-render.json",
}
FILES = sorted(short_runs.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_result_is_of_another_base(path):
    """One of the real model names that model and the hash of its weights."""
    told = json.loads(path.read_text(encoding="utf-8"))
    if path.name in WITHOUT_WEIGHTS:
        return
    if path.name.startswith("real-"):
        assert told["model"] and len(told["weights"]) == 16
        return
    assert told.get("base") == short_runs.fingerprint(), (
        f"{path.name} is of another base, or says not of which; run its script in benchmarks/ again"
    )

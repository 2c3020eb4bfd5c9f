"""Every benchmark that can be started is one that `make bench` starts, and says what it does."""

import re

import pytest

from benchmarks import make_results
from tools.project import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = {
    ".".join(path.relative_to(FOLDER).with_suffix("").parts): path
    for path in FOLDER.rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
}


def started() -> list[str]:
    """The names in the Makefile, in order."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"^BENCHMARKS := (.*?[^\\])\n", text, re.S | re.M)[1]
    return listed.replace("\\", " ").split()


def test_make_bench_starts_every_benchmark_once_and_the_cards_where_there_is_a_card():
    """Those that train are started by `make results`, which it calls; one is a part of others."""
    beside = ["make_results", "kit.forgetting", "gpu.gpu"]
    assert sorted([*started(), *make_results.SCRIPTS, *beside]) == sorted(SCRIPTS)
    # what others are made of comes before them
    order = list(make_results.SCRIPTS)
    for then in ("tasks.mixing", "tasks.preference"):
        assert order.index("tasks.adapters") < order.index(then)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_how_it_is_started(name):
    assert f"python -m benchmarks.{name}" in SCRIPTS[name].read_text(encoding="utf-8")

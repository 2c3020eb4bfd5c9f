"""Planted mutants (faults.toml): each must turn every test red that is named beside it, in a copy
of the package.
"""

import ast
import dataclasses
import importlib.util
import os
import re

import planting
import pytest

MUTANTS = planting.read_list()
BY_NAME = pytest.mark.parametrize(
    "mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-")
)
PEERS = ("transformers", "peft", "bitsandbytes")


@pytest.fixture(scope="module")
def workshop():
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork a process")
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the named tests compare with {', '.join(missing)}, not installed")
    with planting.Workshop() as workshop:
        yield workshop


# -- the list itself: quick, so that it cannot fall behind the code unnoticed


@BY_NAME
def test_a_mutant_fits_the_code(mutant):
    path = planting.ROOT / mutant.file
    assert mutant.file.startswith("minilora/") and path.is_file(), (
        f"{mutant.file} is gone: point the mutant at where the code went"
    )
    source = path.read_text(encoding="utf-8")
    count = source.count(mutant.old)
    assert count == 1, (
        f"{mutant.file} holds this text {count} times, not once; follow the code in "
        f"faults.toml:\n{mutant.old}"
    )
    assert mutant.old != mutant.new and mutant.why and mutant.tests
    ast.parse(source.replace(mutant.old, mutant.new))
    for test in mutant.tests:
        file, _, rest = test.partition("::")
        function = re.escape(rest.partition("[")[0])
        assert re.search(
            rf"^def {function}\(", (planting.ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
        ), f"{test} is gone"


def test_the_list_is_long_and_names_are_unique():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 30
    edits = {(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}
    assert len(edits) == len(MUTANTS)


# -- the mutants


@pytest.mark.slow
def test_without_a_mutant_every_named_test_passes(workshop):
    """On a copy as well, so that a red test is the mutant's doing."""
    tests = tuple(dict.fromkeys(test for mutant in MUTANTS for test in mutant.tests))
    report = workshop.try_out(None, tests)
    assert report.came_from_the_copy(), report.origins
    assert report.outcomes == dict.fromkeys(tests, "passed"), report.output


@pytest.mark.slow
@BY_NAME
def test_is_caught(workshop, mutant):
    report = workshop.try_out(mutant)
    assert report.came_from_the_copy() and mutant.module in report.origins, (
        f"the changed file was never used: {report.origins}"
    )
    for test in mutant.tests:
        outcome = report.outcomes.get(test, "not run")
        assert report.noticed(test), (
            f"{test} does not notice: {mutant.why} ({outcome})\n{report.output[-3000:]}"
        )


# -- the tool: what it must not take for a caught mutant


SCALE = next(mutant for mutant in MUTANTS if mutant.name == "no alpha over r")


@pytest.mark.slow
def test_a_harmless_change_survives(workshop):
    """The same formula in other words. The change is run, and stays in the copy."""
    before = (planting.ROOT / SCALE.file).read_text(encoding="utf-8")
    report = workshop.try_out(dataclasses.replace(SCALE, new=SCALE.old + "  # unchanged"))
    assert report.came_from_the_copy() and SCALE.module in report.origins
    assert report.outcomes == dict.fromkeys(SCALE.tests, "passed") and not any(
        map(report.noticed, SCALE.tests)
    )
    assert (planting.ROOT / SCALE.file).read_text(encoding="utf-8") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "new", ["return alfa", "return self.alpha_of(path) /", "import nothing_of_that_name"]
)
def test_a_mutant_that_cannot_run_is_not_caught(workshop, new):
    report = workshop.try_out(dataclasses.replace(SCALE, new=new))
    assert not any(map(report.noticed, SCALE.tests)), report.outcomes


@pytest.mark.slow
def test_a_mutant_that_kills_its_process_is_not_caught(workshop):
    report = workshop.try_out(dataclasses.replace(SCALE, new="import os; os.abort()"))
    assert not report.outcomes and not any(map(report.noticed, SCALE.tests))
    assert workshop.try_out(SCALE).noticed(SCALE.tests[0])  # the helper lives on

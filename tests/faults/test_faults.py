"""Planted faults, one list for each room: each must turn every test red that is named beside it, in
a copy of the package.
"""

import ast
import dataclasses
import importlib.util
import os
import re
import subprocess
import sys

import planting
import pytest

FAULTS = planting.read_list()
BY_NAME = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
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


# -- the lists themselves: quick, so that they cannot fall behind the code unnoticed


@BY_NAME
def test_a_fault_fits_the_code(fault):
    path = planting.ROOT / fault.file
    assert fault.file.startswith("minilora/") and path.is_file(), (
        f"{fault.file} is gone: point the fault at where the code went"
    )
    source = path.read_text(encoding="utf-8")
    changed = fault.planted_in(source)  # raises where the code has changed: follow it in the list
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    assert fault.why and fault.tests
    for test in fault.tests:
        file, _, rest = test.partition("::")
        function = re.escape(rest.partition("[")[0])
        assert re.search(
            rf"^def {function}\(", (planting.ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
        ), f"{test} is gone"


def test_the_lists_are_long_and_names_are_unique():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 130
    edits = {(fault.file, fault.old, fault.new) for fault in FAULTS}
    assert len(edits) == len(FAULTS)


# -- the faults


@pytest.mark.slow
def test_without_a_fault_every_named_test_passes(workshop):
    """On a copy as well, so that a red test is the fault's doing."""
    tests = tuple(dict.fromkeys(test for fault in FAULTS for test in fault.tests))
    report = workshop.try_out(None, tests)
    assert report.came_from_the_copy(), report.origins
    assert report.outcomes == dict.fromkeys(tests, "passed"), report.output


@pytest.mark.slow
@BY_NAME
def test_is_caught(workshop, fault):
    report = workshop.try_out(fault)
    assert report.used(fault), f"the changed file was never used: {report.origins}"
    for test in fault.tests:
        outcome = report.outcomes.get(test, "not run")
        assert report.noticed(test), (
            f"{test} does not notice: {fault.why} ({outcome})\n{report.output[-3000:]}"
        )


# -- the tool: what it must not take for a caught fault


SCALE = next(fault for fault in FAULTS if fault.name == "no alpha over r")


@pytest.mark.slow
def test_a_harmless_change_survives(workshop):
    """The same formula in other words. The change is run, and stays in the copy."""
    before = (planting.ROOT / SCALE.file).read_text(encoding="utf-8")
    report = workshop.try_out(dataclasses.replace(SCALE, new=SCALE.old + "  # unchanged"))
    assert report.used(SCALE)
    assert report.outcomes == dict.fromkeys(SCALE.tests, "passed") and not any(
        map(report.noticed, SCALE.tests)
    )
    assert (planting.ROOT / SCALE.file).read_text(encoding="utf-8") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "new", ["return alfa", "return self.alpha_of(path) /", "import nothing_of_that_name"]
)
def test_a_fault_that_cannot_run_is_not_caught(workshop, new):
    report = workshop.try_out(dataclasses.replace(SCALE, new=new))
    assert not any(map(report.noticed, SCALE.tests)), report.outcomes


@pytest.mark.slow
def test_a_fault_that_kills_its_process_is_not_caught(workshop):
    report = workshop.try_out(dataclasses.replace(SCALE, new="import os; os.abort()"))
    assert not report.outcomes and not any(map(report.noticed, SCALE.tests))
    assert workshop.try_out(SCALE).noticed(SCALE.tests[0])  # the helper lives on


# -- fresh faults, without a named test


ROUNDED = planting.Fault(
    "π rounded up",
    file="minilora/numerics.py",
    old="significand = np.rint(",
    new="significand = np.ceil(",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "new, verdict, reason",
    [
        (ROUNDED.new, "KILLED", "tests/numerics/test_numerics.py::"),
        ("significand = 1 * np.rint(", "SURVIVED", " tests of 1 files"),
        ("significand = np_rint(", "BROKEN", "NameError"),
        ("import nothing_of_that_name; significand = np.rint(", "BROKEN", "ModuleNotFoundError"),
        ("import os; os.abort(); significand = np.rint(", "KILLED", "the process ended"),
    ],
)
def test_a_fresh_fault_is_tried_on_all_that_can_see_it(workshop, new, verdict, reason):
    found = planting.Check(workshop, ["numerics"]).verdict(dataclasses.replace(ROUNDED, new=new))
    assert found[0] == verdict and reason in found[1], found


@pytest.mark.parametrize(
    "test, outcome, left_out",
    [
        ("t.py::red anyway", "call: AssertionError", "--deselect=t.py::red anyway"),
        ("t.py", "collect: ImportError", f"--ignore={planting.ROOT / 't.py'}"),
    ],
)
def test_what_fails_without_a_fault_kills_none(test, outcome, left_out):
    """Its red is nobody's doing: it is left out, and the others are asked."""
    asked = []

    class Pretended:
        def try_out(self, fault, tests, options=()):
            asked.append((fault, left_out in options))
            red_anyway = asked[-1] != (ROUNDED, True)
            outcomes = {test: outcome} if red_anyway else {"t.py::good": "passed"}
            return planting.Report(outcomes, {}, planting.ROOT, "")

    assert planting.Check(Pretended(), ["numerics"]).verdict(ROUNDED)[0] == "SURVIVED"
    assert asked == [(ROUNDED, False), (None, False), (ROUNDED, True)]


def test_who_sees_a_file():
    """Those of its room first; through a command's name and through a new process as well."""
    seen = planting.tests_that_see("minilora.text.rows")
    assert seen[0].startswith("tests/text/") and "tests/cli/test_main.py" in seen
    assert "tests/numerics/test_numerics.py" not in seen
    assert "tests/cli/test_main.py" in planting.tests_that_see("minilora.cli.generate")


def test_a_pass_that_was_not_expected_counts_as_red(tmp_path):
    """The only sign of a change may be that a known failure is gone."""
    path = tmp_path / "test_known.py"
    mark = '@pytest.mark.xfail(strict=True, reason="known")'
    path.write_text(f"import pytest\n\n{mark}\ndef test_known():\n    assert True\n")
    script = (
        "import hypothesis, planting, pytest; hypothesis.settings.register_profile('suite');"
        "noted = planting.Recorder();"
        f"pytest.main(['-q', '-p', 'no:cacheprovider', {str(path)!r}], plugins=[noted]);"
        "print(list(noted.outcomes.values()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], cwd=planting.LISTS, capture_output=True, text=True
    )
    assert told.stdout.splitlines()[-1] == "['call: Failed']"

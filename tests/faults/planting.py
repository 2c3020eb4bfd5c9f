"""Plants faults: changes one place in a copy of the package and runs the tests that are said to
notice it.

    python tests/faults/planting.py            all lists, one line for each fault
    python tests/faults/planting.py NF4 cache  those with a word in their name
    python tests/faults/planting.py --check FRESH.toml [ROOM …]

The lists are the *.toml beside this file, one for each room:

    [[fault]]
    name = "EOS masked"
    why = "what a user suffers from it"
    file = "minilora/text/rows.py"
    old = "what stands there once"      # found by its tokens, see spans.py
    new = "what takes its place"
    tests = ["tests/text/test_rows.py::test_that_must_fail"]

`--check` is for fresh faults, planted without a look at the tests: a file of the same form, whose
entries need neither `why` nor `tests`. Each is tried on the quick tests (those of `make check`) of
every test file that imports the changed one, near rooms first, until one fails. It prints KILLED
and by which test, SURVIVED, or BROKEN for code that cannot run; rooms named behind the file limit
the tests to those rooms.

A helper process imports torch, transformers, peft and bitsandbytes once, but nothing of minilora.
For each fault the package is copied to a temporary folder and changed there, and the helper forks:
the child puts that folder first on its import path, runs pytest and reports how each test ended and
from which files minilora's modules came, so that it can be proven that the copy was tried. The
working tree is only read.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spans import replaced

ROOT = Path(__file__).resolve().parents[2]
LISTS = Path(__file__).parent
HELPERS = ROOT / "tests/helpers"
# seconds of the processor: for one named test, of which the dearest takes 2, and for one test file
WORK, FILE_WORK = 60, 120
PATIENCE = 900  # seconds by the clock, for one that waits for something that never comes
QUICK = ("-x", "-m", "not slow and not browser")  # what `make check` runs, up to the first red one
USED = "used.txt"  # stands in the copy when its changed file has been imported
BROKEN = (
    "SyntaxError",
    "IndentationError",
    "NameError",
    "UnboundLocalError",
    "ImportError",
    "ModuleNotFoundError",
)


@dataclass(frozen=True)
class Fault:
    """In `file` the code `old`, which stands there once, becomes `new`; each of `tests` must fail
    then.
    """

    name: str
    file: str
    old: str
    new: str
    why: str = ""  # what a user would suffer from it
    tests: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def planted_in(self, source: str) -> str:
        return replaced(source, self.old, self.new)


def read_list(*paths: Path) -> list[Fault]:
    """The faults of these files, or of all rooms."""
    entries = []
    for path in paths or sorted(LISTS.glob("*.toml")):
        entries += tomllib.loads(path.read_text(encoding="utf-8")).get("fault", [])
    return [Fault(**{**entry, "tests": tuple(entry.get("tests", ()))}) for entry in entries]


@dataclass
class Report:
    """What a child says: how each test ended ("passed", or "call: AssertionError"), and where
    minilora came from.
    """

    outcomes: dict[str, str]
    origins: dict[str, str]  # minilora's modules and their files
    folder: Path
    output: str
    imported: bool = False  # the changed file, by whichever process

    def used(self, fault: Fault) -> bool:
        """Whether the changed file was imported, by the tests or by a process they started."""
        return self.came_from_the_copy() and (fault.module in self.origins or self.imported)

    def came_from_the_copy(self) -> bool:
        return bool(self.origins) and all(
            Path(file).is_relative_to(self.folder / "minilora") for file in self.origins.values()
        )

    def noticed(self, test: str) -> bool:
        """Whether the test itself failed; a fault that cannot even be imported or run proves
        nothing.
        """
        phase, _, error = self.outcomes.get(test, "").partition(": ")
        return phase == "call" and error not in (*BROKEN, "Skipped")

    def red(self) -> dict[str, str]:
        """What did not pass, a failed import or fixture included: how `make check` would see it."""
        return {
            test: outcome
            for test, outcome in self.outcomes.items()
            if outcome != "passed" and not outcome.endswith((": Skipped", ": Exit"))
        }


def plant(folder: Path, fault: Fault | None) -> None:
    """A copy of the package in `folder`, changed in one place, and links to what lies beside it.
    Compiled files come along, but for the changed one.
    """
    shutil.copytree(ROOT / "minilora", folder / "minilora")
    for beside in ROOT.iterdir():  # data/ above all
        if beside.name != "minilora" and not beside.name.startswith("."):
            (folder / beside.name).symlink_to(beside)
    if fault is None:
        return
    path = folder / fault.file
    planted = fault.planted_in(path.read_text(encoding="utf-8"))
    told = f'open({str(folder / USED)!r}, "w").close()'  # once its last line has been reached
    path.write_text(f"{planted}\n{told}\n", encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


class Workshop:
    """The helper process. `try_out(fault)` -> Report; with None the copy stays as it is."""

    def __enter__(self) -> Workshop:
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("PYTEST_") and key != "PYTHONPATH"
        }
        environment |= {
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        self.helper = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        return self

    def __exit__(self, *exception) -> None:
        self.helper.stdin.close()  # the end of its input is the end of its work
        try:
            self.helper.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.helper.kill()

    def try_out(
        self, fault: Fault | None, tests: Sequence[str] = (), options: Sequence[str] = ()
    ) -> Report:
        """Run the fault's own tests, or `tests`, with more options for pytest."""
        with tempfile.TemporaryDirectory(prefix="fault-") as name:
            folder = Path(name).resolve()
            plant(folder, fault)
            order = {"folder": str(folder), "tests": tests or fault.tests, "options": options}
            print(json.dumps(order), file=self.helper.stdin, flush=True)
            if not self.helper.stdout.readline():
                raise RuntimeError("the helper process ended; what it printed tells why")
            output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
            try:
                outcomes, origins = json.loads((folder / "report.json").read_text())
            except FileNotFoundError:  # killed, by itself or for taking too long
                outcomes, origins = {}, {}
            return Report(outcomes, origins, folder, output, (folder / USED).exists())


# -------------------------------------------------------------------------------- inside the helper


def serve() -> None:
    """Import what is slow, then run one child for each line of the input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    warm_up()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                run_tests(Path(order["folder"]), order["tests"], order["options"])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)  # what matters stands in the report
        wait_for(child)
        print("done", file=answers, flush=True)


def wait_for(child: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.01)


def warm_up() -> None:
    import bitsandbytes.functional  # noqa: F401
    import hypothesis.strategies  # noqa: F401
    import jinja2.sandbox  # noqa: F401
    import peft.optimizers  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tokenizers  # noqa: F401
    import torch._dynamo  # torch.optim asks for it
    import tqdm.auto  # noqa: F401
    import transformers
    from _pytest.config import get_config

    # imported when named
    (
        transformers.LlamaForCausalLM,
        transformers.AutoModelForCausalLM,
        transformers.BitsAndBytesConfig,
    )
    get_config()
    torch.set_num_threads(1)
    assert not any(name.split(".")[0] == "minilora" for name in sys.modules)
    gc.freeze()


class Recorder:
    """A pytest plugin that notes how each test ended."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_collection(self, session) -> None:
        """The same examples each time, none remembered; a failing one need not be made small."""
        from hypothesis import Phase, settings

        calm = dict(
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            report_multiple_bugs=False,
        )
        settings.register_profile("faults", settings.get_profile("suite"), **calm)
        settings.load_profile("faults")

    def pytest_exception_interact(self, node, call) -> None:
        """A test file that cannot be imported."""
        if call.when == "collect":
            self.outcomes[node.nodeid] = f"collect: {_cause(call.excinfo.value)}"

    def pytest_runtest_makereport(self, item, call) -> None:
        if call.excinfo is not None:
            self.outcomes.setdefault(item.nodeid, f"{call.when}: {call.excinfo.typename}")
        elif call.when == "call":
            self.outcomes[item.nodeid] = "passed"

    def pytest_runtest_logreport(self, report) -> None:
        """A test that was expected to fail, and passed."""
        if report.failed and self.outcomes.get(report.nodeid) == "passed":
            self.outcomes[report.nodeid] = "call: Failed"


def _cause(error: BaseException) -> str:
    """The name of the error behind pytest's own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__


def run_tests(folder: Path, tests: Sequence[str], more: Sequence[str]) -> None:
    """In the child: pytest on `tests`, importing minilora from `folder`."""
    import resource

    work = sum(WORK if "::" in test else FILE_WORK for test in tests)
    resource.setrlimit(resource.RLIMIT_CPU, (work, work))
    with open(folder / "output.txt", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    os.environ |= {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(folder),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(folder),
    }
    sys.path.insert(0, str(folder))
    import pytest

    recorder = Recorder()
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", "-c", str(ROOT / "pyproject.toml")]
    options += ["--basetemp", str(folder / "tmp"), *more]
    places = [folder, *(ROOT / "tests" / own for own in ("browser", "notebooks", "helpers"))]
    options += ["-o", "pythonpath=" + " ".join(shlex.quote(str(place)) for place in places)]
    pytest.main([*options, *(str(ROOT / test) for test in tests)], plugins=[recorder])
    ours = {
        name: module for name, module in sys.modules.items() if name.split(".")[0] == "minilora"
    }
    origins = {name: str(getattr(module, "__file__", None)) for name, module in ours.items()}
    (folder / "report.json").write_text(json.dumps([recorder.outcomes, origins]))
    sys.stdout.flush()


# ------------------------------------------------------------------------------------------ by hand


def try_the_lists(words: Sequence[str]) -> int:
    """Each fault on the tests named beside it; returns how many survive."""
    chosen = [
        fault
        for fault in read_list()
        if not words or any(word.lower() in fault.name.lower() for word in words)
    ]
    survivors = 0
    with Workshop() as workshop:
        named = tuple(dict.fromkeys(test for fault in chosen for test in fault.tests))
        for test, outcome in workshop.try_out(None, named).red().items():
            print(f"fails without a fault: {test} ({outcome})")
        for fault in chosen:
            began = time.perf_counter()
            report = workshop.try_out(fault)
            missed = [test for test in fault.tests if not report.noticed(test)]
            survivors += bool(missed)
            ends = ", ".join(
                report.outcomes.get(test, "not run").removeprefix("call: ") for test in fault.tests
            )
            verdict = "SURVIVES" if missed else "caught"
            seconds = time.perf_counter() - began
            print(f"{verdict:8} {fault.name:60} {seconds:5.1f} s  {ends}", flush=True)
            for test in missed:
                print(f"         by {test}: {report.outcomes.get(test, 'not run')}")
    print(f"{len(chosen) - survivors} of {len(chosen)} faults are caught")
    return survivors


class Check:
    """Fresh faults on all quick tests that can see the changed file."""

    def __init__(self, workshop: Workshop, rooms: Sequence[str] = ()) -> None:
        self.workshop, self.rooms = workshop, rooms
        self.red_anyway: dict[str, bool] = {}  # by test: whether it fails without a fault

    def verdict(self, fault: Fault) -> tuple[str, str]:
        """("KILLED" | "SURVIVED" | "BROKEN", by what)."""
        tests = [
            test
            for test in tests_that_see(fault.module)
            if not self.rooms or Path(test).parent.name in self.rooms
        ]
        while True:
            left_out = [
                f"--deselect={test}" if "::" in test else f"--ignore={ROOT / test}"
                for test, red in self.red_anyway.items()
                if red
            ]
            report = self.workshop.try_out(fault, tests, [*QUICK, *left_out])
            if not report.outcomes:
                return "KILLED", "the process ended, or took too long"
            if not (red := report.red()):
                passed = sum(outcome == "passed" for outcome in report.outcomes.values())
                return "SURVIVED", f"{passed} tests of {len(tests)} files"
            test, outcome = next(iter(red.items()))
            if not self.fails_anyway(test):
                broken = outcome.rpartition(": ")[2] in BROKEN
                return "BROKEN" if broken else "KILLED", f"{test} ({outcome})"

    def fails_anyway(self, test: str) -> bool:
        if test not in self.red_anyway:
            self.red_anyway[test] = bool(self.workshop.try_out(None, [test]).red())
            if self.red_anyway[test]:
                print(f"left out, fails without a fault: {test}", flush=True)
        return self.red_anyway[test]


def tests_that_see(module: str) -> list[str]:
    """The test files that import `module`, themselves or through others; near rooms first."""
    sys.path.insert(0, str(HELPERS))
    from import_graph import tests_that_import

    return [str(path.relative_to(ROOT)) for path in tests_that_import(ROOT, module)]


def check(path: Path, rooms: Sequence[str]) -> int:
    """Each fault of the file on the tests that can see it; returns how many survive."""
    verdicts = []
    with Workshop() as workshop:
        trial = Check(workshop, rooms)
        for fault in read_list(path):
            began = time.perf_counter()
            verdict, reason = trial.verdict(fault)
            verdicts.append(verdict)
            print(
                f"{verdict:8} {fault.name:50} {time.perf_counter() - began:5.1f} s  {reason}",
                flush=True,
            )
    killed, broken = verdicts.count("KILLED"), verdicts.count("BROKEN")
    print(f"{killed} of {len(verdicts) - broken} killed" + f", {broken} cannot run" * bool(broken))
    return verdicts.count("SURVIVED")


def main(words: list[str]) -> int:
    if words[:1] == ["--check"]:
        return 1 if check(Path(words[1]), words[2:]) else 0
    return 1 if try_the_lists(words) else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        with contextlib.suppress(KeyboardInterrupt):
            serve()
    else:
        sys.exit(main(sys.argv[1:]))

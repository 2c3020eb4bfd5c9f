"""Plants mutants: changes one place in a copy of the package and runs the tests that are said to
notice it.

    python tests/faults/planting.py            the whole list, one line for each
    python tests/faults/planting.py NF4 cache  those with a word in their name

The lists are the *.toml beside this file, one for each room. A helper process imports torch, transformers, peft and bitsandbytes once,
but nothing of minilora. For each mutant the package is copied to a temporary folder and changed
there, and the helper forks: the child puts that folder first on its import path, runs pytest on the
named tests and reports how each ended and from which files minilora's modules came, so that it can
be proven that the copy was tried. The working tree is only read.
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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTS = Path(__file__).parent  # one list for each room: lora.toml, text.toml, …
WORK = 60  # seconds of the processor for one test, however busy the machine is; the dearest takes 2
PATIENCE = 900  # seconds by the clock, for one that waits for something that never comes
BROKEN = (
    "SyntaxError",
    "IndentationError",
    "NameError",
    "UnboundLocalError",
    "ImportError",
    "ModuleNotFoundError",
    "Skipped",
)


@dataclass(frozen=True)
class Mutant:
    """One planted fault: in `file` the text `old`, which stands there once, becomes `new`; each of
    `tests` must fail then.
    """

    name: str
    why: str  # what a user would suffer from it
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def read_list() -> list[Mutant]:
    entries = []
    for path in sorted(LISTS.glob("*.toml")):
        lists = tomllib.loads(path.read_text(encoding="utf-8"))
        entries += lists.get("fault", []) + lists.get("mutant", [])
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


@dataclass
class Report:
    """What a child says: how each test ended ("passed", or "call: AssertionError"), and where
    minilora came from.
    """

    outcomes: dict[str, str]
    origins: dict[str, str]  # minilora's modules and their files
    folder: Path
    output: str

    def came_from_the_copy(self) -> bool:
        return bool(self.origins) and all(
            Path(file).is_relative_to(self.folder / "minilora") for file in self.origins.values()
        )

    def noticed(self, test: str) -> bool:
        """Whether the test itself failed; a mutant that cannot even be imported or run proves
        nothing.
        """
        phase, _, error = self.outcomes.get(test, "").partition(": ")
        return phase == "call" and error not in BROKEN


def plant(folder: Path, mutant: Mutant | None) -> None:
    """A copy of the package in `folder`, changed in one place. Compiled files come along, but for
    the changed one.
    """
    shutil.copytree(ROOT / "minilora", folder / "minilora")
    if mutant is None:
        return
    path = folder / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.file} holds the text of mutant {mutant.name!r} "
            f"{source.count(mutant.old)} times, not once"
        )
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


class Workshop:
    """The helper process. `try_out(mutant)` -> Report; with None the copy stays as it is."""

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
        command = [sys.executable, __file__, "--serve"]
        self.helper = subprocess.Popen(
            command,
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

    def try_out(self, mutant: Mutant | None, tests: tuple[str, ...] = ()) -> Report:
        with tempfile.TemporaryDirectory(prefix="mutant-") as name:
            folder = Path(name).resolve()
            plant(folder, mutant)
            print(
                json.dumps({"folder": str(folder), "tests": tests or mutant.tests}),
                file=self.helper.stdin,
                flush=True,
            )
            if not self.helper.stdout.readline():
                raise RuntimeError("the helper process ended; what it printed tells why")
            output = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
            try:
                outcomes, origins = json.loads((folder / "report.json").read_text())
            except FileNotFoundError:  # killed, by itself or for taking too long
                outcomes, origins = {}, {}
            return Report(outcomes, origins, folder, output)


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
                run_tests(Path(order["folder"]), order["tests"])
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
        settings.register_profile("mutants", settings.get_profile("suite"), **calm)
        settings.load_profile("mutants")

    def pytest_runtest_makereport(self, item, call) -> None:
        if call.excinfo is not None:
            self.outcomes.setdefault(item.nodeid, f"{call.when}: {call.excinfo.typename}")
        elif call.when == "call":
            self.outcomes[item.nodeid] = "passed"


def run_tests(folder: Path, tests: list[str]) -> None:
    """In the child: pytest on `tests`, importing minilora from `folder`."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (WORK * len(tests), WORK * len(tests)))
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
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--basetemp",
        str(folder / "tmp"),
    ]
    helpers = [
        folder,
        ROOT / "tests/helpers",
    ]  # the tests' own
    options += ["-o", "pythonpath=" + " ".join(shlex.quote(str(place)) for place in helpers)]
    pytest.main([*options, *(str(ROOT / test) for test in tests)], plugins=[recorder])
    ours = {
        name: module for name, module in sys.modules.items() if name.split(".")[0] == "minilora"
    }
    origins = {name: str(getattr(module, "__file__", None)) for name, module in ours.items()}
    (folder / "report.json").write_text(json.dumps([recorder.outcomes, origins]))
    sys.stdout.flush()


# ------------------------------------------------------------------------------------------ by hand


def main(words: list[str]) -> int:
    chosen = [
        m for m in read_list() if not words or any(word.lower() in m.name.lower() for word in words)
    ]
    survivors = 0
    with Workshop() as workshop:
        plain = workshop.try_out(
            None, tuple(dict.fromkeys(test for mutant in chosen for test in mutant.tests))
        )
        for test, outcome in plain.outcomes.items():
            if outcome != "passed":
                print(f"fails without a mutant: {test} ({outcome})")
        for mutant in chosen:
            began = time.perf_counter()
            report = workshop.try_out(mutant)
            missed = [test for test in mutant.tests if not report.noticed(test)]
            survivors += bool(missed)
            ends = ", ".join(
                report.outcomes.get(test, "not run").removeprefix("call: ") for test in mutant.tests
            )
            verdict = "SURVIVES" if missed else "caught"
            print(
                f"{verdict:8} {mutant.name:60} {time.perf_counter() - began:5.1f} s  {ends}",
                flush=True,
            )
            for test in missed:
                print(f"         by {test}: {report.outcomes.get(test, 'not run')}")
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants are caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        with contextlib.suppress(KeyboardInterrupt):
            serve()
    else:
        sys.exit(main(sys.argv[1:]))

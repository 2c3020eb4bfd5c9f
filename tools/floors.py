"""Runs lessons on the oldest libraries that pyproject.toml allows: `python -m tools.floors`.

How it works: each lower bound of the dependencies and of the extras `notebooks` and `hub` becomes
an exact pin, `peft>=0.18` → `peft==0.18`. An environment of its own, `.venv-floors`, gets them, all
at once, so that bounds which exclude each other are found as well. Then the lessons that lean most
on other libraries run there through nbclient. A bound that does not hold shows as an error in a
cell.
What it leaves out: torch stays at the pin of constraints.txt. Its oldest wheel on the package index
brings gigabytes for graphics cards; the bound of torch is what its functions in use need.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from .project import ROOT, lessons, pyproject

FOLDER = ROOT / ".venv-floors"
EXTRAS = ("notebooks", "hub")
LESSONS = ("start-here", "next-token", "lora", "qlora", "real-gpu", "audit-the-papers")
LEFT_AT_ITS_PIN = "torch"
BOUND = re.compile(r"([A-Za-z0-9._-]+)\s*>=\s*([\w.]+)")


def pins(project: dict) -> list[str]:
    """Every lower bound as an exact version, in the order of pyproject.toml."""
    extras = project["project"]["optional-dependencies"]
    found = []
    for requirement in [
        *project["project"]["dependencies"],
        *(line for extra in EXTRAS for line in extras[extra]),
    ]:
        bound = BOUND.match(requirement)
        if bound is None:
            raise SystemExit(f"pyproject.toml gives {requirement!r} no lower bound")
        name, version = bound.groups()
        found.append(torch_pin() if name == LEFT_AT_ITS_PIN else f"{name}=={version}")
    return list(dict.fromkeys(found))


def torch_pin() -> str:
    """torch as constraints.txt pins it."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return re.search(rf"^{LEFT_AT_ITS_PIN}==\S+", text, flags=re.M).group()


def chosen() -> list[Path]:
    """The notebooks to run, found by their names, for the numbers may move."""
    by_name = {re.sub(r"^\d+-", "", path.stem): path for path in lessons()}
    return [by_name[name] for name in LESSONS]


def python() -> Path:
    """The interpreter of the floors' environment."""
    windows = FOLDER / "Scripts" / "python.exe"
    return windows if windows.exists() else FOLDER / "bin" / "python"


def make() -> None:
    """Make the environment, or make it again if a pin has changed since."""
    wanted, stamp = "\n".join(pins(pyproject())) + "\n", FOLDER / "pins.txt"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
    install = [str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *wanted.split()], cwd=ROOT, check=True)
    subprocess.run([*install, "--no-deps", "-e", "."], cwd=ROOT, check=True)
    stamp.write_text(wanted, encoding="utf-8")


def run(path: Path) -> str:
    """Execute one notebook in this interpreter's environment; "" or what went wrong and where."""
    import nbformat

    from .run_notebooks import execute

    notebook = nbformat.read(path, as_version=4)
    try:
        execute(notebook, path.parent)
    except Exception as error:
        told = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()  # without colours
        marked = [line.strip("- >") for line in told if line.startswith("-") and "> " in line]
        last = [line for line in told if line.strip()][-1:]
        return " | ".join([*last, *marked]) or type(error).__name__
    return ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pins", action="store_true", help="print the pins, run nothing")
    parser.add_argument("--here", type=Path, help="run one notebook in this environment")
    options = parser.parse_args(arguments)
    if options.pins:
        print("\n".join(pins(pyproject())))
        return 0
    if options.here:
        start, wrong = time.perf_counter(), run(options.here)
        print(f"{options.here.name}: {wrong or 'ran'}, {time.perf_counter() - start:.0f} s")
        return 1 if wrong else 0
    make()
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else a kernel warns of its debugger
    environment.setdefault("OMP_NUM_THREADS", "1")  # as the tests run the lessons
    codes = [
        subprocess.run(
            [str(python()), "-m", "tools.floors", "--here", str(path)], cwd=ROOT, env=environment
        ).returncode
        for path in chosen()
    ]
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())

"""What the tables of README.md and docs/ are filled from: results files, and who writes them."""

from __future__ import annotations

import json

from .project import ROOT


def results(name: str) -> dict | None:
    """What a results file holds; None where there is none yet."""
    path = ROOT / "benchmarks" / "results" / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def script(name: str) -> str:
    """The path of a benchmark, wherever under benchmarks/ it stands; with its folder where two are
    called so.
    """
    found = next(iter(sorted((ROOT / "benchmarks").rglob(name))), ROOT / "benchmarks" / name)
    return found.relative_to(ROOT).as_posix()


def command(name: str) -> str:
    """What starts a benchmark: a module of the repository."""
    return "python -m " + script(name).removesuffix(".py").replace("/", ".")

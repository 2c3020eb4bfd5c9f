"""A results file of points, each measured by a process of its own and written at once.

What it replaces: a notebook of half-finished experiments.
How it works: a point has a key, `task/method` for example. `measured` starts the benchmark's module
anew with `--child KEY`, at so many threads; `keep` puts what it wrote into the file, in the place
of a point with the same key. A table that was broken off goes on where it stopped.
What it leaves out: dropping points of an older recipe; whoever changes one gives --again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.kit import machine, plan
from minilora.system.files import atomic_write

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def read(path: Path) -> dict[str, dict]:
    """The points of a results file by their keys."""
    if not path.exists():
        return {}
    return {p["key"]: p for p in json.loads(path.read_text(encoding="utf-8"))["points"]}


def keep(path: Path, about: dict, points: dict[str, dict], order: Sequence[str]) -> None:
    """Write the points in that order, those of other keys after them; and where they come from."""
    keys = [key for key in order if key in points] + [key for key in points if key not in order]
    told = {
        **about,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.about(),
        "versions": machine.versions(),
        "points": [points[key] for key in keys],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def measured(module: str, key: str, threads: int, options: Sequence[str] = ()) -> dict:
    """What `python -m module --child KEY` writes; it is told the file by --to. Ends the program
    with what that process said if it fails.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"PYTHONPATH": str(machine.ROOT)} | dict.fromkeys(THREADS, str(threads))
    with tempfile.TemporaryDirectory(prefix="minilora-") as folder:
        to = Path(folder) / "point.json"
        command = [sys.executable, "-m", module, "--child", key, "--to", str(to), *options]
        done = subprocess.run(
            command, env=environment, cwd=machine.ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{key}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
        return json.loads(to.read_text(encoding="utf-8"))


def arguments(description: str, out: Path) -> argparse.ArgumentParser:
    """The command line that such benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=out, help="the JSON file to go on with")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=[],
        metavar="KEYS",
        help="points, or beginnings of their keys, with commas between them",
    )
    parser.add_argument("--again", action="store_true", help="measure what the file has already")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default 1)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    return parser


def wanted(keys: Sequence[str], only: Sequence[str]) -> list[str]:
    """Those of `keys` that `only` names, whole or by their beginning; all without it. Ends the
    program for a word that names none.
    """
    for word in only:
        if not any(key == word or key.startswith(word + "/") for key in keys):
            raise SystemExit(f"there is no point {word}; there are {', '.join(keys)}")
    named = lambda key: any(key == word or key.startswith(word + "/") for word in only)  # noqa: E731
    return [key for key in keys if not only or named(key)]


def run(options, about: dict, keys: Sequence[str], measure: Callable[[str, dict], dict]) -> dict:
    """Measure the wanted points that are missing, and write each as it comes. measure: gets a key
    and the points there are.
    """
    there = read(options.out)
    left = [key for key in wanted(keys, options.only) if options.again or key not in there]
    if plan.only_asked(options.out, list(there.values()), len(left)):
        return there
    for key in left:
        points = read(options.out)
        if key in points and not options.again:  # another has measured it meanwhile
            continue
        point = {"key": key, **measure(key, points)}
        points = read(options.out)  # another may have written meanwhile
        keep(options.out, about, points | {key: point}, keys)
        print(f"{key}: {json.dumps(point)}", flush=True)
    return read(options.out)

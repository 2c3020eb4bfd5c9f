"""All stored results of the tiny and the real model, by one command: `make results`.

What it replaces: a list of commands that somebody remembers.
How it works: each script of SCRIPTS is asked for its plan (kit/plan.py), the plan is shown with the
minutes it will take by what earlier runs took, then the scripts with runs to go are started, one
after another. They keep each run as it ends: a run that was broken off goes on where it stopped,
and results of another base are made anew.
What it leaves out: speed and memory, which want a machine of their own (`make bench`), and cards.

    python -m benchmarks.make_results [--plan]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.kit import machine, plan

# in order: what others are built on comes first
SCRIPTS = (
    *("tasks.adapters", "tasks.tasks", "tasks.taste", "tasks.placement", "tasks.precision"),
    *("tasks.sweeps", "tasks.capacity", "tasks.mixing", "tasks.preference", "tasks.peers_train"),
    *("real.precision", "real.tasks"),
)
PROCESSES = {"real.precision": 1, "real.tasks": 1, "tasks.adapters": 1, "tasks.peers_train": 1}


def asked(script: str) -> list[dict]:
    """The plan of a script: a record for each results file that it knows the runs of by now. Ends
    the program with what the script said if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="minilora-") as folder:
        lines = Path(folder) / "plan.jsonl"
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{script}"],
            env={**os.environ, plan.ASKED: str(lines), "PYTHONPATH": str(machine.ROOT)},
            cwd=machine.ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"benchmarks.{script}: {done.stdout}{done.stderr}")
        text = lines.read_text(encoding="utf-8") if lines.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


def minutes(found: dict, processes: int) -> float | None:
    """What is to go, in minutes; None where nothing has been run that would tell."""
    if not found["to_go"]:
        return 0.0
    return found["seconds"] and found["to_go"] * found["seconds"] / processes / 60


def told(script: str, found: dict, processes: int) -> str:
    """A line of the plan."""
    taken = minutes(found, processes)
    if not found["to_go"]:
        how_long = "nothing to do"
    elif taken is None:
        how_long = "never run: not known"
    else:
        how_long = f"about {max(1, round(taken))} min"
    return f"{script:18} {found['file']:24} {found['there']:4} {found['to_go']:6}  {how_long}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", action="store_true", help="say what it will take, and end")
    options = parser.parse_args()
    print(f"{'script':18} {'file':24} {'there':>4} {'to go':>6}  time")
    left, total = [], 0.0
    for script in SCRIPTS:
        for found in asked(script):
            processes = PROCESSES.get(script, 2)
            print(told(script, found, processes), flush=True)
            total += minutes(found, processes) or 0
            if found["to_go"] and script not in left:
                left.append(script)
    if left:
        print(f"about {round(total)} min, and what depends on these runs. To stop is safe.")
    for script in [] if options.plan else left:
        print(f"benchmarks.{script}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{script}"], cwd=machine.ROOT)
        if done.returncode:
            raise SystemExit(f"benchmarks.{script} ended with {done.returncode}; call this again")


if __name__ == "__main__":
    main()

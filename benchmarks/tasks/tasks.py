"""Every task with every method, by the commands a reader would type; the table stands in the
README.

What it replaces: a table typed by hand.
How it works: for each task and method it runs `minilora finetune` and `minilora evaluate` as
processes of their own, each with one thread, two at a time, and writes what `evaluate` printed to
`results/tasks.json`, and beside it what the base has lost of its own text (kit/forgetting.py). A
run that the file already holds with the same command is not repeated, so a
broken-off table goes on where it stopped.
What it leaves out: several seeds; the sweeps of lesson 08 have them.
Where numerics differ: products run in bf16 where the processor has it; other machines may answer
one or two of the 200 test questions differently.

    python -m benchmarks.tasks.tasks [--tasks extract,mood] [--methods qlora-all]
                                    [--jobs 2] [--again]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date

from benchmarks.kit import machine, plan
from benchmarks.kit.short_runs import fingerprint

RESULTS = machine.RESULTS / "tasks.json"
TASKS = ("extract", "mood", "style", "sums")
# sums come suddenly and, with q and v alone, late: after 600 steps some runs have them and some not
STEPS = {"sums": ["--steps", "1000"]}
METHODS = {
    "full": ["--method", "full"],
    "lora-all": ["--method", "lora", "--rank", "8", "--targets", "all"],
    "lora-qv": ["--method", "lora", "--rank", "8", "--targets", "q_proj,v_proj"],
    "qlora-all": ["--method", "qlora", "--rank", "8", "--targets", "all"],
    "qlora-qv": ["--method", "qlora", "--rank", "8", "--targets", "q_proj,v_proj"],
}


def call(arguments: list[str], module: str = "minilora") -> tuple[str, float]:
    """Run `python -m module …` with one thread; its output and the seconds it took. Ends the
    program with that output where it fails.
    """
    started = time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(machine.ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=machine.ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)}\n{done.stdout}{done.stderr}")
    return done.stdout, time.time() - started


def score(output: str) -> tuple[int, int]:
    """Hits and questions from `exact match 0.93 (186 of 200)`."""
    hits, asked = re.search(r"\((\d+) of (\d+)\)", output).groups()
    return int(hits), int(asked)


def own_text(where: list[str]) -> dict[str, float]:
    """Loss and look-ups on the base's own text, of the model that those options name."""
    return json.loads(call(where, "benchmarks.kit.forgetting")[0])


def run_one(task: str, method: str) -> dict:
    """Fine-tune and evaluate once."""
    data = f"data/tasks/{task}"
    if method == "base":
        output, seconds = call(["evaluate", "--model", "tiny", "--data", data])
        hits, asked = score(output)
        return {
            "task": task,
            "method": method,
            "hits": hits,
            "of": asked,
            "own_text": own_text(["--model", "tiny"]),
            "command": f"minilora evaluate --model tiny --data {data}",
        }
    folder = tempfile.mkdtemp(prefix="minilora-")
    try:
        command = [
            "finetune",
            "--model",
            "tiny",
            "--data",
            data,
            *METHODS[method],
            *STEPS.get(task, []),
        ]
        _, seconds = call([*command, "--out", folder])
        where = (
            ["--model", folder] if method == "full" else ["--model", "tiny", "--adapter", folder]
        )
        output, _ = call(["evaluate", *where, "--data", data])
        own = own_text(where)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    hits, asked = score(output)
    shown = f"minilora {' '.join(command)} --out DIR"
    return {
        "task": task,
        "method": method,
        "hits": hits,
        "of": asked,
        "own_text": own,
        "seconds": round(seconds, 1),
        "command": shown,
    }


def load() -> dict:
    """What there is of this base."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found if found.get("base") == fingerprint() else {"runs": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(["base", *METHODS]))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--again", action="store_true", help="repeat runs that the results file already holds"
    )
    options = parser.parse_args()
    results = load()
    wanted = [(t, m) for m in options.methods.split(",") for t in options.tasks.split(",")]
    have = {(r["task"], r["method"]) for r in results["runs"] if "own_text" in r}
    todo = [pair for pair in wanted if options.again or pair not in have]
    if plan.only_asked(RESULTS, results["runs"], len(todo)):
        return
    with ThreadPoolExecutor(options.jobs) as pool:
        for run in pool.map(lambda pair: run_one(*pair), todo):
            print(
                f"{run['task']:8} {run['method']:10} {run['hits']:4} of {run['of']}  "
                f"{run.get('seconds', 0):.0f} s",
                flush=True,
            )
            results["runs"] = [
                r
                for r in results["runs"]
                if (r["task"], r["method"]) != (run["task"], run["method"])
            ] + [run]
            save(results)


def save(results: dict) -> None:
    import platform

    import torch

    about = {
        "base": fingerprint(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
        "processes": 2,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"date": date.today().isoformat(), **about, "runs": results["runs"]}, indent=1)
        + "\n"
    )


if __name__ == "__main__":
    main()

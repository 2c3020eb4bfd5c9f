"""The memory of whole `minilora finetune` processes on a processor, beside what was foreseen.

What it replaces: `top` beside a run.
How it works: each run of the grid (backend × method × batch × row length) is the command itself in
a process of its own, at one thread, on rows of the task `extract`; its run.json says what was
foreseen before the model was loaded and what the system says that the process held at the most.
Each run is made twice: as the C library keeps its heap, and (`exact heap`) with
MALLOC_MMAP_THRESHOLD_ at 64 KiB, so that larger blocks go back to the system at once and no holes
stand. Every row is written as soon as it is there.
What it leaves out: time; a busy machine does not change what is measured here.

    python -m benchmarks.memory.on_cpu [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.kit import machine
from benchmarks.memory.rows import about, summary
from benchmarks.real import model
from minilora.system.files import atomic_write

RESULTS = machine.RESULTS / "memory-cpu.json"
MODEL, STEPS = model.NAME, 10
EXACT = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": "0"}


def grid() -> list[dict]:
    """The runs, those of the default batch first."""
    return [
        {"backend": backend, "method": method, "batch": batch, "seq": seq, "exact_heap": exact}
        for batch, seq in ((8, 512), (2, 64), (4, 128))
        for backend in ("minilora", "peft")
        for method in ("qlora", "lora", "int8", "full")
        for exact in (False, True)
    ]


def one(run: dict) -> dict:
    """The run with "predicted", "measured" and "error" (as a share of what was measured)."""
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    options = [f"--{name}={run[name]}" for name in ("backend", "method", "batch", "seq")]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "minilora", "finetune", f"--model={MODEL}"]
        done = subprocess.run(
            [*command, "--data=extract", f"--steps={STEPS}", *options, f"--out={out}"],
            env=os.environ | threads | (EXACT if run["exact_heap"] else {}),
            cwd=machine.ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{run}: {done.stderr.strip()[-300:]}")
        found = json.loads((out / "run.json").read_text())["result"]["memory"]
    return run | found | {"error": found["predicted"] / found["measured"] - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two runs, written nowhere")
    quick = parser.parse_args().quick
    if model.folder() is None:
        return
    rows = []
    for run in grid()[:2] if quick else grid():
        rows.append(one(run))
        print(json.dumps(rows[-1]), flush=True)
        if quick:
            continue
        told = {
            str(exact): summary(part)
            for exact in (False, True)
            if (part := [row for row in rows if row["exact_heap"] is exact])
        }
        with atomic_write(RESULTS) as path:
            found = about() | {"model": MODEL, "steps": STEPS, "exact_heap": told, "rows": rows}
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The README's example, really run: fine-tune, evaluate before and after, ask one question of the
test split.

What it replaces: output typed or remembered.
How it works: each command runs as a process of its own; what it printed goes to
`results/example.json` beside the command, its loss curve to `docs/loss.png`. `make readme` puts
both into the README.
What it leaves out: the other tasks and methods; `tasks.py` has them.
Where numerics differ: as in `tasks.py`.

    python -m benchmarks.tasks.example
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from benchmarks.kit import machine
from benchmarks.kit.short_runs import fingerprint

RESULTS = machine.RESULTS / "example.json"
PICTURE = machine.ROOT / "docs" / "loss.png"
TASK = "data/tasks/extract"


def run(arguments: list[str], out: Path) -> dict:
    """Run one `minilora` command with `runs/extract` standing for the folder `out`; the command as
    shown, and what it printed.
    """
    real = [str(out) if argument == "runs/extract" else argument for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "minilora", *real],
        cwd=machine.ROOT,
        env={**os.environ, "PYTHONPATH": str(machine.ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"minilora {shlex.join(real)}\n{done.stdout}{done.stderr}")
    return {
        "command": shlex.join(["minilora", *arguments]),
        "output": done.stdout.replace(str(out), "runs/extract").strip(),
    }


def main() -> None:
    first = (machine.ROOT / TASK / "test.jsonl").read_text(encoding="utf-8").splitlines()[0]
    prompt = json.loads(first)["prompt"]
    commands = [
        ["evaluate", "--model", "tiny", "--data", TASK],
        [
            "finetune",
            "--model",
            "tiny",
            "--data",
            TASK,
            "--method",
            "qlora",
            "--rank",
            "8",
            "--targets",
            "all",
            "--out",
            "runs/extract",
        ],
        ["evaluate", "--model", "tiny", "--adapter", "runs/extract", "--data", TASK],
        ["generate", "--model", "tiny", "--adapter", "runs/extract", "--prompt", prompt],
    ]
    with tempfile.TemporaryDirectory(prefix="minilora-") as folder:
        out = Path(folder) / "extract"
        shown = [run(command, out) for command in commands]
        PICTURE.parent.mkdir(exist_ok=True)
        shutil.copy(out / "loss.png", PICTURE)
    RESULTS.write_text(
        json.dumps(
            {
                "base": fingerprint(),
                "date": date.today().isoformat(),
                "cpus": os.cpu_count(),
                "commands": shown,
            },
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()

"""The README's example of `minilora budget`, really run: a run that a card does not hold, what
makes it fit, and the picture.

What it replaces: output typed or remembered.
How it works: as in `tasks/example.py`, whose `run` it uses; the output goes to
`results/budget.json`, the picture to `docs/budget.svg`. Takes a second.
What it leaves out: the other options; `minilora budget --help` lists them.

    python -m benchmarks.memory.budget_example
"""

from __future__ import annotations

import json
from datetime import date

from benchmarks.kit import machine
from benchmarks.tasks.example import run

RESULTS = machine.RESULTS / "budget.json"
PICTURE = "docs/budget.svg"
COMMAND = [
    "budget",
    "--model",
    "llama-7b",
    "--method",
    "qlora",
    "--rank",
    "64",
    "--batch",
    "8",
    "--seq",
    "1024",
    "--no-checkpointing",
    "--gpu",
    "T4",
]


def main() -> None:
    (machine.ROOT / PICTURE).unlink(missing_ok=True)  # which the command would not replace
    shown = [run([*COMMAND, "--picture", PICTURE], machine.ROOT / "runs" / "extract")]
    RESULTS.write_text(
        json.dumps(
            {"date": date.today().isoformat(), "commands": shown}, indent=1, ensure_ascii=False
        )
        + "\n"
    )


if __name__ == "__main__":
    main()

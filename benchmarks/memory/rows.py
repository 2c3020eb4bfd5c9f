"""The rows of `results/memory.json`: read, written, told in a line and summed up."""

from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime

from benchmarks.kit import machine
from minilora.budget.catalog import GIB
from minilora.system.files import atomic_write

RESULTS = machine.RESULTS / "memory.json"


def line(row: dict) -> str:
    other = row.get("measured", row.get("ledger"))
    return (
        f"{row['name']:100} {other / GIB:9.3f} GiB, on paper {row['estimate'] / GIB:9.3f}: "
        f"{row['error']:+.2%}"
    )


def summary(rows: list[dict]) -> dict:
    errors = [abs(row["error"]) for row in rows]
    return {
        "rows": len(rows),
        "mean_error": statistics.mean(errors),
        "worst_error": max(errors),
        "within_1_percent": sum(error <= 0.01 for error in errors),
    }


def read() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def write(found: dict) -> None:
    with atomic_write(RESULTS) as path:
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def about() -> dict:
    # None where one is not installed, as bitsandbytes may be beside a GPU
    told = machine.versions()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.about(),
        "versions": {
            name: told[name] for name in ("python", "torch", "transformers", "bitsandbytes")
        },
    }

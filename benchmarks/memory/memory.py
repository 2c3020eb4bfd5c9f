"""Memory of a training step: closed forms beside the ledger, and on a GPU beside what the card
says.

What it replaces: trust in a calculator.
How it works: for every configuration of `configurations.py`, from 20 million parameters to 70
billion, `budget.estimate` gives a peak on paper and `budget.measure.ledger` the peak of the step
itself, run on fake tensors; the ledger's events are then played through the model of CUDA's
allocator. Every row is written as soon as it is there, so a broken run goes on where it stopped;
the paper's side is computed anew each time. With `--gpu` the step runs in earnest on the card and
`torch.cuda.max_memory_allocated` stands beside the prediction (`on_card.py`); those rows are added
to the file under the card's name. `--gpu cpu` does the same in small on a processor, watched by the
ledger's counter, and writes nothing.
What it leaves out: time (`speed/cpu.py`), published figures of others
(`minilora.budget.published.peaks`).
Where numerics differ: bytes are whole numbers; only on a GPU can they differ from run to run, by
what kernels take for themselves.

    python -m benchmarks.memory.memory [--only llama-7b,22m] [--fresh] [--quick]
    python -m benchmarks.memory.memory --gpu
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from benchmarks.kit import machine
from benchmarks.memory.configurations import configurations, name_of
from benchmarks.memory.rows import about, line, read, summary, write
from minilora.budget.estimate import estimate
from minilora.budget.setup import Setup, make


def measured_row(setup: Setup) -> dict:
    """The ledger's side of a row."""
    from minilora.budget.measure.allocator import replay
    from minilora.budget.measure.ledger import measure

    began = time.process_time()
    ledger = measure(setup, steps=1)
    starts = [start for start, name in ledger.marks if name in ("forward", "backward")][:2]
    played = replay(ledger.events, starts)
    return {
        "name": name_of(setup),
        "ledger": ledger.peak,
        "phase": ledger.phase,
        "kinds": ledger.kinds,
        "phases": ledger.phases,
        "allocated": played.allocated,
        "reserved": played.reserved,
        "events": len(ledger.events),
        "cpu_seconds": round(time.process_time() - began, 2),
        "wall_seconds": round(ledger.seconds, 2),
    }


def with_paper(row: dict, setup: Setup) -> dict:
    """The row with the closed forms' peak and its error."""
    budget = estimate(setup)
    return row | {
        "estimate": budget.peak_allocated,
        "moment": budget.moment,
        "parameters": budget.parameters,
        "error": budget.peak_allocated / row["ledger"] - 1,
    }


def compare(options: argparse.Namespace) -> int:
    """All configurations; returns how many are off by more than 1 %."""
    setups = [
        setup for setup in configurations() if not options.only or setup.shape.name in options.only
    ]
    setups = setups[:30:8] if options.quick else setups
    found = read()
    known = {} if options.fresh else {row["name"]: row for row in found.get("rows", [])}
    rows = []
    for setup in setups:
        old = known.get(name_of(setup))
        rows.append(with_paper(old or measured_row(setup), setup))
        print(line(rows[-1]), flush=True)
        known[rows[-1]["name"]] = rows[-1]
        if not options.quick and old is None:
            write(found | about() | {"rows": list(known.values())})
    if not options.quick:
        wanted = {name_of(setup): setup for setup in configurations()}
        kept = [with_paper(known[name], setup) for name, setup in wanted.items() if name in known]
        write(
            found
            | about()
            | {
                "summary": summary(kept),
                "in_new_process": found.get("in_new_process") or cold(),
                "rows": kept,
            }
        )
    told = summary(rows)
    print(
        f"\n{told['rows']} configurations, mean {told['mean_error']:.3%}, worst "
        f"{told['worst_error']:.2%}; {told['within_1_percent']} within 1 %"
    )
    return told["rows"] - told["within_1_percent"]


def cold() -> dict:
    """Seconds and memory of one ledger in a process of its own, imports included: what a first call
    costs.
    """
    found = {}
    for model, settings in (("llama-7b", dict(rank=8)), ("llama-65b", dict(rank=64))):
        code = subprocess.run(
            [
                sys.executable,
                "-m",
                "benchmarks.memory.memory",
                "--one",
                json.dumps([model, settings]),
            ],
            cwd=machine.ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        found[model] = json.loads(code.stdout)
    return found


def one(told: str) -> None:
    began, (model, settings) = time.time(), json.loads(told)
    row = measured_row(make(model, method="qlora", device="cpu", **settings))
    found = {
        name: row[name] for name in ("name", "ledger", "events", "wall_seconds", "cpu_seconds")
    }
    print(
        json.dumps(
            found
            | {
                "process_seconds": round(time.time() - began, 1),
                "process_cpu": round(time.process_time(), 1),
                "process_bytes": machine.most_held(),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default=[], type=lambda text: text.split(","), help="some models, by name"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    parser.add_argument("--quick", action="store_true", help="four configurations, written nowhere")
    parser.add_argument(
        "--gpu",
        nargs="?",
        const="cuda",
        choices=("cuda", "cpu"),
        help="run real steps on this device",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one)
    if not options.gpu:
        sys.exit(min(compare(options), 1))
    from benchmarks.memory.on_card import on_card

    sys.exit(on_card(options.gpu))


if __name__ == "__main__":
    main()

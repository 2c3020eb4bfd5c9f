"""Memory of a training step: closed forms beside the ledger, and on a GPU beside what the card
says.

What it replaces: trust in a calculator.
How it works: for every configuration below, from 20 million parameters to 70 billion,
`budget.estimate` gives a peak on paper and `budget.ledger` the peak of the step itself, run on fake
tensors; the ledger's events are then played through the model of CUDA's allocator. Every row is
written as soon as it is there, so a broken run goes on where it stopped; the paper's side is
computed anew each time. With `--gpu` the step runs in earnest on the card and
`torch.cuda.max_memory_allocated` stands beside the prediction; those rows are added to the file
under the card's name. `--gpu cpu` does the same in small on a processor, watched by the ledger's
counter, and writes nothing.
What it leaves out: time (`cpu.py`), published figures of others (`minilora.budget.measured`).
Where numerics differ: bytes are whole numbers; only on a GPU can they differ from run to run, by
what kernels take for themselves.

    python benchmarks/memory.py [--only llama-7b,22m] [--fresh] [--quick]
    python benchmarks/memory.py --gpu
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from cpu import machine  # noqa: E402

from minilora.budget.catalog import GIB, Shape  # noqa: E402
from minilora.budget.estimate import estimate  # noqa: E402
from minilora.budget.setup import Setup, make  # noqa: E402
from minilora.system.files import atomic_write  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
SMALL = Shape("22m", hidden=384, ffn=1024, layers=6, heads=6, kv_heads=2, vocab=16000)
METHODS = [
    ("full", "fp32"),
    ("full-bf16", "bf16"),
    ("mixed", "autocast"),
    ("lora", "fp32"),
    ("lora", "bf16"),
    ("lora", "autocast"),
    ("int8", "bf16"),
    ("qlora", "fp32"),
    ("qlora", "bf16"),
    ("qlora", "autocast"),
]
QV = "q_proj,v_proj"


def configurations() -> list[Setup]:
    """Every setup that is compared, the small ones first."""
    rows = []

    def add(model, method, precision=None, **settings) -> None:
        rows.append(make(model, method=method, precision=precision, device="cpu", **settings))

    for method, precision in METHODS:
        add(SMALL, method, precision, checkpointing=False, batch=4, seq=256, library="minilora")
        add(
            SMALL,
            method,
            precision,
            checkpointing=True,
            batch=4,
            seq=256,
            attention="eager",
            foreach=False,
        )
        add(
            SMALL,
            method,
            precision,
            checkpointing=False,
            batch=2,
            seq=512,
            targets=QV,
            rank=32,
            detour="plain",
        )
    for method, precision in METHODS:
        add("smollm2-135m", method, precision, checkpointing=False, batch=2, seq=512)
    for model in ("smollm2-135m", "smollm2-360m", "qwen2.5-0.5b"):
        for method in ("lora", "qlora"):
            add(model, method, checkpointing=True, batch=8, seq=1024)
            add(model, method, checkpointing=False, batch=1, seq=512, rank=64, detour="plain")
    for model in ("tinyllama-1.1b", "llama-3.2-1b"):
        for method in ("full-bf16", "lora", "int8", "qlora"):
            add(model, method, checkpointing=True, batch=4, seq=1024, foreach=method != "full-bf16")
            add(
                model,
                method,
                checkpointing=False,
                batch=1,
                seq=2048,
                library="minilora",
                targets="all" if method == "lora" else QV,
            )
        add(model, "full", checkpointing=True, batch=1, seq=512)
        add(model, "mixed", checkpointing=False, batch=1, seq=512)
    for method in ("lora", "int8", "qlora"):
        for checkpointing in (False, True):
            add("llama-3.2-3b", method, checkpointing=checkpointing, batch=2, seq=1024, rank=16)
    for method in ("lora", "qlora"):
        for checkpointing in (False, True):
            add("llama-7b", method, checkpointing=checkpointing, targets=QV)
            add(
                "llama-7b",
                method,
                checkpointing=checkpointing,
                rank=64,
                batch=2,
                seq=1024,
                detour="plain",
            )
            add("llama-3.1-8b", method, checkpointing=checkpointing, rank=16, seq=2048)
    for method in ("full-bf16", "mixed", "int8"):
        add("llama-7b", method, checkpointing=True)
    add("llama-7b", "full-bf16", checkpointing=True, foreach=False)
    for model in ("mistral-7b", "qwen2.5-7b", "llama-2-13b", "llama-33b"):
        for method in ("lora", "qlora"):
            add(model, method, checkpointing=True, rank=16, batch=2, seq=1024)
    for foreach in (True, False):
        add("llama-65b", "qlora", checkpointing=True, rank=64, foreach=foreach)
    for model in ("llama-2-70b", "llama-3.1-70b"):
        add(model, "qlora", checkpointing=True, rank=16, batch=2, seq=2048)
    return rows


def card_configurations() -> list[Setup]:
    """What a GPU measures: up to 3 billion parameters, so that a card of 8 GB has rows of its
    own.
    """
    rows = []
    for model, batch, seq in (
        ("smollm2-135m", 4, 512),
        ("smollm2-360m", 2, 1024),
        ("tinyllama-1.1b", 1, 1024),
        ("llama-3.2-1b", 2, 512),
    ):
        for method in ("full-bf16", "lora", "qlora"):
            rows.append(
                make(
                    model, method=method, checkpointing=method == "full-bf16", batch=batch, seq=seq
                )
            )
        rows.append(
            make(model, method="qlora", checkpointing=True, rank=64, batch=4 * batch, seq=seq)
        )
    rows += [
        make("llama-3.2-3b", method=method, checkpointing=True, seq=2048)
        for method in ("lora", "qlora")
    ]
    return rows


def name_of(setup: Setup) -> str:
    """One setup as one line; equal setups have equal lines."""
    words = [
        setup.shape.name,
        setup.method,
        setup.precision,
        setup.library,
        f"B={setup.batch}",
        f"S={setup.seq}",
        setup.attention,
    ]
    if setup.adapters:
        targets = (
            "all" if len(setup.targets) == len(setup.shape.linears()) else "+".join(setup.targets)
        )
        words += [f"r={setup.rank}", targets, setup.detour]
    return " ".join(
        [*words, *["checkpointed"] * setup.checkpointing, "foreach" if setup.foreach else "fused"]
    )


# --------------------------------------------------------------------------------- paper and ledger


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
    from _card import (
        versions,  # None where one is not installed, as bitsandbytes may be beside a GPU
    )

    told = versions()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {
            name: told[name] for name in ("python", "torch", "transformers", "bitsandbytes")
        },
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
            [sys.executable, __file__, "--one", json.dumps([model, settings])],
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
                "process_bytes": most_held(),
            }
        )
    )


def most_held() -> int:
    """The most bytes that this process ever held; rusage would name its parent's, too, which Linux
    hands down.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(
            int(text.split()[1])
            for text in status.read_text().splitlines()
            if text.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


# ------------------------------------------------------------------------------------------- a card


def peak_on(device: str, setup: Setup) -> int:
    """The most bytes that a real step of `setup` takes on the device, its second step included."""
    import torch
    from _card import peak_of

    from minilora.budget.measure.fake_run import (
        Plan,
        batch_of,
        build,
        loss_of,
        optimizer_of,
        prepared,
        update,
    )

    plan = Plan(setup)
    with torch.device(device):
        model = build(plan)

        def two_steps() -> None:
            batch, optimizer = batch_of(setup), optimizer_of(model, setup)
            for _ in range(2):
                loss_of(model, setup, batch).backward()
                update(plan, optimizer)

        with prepared(model, setup):
            return peak_of(two_steps, model).allocated


def left_out(setup: Setup, needed: int, room: int | None, no_kernel: str | None) -> str:
    """Why a configuration is not tried here; "" if it is."""
    if room is not None and needed > 0.95 * room:
        return f"needs {needed / GIB:.1f} GiB"
    return (
        f"4 bits are decoded by bitsandbytes there, and {no_kernel}"
        if no_kernel and setup.base == "4bit"
        else ""
    )


def keep(card: str, rows: list[dict]) -> None:
    """Put a card's rows into the file, in the place of those of its rows that have the same
    names.
    """
    found, names = read(), {row["name"] for row in rows}
    found["gpu_rows"] = [
        row for row in found.get("gpu_rows", []) if row["card"] != card or row["name"] not in names
    ] + rows
    write(found)


def on_card(options: argparse.Namespace) -> int:
    """Real steps beside the prediction; each row is added under the card's name as soon as it is
    there. Returns 1 if one broke off.
    """
    import torch
    from _gpu_parts import kernel_works, let_go

    from minilora.budget.this_card import workspaces

    small = options.gpu == "cpu"
    if not small and not torch.cuda.is_available():
        print(
            "no CUDA GPU was found; run this where torch.cuda.is_available() is True, or try "
            "--gpu cpu",
            file=sys.stderr,
        )
        return 2
    card = "cpu" if small else torch.cuda.get_device_name()
    room = None if small else torch.cuda.get_device_properties(0).total_memory
    setups = (
        [
            make(SMALL, method=method, device="cpu", seq=64, checkpointing=False)
            for method in ("full-bf16", "lora", "qlora")
        ]
        if small
        else card_configurations()
    )
    rows, broken, no_kernel = [], 0, kernel_works(options.gpu)
    for setup in setups:
        budget = estimate(setup)
        # a 4-bit model is first made in 16 bits
        why = left_out(setup, max(budget.with_context, 3 * budget.parameters), room, no_kernel)
        if why:
            print(f"{name_of(setup):100} left out: {why}", flush=True)
            continue
        try:
            taken = peak_on(options.gpu, setup)
        except Exception as error:  # the others are measured all the same
            broken += 1
            print(
                f"{name_of(setup):100} broke off: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}",
                flush=True,
            )
            taken = 0
        let_go(options.gpu)
        if not taken:
            continue
        # cuBLAS takes them from torch's allocator, which counts them
        expected = budget.peak_allocated + workspaces(options.gpu)
        rows.append(
            {
                "name": name_of(setup),
                "card": card,
                "measured": taken,
                "estimate": expected,
                "error": expected / taken - 1,
            }
            | ({} if small else about())
        )
        print(line(rows[-1]), flush=True)
        if not small:
            keep(card, rows)
    if not rows:
        print(f"{card} has run none of the configurations", file=sys.stderr)
        return 2
    told = summary(rows)
    print(
        f"\n{card}: {told['rows']} configurations, mean {told['mean_error']:.2%}, worst "
        f"{told['worst_error']:.2%}"
    )
    return min(broken, 1)


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
    sys.exit(on_card(options) if options.gpu else min(compare(options), 1))


if __name__ == "__main__":
    main()

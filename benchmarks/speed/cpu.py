"""Speed and memory on the processor, ours beside the library's beside the floor, at one thread and
at two: one run, one table.

What it replaces: single numbers from single runs.
How it works: each number of threads gets a new process, since thread pools are made once; in it the
sections run one after another (`codes.py`, `steps.py`, `inference.py`), the contenders of each
taking turns. `kit/measure.py` says how time and memory are measured. The table is printed and goes
to `results/cpu.json` with machine, versions, date and the load of the machine; `make readme` puts
it into the README. A contender that gives other results than its peer stops the run. The decoder of
4-bit weights is compiled before anything is timed (MINILORA_COMPILE=always), as it is in any long
run by itself.
What it leaves out: graphics cards; torch.compile over whole models.
Where numerics differ: see the modules that are measured. The processor is often a shared one:
believe ratios, not milliseconds.

    python -m benchmarks.speed.cpu [--threads 1,2] [--only codes,lora] [--rounds 11] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.kit import machine

RESULTS = machine.RESULTS / "cpu.json"
SECTIONS = ("codes", "lora", "qlora", "int8", "generation")
LIBRARIES = ("torch", "numpy", "transformers", "peft", "bitsandbytes")


def section_rows(section: str, threads: int, rounds: int, quick: bool) -> list:
    """The rows of one section, measured in this process."""
    from benchmarks.speed.codes import code_rows
    from benchmarks.speed.inference import generation_rows, int8_rows
    from benchmarks.speed.steps import Shape, step_rows

    shape = (
        Shape(hidden=64, layers=1, inner=128, vocab=96, length=16, batch=2) if quick else Shape()
    )
    if section == "codes":
        return code_rows(threads, 128 if quick else 4096, rounds)
    if section == "int8":
        return int8_rows(threads, shape, rounds)
    if section == "generation":
        return generation_rows(threads, 16, 4 if quick else 128, rounds)
    method = {"lora": "LoRA", "qlora": "QLoRA"}[section]
    return [
        row for name in ("fp32", "bf16") for row in step_rows(method, name, threads, shape, rounds)
    ]


def measure(threads: int, options: argparse.Namespace) -> list[dict]:
    """All sections in this process, with that many threads; each row is printed when it is
    there.
    """
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    records = []
    for section in options.only:
        start = time.time()
        print(f"{section}, {threads} {'thread' if threads == 1 else 'threads'} ...", flush=True)
        for row in section_rows(section, threads, options.rounds, options.quick):
            row.goal = None if options.quick else row.goal  # the goals are for the full shapes
            records.append(row.record() | {"section": section})
            print("  " + line(records[-1]), flush=True)
        print(f"  {time.time() - start:.0f} s", flush=True)
    return records


def in_new_process(threads: int, options: argparse.Namespace) -> tuple[list[dict], list[float]]:
    """Rows measured by a process of its own, and the machine's load averages before and after."""
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(machine.ROOT),
    }
    environment["MINILORA_COMPILE"] = "auto" if options.quick else "always"
    environment |= {
        name: str(threads)
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    before = machine.load()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.speed.cpu",
            "--measure",
            str(out),
            "--threads",
            str(threads),
            "--rounds",
            str(options.rounds),
        ]
        command += ["--only", ",".join(options.only), *(["--quick"] if options.quick else [])]
        # warnings of the libraries; shown where something failed
        with open(Path(folder) / "stderr", "w+") as chatter:
            code = subprocess.run(
                command, env=environment, stderr=chatter, cwd=machine.ROOT
            ).returncode
            if code:
                chatter.seek(0)
                sys.stderr.write(chatter.read()[-4000:])
                raise SystemExit(
                    f"benchmarks.speed.cpu: the run with {threads} threads ended with code "
                    f"{code}; nothing is written"
                )
        return json.loads(out.read_text()), [before, machine.load()]


def line(record: dict) -> str:
    """One row of the table as text."""
    told = record["told"].format(record["ratio"])
    goal = (
        ""
        if record["goal"] is None
        else (
            f" (goal {'≥' if record['goal'] > 1 else '≤'} {record['goal']:g}: "
            f"{'met' if record['met'] else 'MISSED'})"
        )
    )
    return (
        f"{record['what']:52} {record['threads']}  {record['ours']:9.2f} {record['unit']:8} "
        f"{record['peer_name']} {record['peer']:9.2f}"
        f"  {told}{goal}  {record['beside']}"
    ).rstrip()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--threads", default="1,2", type=lambda text: [int(word) for word in text.split(",")]
    )
    parser.add_argument(
        "--only",
        default=list(SECTIONS),
        type=lambda text: text.split(","),
        help=f"some of {','.join(SECTIONS)}",
    )
    parser.add_argument("--rounds", type=int, help="timed runs of each contender (default 11)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small shapes and one round, to see that all runs; writes nothing",
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.only) - set(SECTIONS):
        parser.error(f"there is no section {sorted(unknown)[0]}; choose from {', '.join(SECTIONS)}")
    options.rounds = options.rounds or (1 if options.quick else 11)
    return options


def main() -> None:
    options = arguments()
    machine.use_all_cores()
    if options.measure:
        Path(options.measure).write_text(json.dumps(measure(options.threads[0], options)))
        return
    start, rows, loads = time.time(), [], {}
    for threads in options.threads:
        new, loads[threads] = in_new_process(threads, options)
        rows += new
    print(
        "\n"
        + "\n".join(
            line(row)
            for row in sorted(
                rows, key=lambda row: (SECTIONS.index(row["section"]), row["threads"])
            )
        )
    )
    missed = [row for row in rows if row["met"] is False]
    print(
        f"\n{sum(row['met'] is True for row in rows)} goals met, {len(missed)} missed, "
        f"{time.time() - start:.0f} s",
        flush=True,
    )
    if options.quick or set(options.only) != set(SECTIONS):
        return
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": machine.command(),
        "machine": machine.about(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
        "load_average": {
            str(threads): {"before": pair[0], "after": pair[1]} for threads, pair in loads.items()
        },
        "rounds": options.rounds,
        "seconds": round(time.time() - start),
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"written: {RESULTS.relative_to(machine.ROOT)}")


if __name__ == "__main__":
    main()

"""The adapters that lesson 09 switches and mixes: one for each task, by the command a reader would
type. `python -m benchmarks.tasks.adapters`

What it replaces: files whose making nobody remembers.
How it works: for each task and seed `minilora finetune` runs as a process with one thread and
`minilora evaluate` scores what came out on the whole test split. `talkative` goes on from `sums`,
on the same sums with most answers spelled out (`minilora.course.short_answers`). Seed 0 goes to
`data/adapters/TASK` in PEFT's folder format, further seeds to `runs/adapters/TASK-seedN`, which is
not committed. Records (`adapters.json` in each place) keep command and score; an adapter of the
same base and command is not trained again.
What it leaves out: any choice among seeds by score.
Where numerics differ: the order of additions depends on torch's version, processor and threads;
records say all three.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.kit import machine, plan
from benchmarks.kit.short_runs import fingerprint, header
from benchmarks.tasks.tasks import TASKS, call, score
from minilora import lora
from minilora.course import short_answers
from minilora.llama import Llama
from minilora.system.files import atomic_write, data_folder
from minilora.text import Tokenizer, encode_rows
from minilora.train import fit

SHIPPED, OTHERS = machine.ROOT / "data" / "adapters", machine.ROOT / "runs" / "adapters"
STEPS = {"extract": 300, "mood": 200, "style": 200, "sums": 700, "talkative": 300}
ALL = (*TASKS, "talkative")
RECIPE = ["--method", "lora", "--rank", "4", "--alpha", "8", "--targets", "all"]
README = """# Adapters for the shipped base

Written by `python -m benchmarks.tasks.adapters`, which lesson 09 builds on. Each folder is one
adapter of rank 4 on all linear layers, α = 8, float32, in PEFT's format:
`lora.load_adapter(model, folder)` here, `PeftModel.from_pretrained(model, folder)` there.

| adapter | right on the test split | seed | bytes | command |
| --- | --- | --- | --- | --- |
{rows}

`talkative` goes on from `sums` and answers sums either with the bare number or in a sentence; a
drawn answer counts as right if it names the wanted number and no other. The others are scored by
equality of the greedy answer.

The SHA-256 of the base's weights begins with {base}. Made on {date} with torch {torch}, one thread.
The same figures stand in `adapters.json`.
Licence: MIT, as the rest of the repository.
"""
FILES = ("adapter_config.json", "adapter_model.safetensors")


def folder_of(task: str, seed: int) -> Path:
    return SHIPPED / task if seed == 0 else OTHERS / f"{task}-seed{seed}"


def command_of(task: str, seed: int) -> list[str]:
    """What is typed after `minilora`, but for --out; for `talkative`, what is typed after
    `python`.
    """
    if task == "talkative":
        return ["-m", "benchmarks.tasks.adapters", "--tasks", task, "--seeds", str(seed)]
    return [
        "finetune",
        "--model",
        "tiny",
        "--data",
        f"data/tasks/{task}",
        *RECIPE,
        "--steps",
        str(STEPS[task]),
        "--seed",
        str(seed),
    ]


def book(seed: int) -> Path:
    """The file with the records of this seed's adapters."""
    return (SHIPPED if seed == 0 else OTHERS) / "adapters.json"


def records(path: Path) -> list[dict]:
    """Records of the shipped base whose files are there; of another base there are none."""
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = told.get("adapters", []) if told.get("base") == fingerprint() else []
    return [
        record
        for record in kept
        if all((folder_of(record["task"], record["seed"]) / name).is_file() for name in FILES)
    ]


def store(trained: Path, out: Path) -> None:
    """Copy the adapter under its base's name in the repository: the run wrote down a folder of this
    machine.
    """
    model = lora.load_adapter(Llama.from_pretrained(data_folder() / "base"), trained)
    lora.save_adapter(model, out, base_model="data/base")


def shown(task: str, seed: int) -> str:
    """The command as the record has it."""
    command = command_of(task, seed)
    return " ".join(
        ["python", *command] if task == "talkative" else ["minilora", *command, "--out", "DIR"]
    )


def talkative(seed: int) -> dict:
    """Go on from the adapter for sums until the model answers shortly or at length, by chance.
    Scored by drawing, like all of that section.
    """
    torch.set_num_threads(1)
    began, folder = time.perf_counter(), data_folder() / "base"
    tokenizer = Tokenizer.from_pretrained(folder)
    model = lora.load_adapter(Llama.from_pretrained(folder), folder_of("sums", seed))
    rows = encode_rows(short_answers.two_ways(short_answers.questions("train"), seed), tokenizer)
    fit(model, rows, steps=STEPS["talkative"], batch_size=16, lr=2e-3, seed=seed, progress=False)
    lora.save_adapter(model, folder_of("talkative", seed), base_model="data/base")
    asked = short_answers.questions("test")
    short, right = short_answers.tally(asked, short_answers.answers(model, tokenizer, asked, seed))
    counted = {
        "hits": round(right * len(asked) / 100),
        "of": len(asked),
        "short": round(short * len(asked) / 100),
    }
    return {**entry("talkative", seed, time.perf_counter() - began), **counted}


def entry(task: str, seed: int, seconds: float) -> dict:
    """What every record tells."""
    size = sum((folder_of(task, seed) / name).stat().st_size for name in FILES)
    return {
        "task": task,
        "seed": seed,
        "steps": STEPS[task],
        "bytes": size,
        "seconds": round(seconds, 1),
        "command": shown(task, seed),
    }


def one(task: str, seed: int) -> dict:
    """Train, score and store one adapter of the four tasks."""
    command, scratch = command_of(task, seed), Path(tempfile.mkdtemp(prefix="minilora-"))
    try:
        _, seconds = call([*command, "--out", str(scratch)])
        output, _ = call(
            [
                "evaluate",
                "--model",
                "tiny",
                "--adapter",
                str(scratch),
                "--data",
                f"data/tasks/{task}",
            ]
        )
        store(scratch, folder_of(task, seed))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    hits, asked = score(output)
    return {**entry(task, seed, seconds), "hits": hits, "of": asked}


def keep(record: dict) -> None:
    """Put a record into its book, in the tasks' order; the shipped ones also into the README beside
    them.
    """
    path = book(record["seed"])
    rest = [r for r in records(path) if (r["task"], r["seed"]) != (record["task"], record["seed"])]
    listed = sorted([*rest, record], key=lambda r: (r["seed"], ALL.index(r["task"])))
    told = {
        **header("adapters of rank 4 on all linear layers of the shipped base"),
        "adapters": listed,
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if path.parent == SHIPPED:
        with atomic_write(SHIPPED / "README.md") as temporary:
            temporary.write_text(readme(told), encoding="utf-8")


def readme(told: dict) -> str:
    """README.md of the shipped adapters, from their records."""
    rows = [
        f"| `{r['task']}` | {r['hits']} of {r['of']} | {r['seed']} | {r['bytes']:,} | "
        f"`{r['command']}` |"
        for r in told["adapters"]
    ]
    return README.format(
        rows="\n".join(rows), base=told["base"], date=told["date"], torch=told["versions"]["torch"]
    )


def ensure(seeds: list[int], tasks: tuple[str, ...] = ALL) -> None:
    """Train what is not there yet."""
    there = {(r["task"], r["seed"], r["command"]): r for s in seeds for r in records(book(s))}
    left = [
        (task, seed)
        for seed in seeds
        for task in tasks
        if (task, seed, shown(task, seed)) not in there
    ]
    if plan.only_asked(book(seeds[0]), list(there.values()), len(left)):
        return
    for task, seed in left:
        record = talkative(seed) if task == "talkative" else one(task, seed)
        keep(record)
        print(
            f"{task} seed {seed}: {record['hits']} of {record['of']}, {record['bytes']:,} "
            f"bytes, {record['seconds']} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", default="0", help="seed 0 is shipped; others go to runs/adapters"
    )
    parser.add_argument("--tasks", default=",".join(ALL))
    options = parser.parse_args()
    ensure([int(seed) for seed in options.seeds.split(",")], tuple(options.tasks.split(",")))


if __name__ == "__main__":
    main()

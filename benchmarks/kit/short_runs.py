"""Short fine-tuning runs of the shipped base, many of them: one recipe in, one record out, written
as they end.

What it replaces: a sweep tool. How it works: a recipe is a dict of plain values; `one_run` follows
it at one thread with its own seed, and `sweep` spreads recipes over processes and puts each record
into a JSON file at once, so that a sweep that was broken off goes on where it stopped. Records of
another base or of another recipe are dropped. What it leaves out: more than one machine. Where
numerics differ: the order of additions depends on torch's version, processor and threads; records
say all three.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import multiprocessing
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

from benchmarks.kit import machine, plan
from minilora.system.files import atomic_write, data_folder

RESULTS = machine.RESULTS
RECIPE = {
    "task": "extract",
    "rank": 8,
    "alpha": 16,
    "targets": "all",
    "precision": "nf4",
    "steps": 60,
    "batch_size": 16,
    "lr": 2e-3,
    "seed": 0,
    "asked": 40,
}
DENSE = ("fp32",)


def adapted(recipe: dict):
    """(model, tokenizer): what the recipe trains. Without a `method` that is LoRA.

    "lora": the shipped base in the recipe's precision with an adapter, its A drawn from the seed.
    "full": all weights of the base. "small": a model of the recipe's `shape` that starts from
    random numbers.
    """
    import torch

    from minilora import lora, qlora
    from minilora.llama import Llama
    from minilora.text import Tokenizer

    folder = data_folder() / "base"
    method = recipe.get("method", "lora")
    torch.manual_seed(recipe["seed"])
    model = smaller(recipe["shape"]) if method == "small" else Llama.from_pretrained(folder)
    if recipe["precision"] == "bf16":
        model.bfloat16()
    elif recipe["precision"] not in DENSE:
        qlora.quantize_model(model, recipe["precision"])
    if method == "lora":
        torch.manual_seed(recipe["seed"])
        lora.add_lora(model, recipe["rank"], recipe["alpha"], recipe["targets"])
    else:
        model.requires_grad_(True)
    return model, Tokenizer.from_pretrained(folder)


def smaller(shape: dict):
    """A Llama like the shipped base but for `shape` (fields of its config), with random weights."""
    from minilora.llama import Config, Llama

    return Llama(
        Config.from_hf(json.loads((data_folder() / "base" / "config.json").read_text()) | shape)
    )


def linear_bytes(model) -> int:
    """Bytes of the weights of all linear layers in the decoder, packed or not."""
    from torch import nn

    from minilora.qlora import QLinear

    packed = sum(m.quantized.nbytes for m in model.modules() if isinstance(m, QLinear))
    return packed + sum(m.weight.nbytes for m in model.modules() if type(m) is nn.Linear)


def fields_right(answers: list[str], examples: list[dict]) -> dict[str, int]:
    """For answers that should be JSON: in how many each field is right; an answer that is no JSON
    has none right.
    """
    right: dict[str, int] = {}
    for answer, example in zip(answers, examples):
        wanted = json.loads(example["response"])
        try:
            got = json.loads(answer)
        except ValueError:
            got = {}
        for field, value in wanted.items():
            right[field] = right.get(field, 0) + (isinstance(got, dict) and got.get(field) == value)
    return right


def one_run(recipe: dict) -> dict:
    """Train and score by a recipe, at one thread."""
    import torch

    torch.set_num_threads(1)
    from benchmarks.kit.forgetting import own_text
    from minilora import train
    from minilora.text import encode_rows, read_split

    began = time.perf_counter()
    model, tokenizer = adapted(recipe)
    folder = data_folder() / "tasks" / recipe["task"]
    rows = encode_rows(read_split(folder, "train"), tokenizer)
    asked = read_split(folder, "test")[: recipe["asked"]]
    history = train.fit(
        model, rows, progress=False, **{k: recipe[k] for k in ("steps", "batch_size", "lr", "seed")}
    )
    valid = train.evaluate_loss(model, encode_rows(read_split(folder, "valid"), tokenizer))
    hits, _, answers = train.exact_match(model, tokenizer, asked)
    own = own_text(model) if recipe.get("method") != "small" else None  # it had none to forget
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    record = {
        **recipe,
        "trained": trained,
        "linear_bytes": linear_bytes(model),
        "loss": [round(loss, 4) for loss in history.losses],
        "valid_loss": round(valid, 4),
        "exact": hits,
        "answers": answers[:3],
        "own_text": own,
    }
    if recipe["task"] == "extract":
        record["fields"] = fields_right(answers, asked)
    return {**record, "seconds": round(time.perf_counter() - began, 1)}


def fingerprint() -> str:
    """The first digits of the SHA-256 of the base's weights: a sweep belongs to one base."""
    return hashlib.sha256((data_folder() / "base" / "model.safetensors").read_bytes()).hexdigest()[
        :16
    ]


def header(told: str) -> dict:
    """What the file says about how its records came about."""
    return {
        "what": told,
        "command": machine.command(),
        "base": fingerprint(),
        "machine": {
            "cpus": os.cpu_count(),
            "system": platform.system(),
            "processor": platform.machine(),
            "threads": 1,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "minilora")},
        },
        "date": datetime.date.today().isoformat(),
    }


def _kept(path: Path, recipes: list[dict]) -> list[dict]:
    """Records of an earlier sweep that still answer one of these recipes on this base."""
    if not path.is_file():
        return []
    told = json.loads(path.read_text(encoding="utf-8"))
    if told.get("base") != fingerprint():
        return []
    return [
        record
        for record in told["runs"]
        if any(all(record.get(k) == v for k, v in recipe.items()) for recipe in recipes)
    ]


def sweep(path: Path, told: str, recipes: list[dict], jobs: int, run=one_run, **more) -> list[dict]:
    """Do `run` with all recipes that `path` has no record of yet, write the records in the recipes'
    order, and give them back. more: what else the file says of itself.
    """

    def place(record: dict) -> int:
        return next(
            i for i, recipe in enumerate(recipes) if all(record[k] == v for k, v in recipe.items())
        )

    records = _kept(path, recipes)
    waiting = [recipe for i, recipe in enumerate(recipes) if i not in {place(r) for r in records}]
    if plan.only_asked(path, records, len(waiting)):
        return records
    print(f"{path.name}: {len(records)} runs are there, {len(waiting)} to go")
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, recipe) for recipe in waiting]):
            records = sorted([*records, done.result()], key=place)
            with atomic_write(path) as temporary:
                temporary.write_text(
                    json.dumps(
                        {**header(told), **more, "runs": records}, indent=1, ensure_ascii=False
                    )
                    + "\n",
                    encoding="utf-8",
                )
            print(" ", line(done.result()), flush=True)
    return records


def line(record: dict) -> str:
    """A record in a line: what was run, and how it went where that was scored."""
    words = [
        "task",
        "method",
        "targets",
        "rank",
        "precision",
        "lr",
        "steps",
        "seed",
        "exact",
        "asked",
        "valid_loss",
        "seconds",
    ]
    return ", ".join(f"{word} {record[word]}" for word in words if word in record)


def arguments(description: str, name: str, steps: int = RECIPE["steps"]):
    """The command line that the sweeps share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--out", type=Path, default=RESULTS / name, help="the JSON file to write and to go on with"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--steps", type=int, default=steps, help="steps of each run")
    return parser

"""The four shipped tasks on a real model, by LoRA, QLoRA and full fine-tuning: score, memory, time,
and what is forgotten.

What it replaces: a claim that small models can be fine-tuned at home.
How it works: the points of `results/real-tasks.json`, each from fresh processes (kit/points.py):

    rate/METHOD/LR   a short run on extract with a seed of its own, and its validation loss. The
                     best must have a worse one on either side. For full fine-tuning it is taken;
                     for adapters the next lower one: over all steps the best of the short runs
                     costs nearly all that the model knew (front/lora/0.01)
    base/TASK        the base's score
    text/METHOD      the base's loss on real text, for qlora in 4 bits
    TASK/METHOD      finetune's own run; its score on the test split, and its loss on real text,
                     which rises as the model forgets
    front/METHOD/LR  the same on extract at other rates: what is learned against what is forgotten

The peak is that of the process's resident set, as the system counts it; beside it stands how much
was resident when the libraries were there and the model was not. The prediction is the one with
which `finetune` warns, computed anew at each start. Validation takes 16 rows.
What it leaves out: several seeds. On a busy machine --busy leaves the seconds out.
Where numerics differ: the order of additions depends on processor and threads; after 60 steps some
answers differ with it.

    python -m benchmarks.real.tasks [--only extract/qlora] [--again] [--threads 2] [--busy]
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.kit import machine, points
from benchmarks.real import model

RESULTS = machine.RESULTS / "real-tasks.json"
TASKS, METHODS = ("extract", "mood", "style", "sums"), ("lora", "qlora", "full")
ADAPTERS = (1e-3, 3e-3, 1e-2, 3e-2)
RATES = {"lora": ADAPTERS, "qlora": ADAPTERS, "full": (3e-5, 1e-4, 3e-4, 1e-3)}
FRONT = {"lora": (1e-3, 1e-2), "full": (1e-4,)}
BATCH, VALID = 8, 16
TRIED = {"task": "extract", "steps": 15, "seed": 1}


def keys() -> list[str]:
    """All points, in the order in which they are measured."""
    return [
        *(f"text/{method}" for method in METHODS[:2]),
        *(f"rate/{method}/{rate:g}" for method in RATES for rate in RATES[method]),
        *(f"base/{task}" for task in TASKS),
        *(f"{task}/{method}" for task in TASKS for method in METHODS),
        *(f"front/{method}/{rate:g}" for method in FRONT for rate in FRONT[method]),
    ]


def best_rate(found: dict[str, dict], method: str) -> float:
    """The rate whose short run ended with the least validation loss. Ends the program where a trial
    is missing, or where the best one lies at an end of the grid.
    """
    trials = {rate: found.get(f"rate/{method}/{rate:g}") for rate in RATES[method]}
    if None in trials.values():
        raise SystemExit(f"{method}: measure its rates first, by --only rate/{method}")
    best = min(trials, key=lambda rate: trials[rate]["valid_loss"])
    if best in (min(trials), max(trials)):
        raise SystemExit(f"{method}: {best:g} is best and at an end; add a rate beyond it to RATES")
    return best


def taken_rate(found: dict[str, dict], method: str) -> float:
    """The rate of the runs on all tasks: the best one, or, for adapters, the next lower one."""
    best = best_rate(found, method)
    return best if method == "full" else max(rate for rate in RATES[method] if rate < best)


def settings_of(point: dict, data: str):
    """What `finetune` is told for a point."""
    from minilora.recipes.settings import Settings

    told = {name: point[name] for name in ("method", "steps", "lr", "seed")}
    return Settings(model=model.NAME, data=data, batch=BATCH, device="cpu", **told)


# --------------------------------------------------------------------------------- in the processes


def shorter_data(task: str, folder: Path) -> str:
    """A copy of the task in `folder` that is validated on few rows."""
    from minilora.system.files import data_folder

    source = data_folder() / "tasks" / task
    folder.mkdir(parents=True)
    shutil.copy(source / "train.jsonl", folder)
    lines = (source / "valid.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "valid.jsonl").write_text("".join(lines[:VALID]), encoding="utf-8")
    return str(folder)


def train(point: dict, work: Path) -> dict:
    """Run finetune's recipe into `work`/run, and say how much memory the process took."""
    import torch

    import minilora.recipes.finetune as recipe
    import minilora.train  # noqa: F401  libraries come before the mark
    from benchmarks.tasks.peers_train import resident
    from minilora.text import Tokenizer

    settings = settings_of(point, shorter_data(point["task"], work / "data"))
    place = model.folder()
    rows, _ = recipe.read_rows(settings, Tokenizer.from_pretrained(place), recipe.MAX_SEQ)
    before = resident()
    result = recipe.run(settings, work / "run", say=lambda line: None, watched=False)
    peak = machine.most_held()
    records = [record for record in result.history.records if "loss" in record]
    return {
        "loss": [round(record["loss"], 4) for record in records],
        "valid_loss": round(result.history.valid_losses[-1][1], 4),
        "trained": result.trainable,
        "longest": max(len(ids) for ids, _ in rows),
        "resident_before": before,
        "peak": peak,
        "threads": torch.get_num_threads(),
        "cpu_seconds": round(time.process_time(), 1),
        "step_seconds": round(sum(record["seconds"] for record in records), 1),
        "seconds": round(result.seconds, 1),
    }


def opened(method: str, run: Path | None = None):
    """(model, tokenizer) as `evaluate` opens them."""
    from minilora.recipes import load

    if run is None:
        return load.load(model.NAME, code="nf4" if method == "qlora" else None, device="cpu")
    if method == "full":
        return load.load(str(run), device="cpu")
    return load.load(model.NAME, str(run), device="cpu")


def score(llama, tokenizer, task: str, asked: int) -> dict:
    """Exact match on the first test rows."""
    from minilora.system.files import data_folder
    from minilora.text import read_split
    from minilora.train import exact_match

    examples = read_split(data_folder() / "tasks" / task, "test")[:asked]
    hits, number, answers = exact_match(llama, tokenizer, examples)
    return {"hits": hits, "of": number, "answers": answers[:3]}


def child(point: dict) -> dict:
    """What one process measures."""
    from minilora.course import real_text

    work = Path(point["work"])
    if point["does"] == "train":
        return train(point, work)
    run = work / "run" if point["does"] == "after" else None
    llama, tokenizer = opened(point["method"], run)
    found = {}
    if point.get("task"):
        found |= score(llama, tokenizer, point["task"], point["asked"])
    if point["does"] != "base":
        found["text_loss"] = round(real_text.loss_on(llama, tokenizer), 4)
    return found


# --------------------------------------------------------------------------------------- the points


def measure(key: str, found: dict[str, dict], options) -> dict:
    """One point, by one process or two."""
    first, second, *rest = key.split("/")
    work = Path(tempfile.mkdtemp(prefix="minilora-real-"))

    def process(**point) -> dict:
        told = json.dumps({"work": str(work), "asked": options.asked} | point)
        return points.measured("benchmarks.real.tasks", told, options.threads)

    try:
        if first == "text":
            return process(does="text", method=second)
        if first == "base":
            return process(does="base", method="lora", task=second)
        if first == "rate":
            point = {"method": second, "lr": float(rest[0]), **TRIED}
            point["steps"] = min(TRIED["steps"], options.steps)
            return point | timed(process(does="train", **point), options.busy)
        task = TRIED["task"] if first == "front" else first
        rate = float(rest[0]) if first == "front" else taken_rate(found, second)
        point = {"task": task, "method": second, "steps": options.steps, "seed": 0, "lr": rate}
        point |= timed(process(does="train", **point), options.busy)
        return point | process(does="after", task=task, method=second) | loaded()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def timed(point: dict, busy: bool) -> dict:
    """Without the seconds where the machine did other work: they would say nothing."""
    return point | ({"step_seconds": None, "seconds": None} if busy else {})


def loaded() -> dict:
    return {"load_average": round(os.getloadavg()[0], 2)}


def predicted(point: dict, place: Path) -> dict:
    """Bytes of the step, and of the process, as `finetune` foresees them before it warns."""
    from minilora.recipes import memory_warning

    settings = settings_of(point, point["task"])
    setup = memory_warning.setup_of(settings, place, "cpu", point["longest"])
    step = memory_warning.takes(setup, settings)
    return {"predicted": step, "predicted_process": step + memory_warning.LIBRARIES}


def main() -> None:
    parser = points.arguments(__doc__.splitlines()[0], RESULTS)
    parser.add_argument("--steps", type=int, default=60, help="of each run (default 60)")
    parser.add_argument("--asked", type=int, default=100, help="test rows (default 100)")
    parser.add_argument("--busy", action="store_true", help="other work goes on: keep no seconds")
    options = parser.parse_args()
    if options.child:
        options.to.write_text(json.dumps(child(json.loads(options.child))), encoding="utf-8")
        return
    place = model.folder()
    if place is None:
        return
    began = time.time()
    about = {"what": "the shipped tasks on a real model", "batch": BATCH, "tried": TRIED}
    about |= {"command": machine.command(), "validated_on": VALID, **model.about(place)}
    found = points.run(options, about, keys(), lambda key, has: measure(key, has, options))
    for point in found.values():
        if point["key"].split("/")[0] in (*TASKS, "front"):
            point.update(predicted(point, place))
    points.keep(options.out, about, found, keys())
    print(f"{len(found)} of {len(keys())} points in {options.out}, {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()

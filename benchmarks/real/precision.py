"""A real model's loss on real text at every precision, and what a short QLoRA wins back.

What it replaces: a table of perplexities of models that one cannot run.
How it works: the points of `results/real-precision.json`, each from a process of its own:

    loss/CODE   the model's linear layers quantized as `--code CODE` does it (blocks of 64, scales
                quantized again), and its loss on docstrings; bits are what is stored per weight
    rate/CODE/LR  a short QLoRA with a seed of its own, at each rate, and its loss on rows to learn
                that it has not seen; the best one is taken
    won/CODE    60 steps of QLoRA on docstrings of other files, and the loss afterwards

Any training on docstrings lowers the loss on docstrings. So fp32 is trained, too (LoRA): what a
code loses stays the distance from that row, and what is won back is how far it shrank.
What it leaves out: other block sizes; calibration with data.
Where numerics differ: the text is the running Python's; see `minilora.course.real_text`.

    python -m benchmarks.real.precision [--only loss/nf4] [--again] [--threads 2]
"""

from __future__ import annotations

import json

from benchmarks.kit import machine, points
from benchmarks.real import model
from minilora.course.explore.real_precision import CODES

RESULTS = machine.RESULTS / "real-precision.json"
WON = ("int3", "nf4", "fp32")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
TRIED = {"code": "int3", "steps": 15, "seed": 1}  # the rate found there is taken for all
BATCH, TOKENS, UNSEEN = 4, 128, 16


def keys() -> list[str]:
    return [
        *(f"loss/{code}" for code in CODES),
        *(f"rate/{TRIED['code']}/{rate:g}" for rate in RATES),
        *(f"won/{code}" for code in WON),
    ]


def model_at(code: str):
    """(model, tokenizer): the real model in that precision; in bf16 its arithmetic is, too."""
    import torch

    from minilora.llama import Llama
    from minilora.qlora.base import load_base, recipe
    from minilora.text import Tokenizer

    place = model.folder()
    tokenizer = Tokenizer.from_pretrained(place)
    if code in ("fp32", "bf16"):
        dtype = torch.float32 if code == "fp32" else torch.bfloat16
        return Llama.from_pretrained(place, dtype=dtype).requires_grad_(False), tokenizer
    return load_base(place, "cpu", recipe(code)), tokenizer


def bits(llama) -> float:
    """Bits stored for each weight of the decoder's linear layers, scales included."""
    from torch import nn

    from minilora.qlora import Int8Linear, QLinear

    stored = weights = 0
    for layer in llama.model.modules():
        if isinstance(layer, QLinear):
            stored += layer.quantized.nbytes
        elif isinstance(layer, Int8Linear):
            stored += layer.weight.nbytes + layer.SCB.nbytes
        elif type(layer) is nn.Linear:
            stored += layer.weight.nbytes
        else:
            continue
        weights += layer.in_features * layer.out_features
    return 8 * stored / weights


def trained(llama, tokenizer, steps: int, lr: float, seed: int) -> dict:
    """Train an adapter of rank 8 on docstrings that are never scored."""
    import torch

    from minilora import lora, train
    from minilora.course import real_text

    rows = real_text.rows_to_learn(tokenizer, 60 * BATCH + UNSEEN, TOKENS)
    torch.manual_seed(seed)
    lora.add_lora(llama, rank=8, alpha=16)
    told = {"steps": steps, "batch_size": BATCH, "lr": lr, "seed": seed}
    history = train.fit(llama, rows[UNSEEN:], progress=False, **told)
    unseen = train.evaluate_loss(llama, rows[:UNSEEN], batch_size=4)
    losses = [round(loss, 4) for loss in history.losses]
    return told | {"losses": losses, "unseen_loss": round(unseen, 4)}


def child(point: dict) -> dict:
    """What one process measures."""
    import time

    import torch

    from minilora.course import real_text

    llama, tokenizer = model_at(point["code"])
    found = {"code": point["code"], "bits": round(bits(llama), 4)}
    if "lr" in point:
        told = {name: point[name] for name in ("steps", "lr", "seed")}
        found |= trained(llama, tokenizer, **told)
    if point["scored"]:
        found["text_loss"] = round(real_text.loss_on(llama, tokenizer), 4)
    cpu = round(time.process_time(), 1)
    return found | {"cpu_seconds": cpu, "threads": torch.get_num_threads()}


def best_rate(found: dict[str, dict]) -> float:
    """The tried rate with the least loss on unseen rows. Ends the program where one is missing."""
    trials = {rate: found.get(f"rate/{TRIED['code']}/{rate:g}") for rate in RATES}
    if None in trials.values():
        raise SystemExit("measure the rates first, by --only rate")
    return min(trials, key=lambda rate: trials[rate]["unseen_loss"])


def measure(key: str, found: dict[str, dict], options) -> dict:
    """One point, by a process of its own."""
    kind, code, *rest = key.split("/")
    point = {"code": code, "scored": kind != "rate"}
    if kind == "rate":
        point |= {**TRIED, "lr": float(rest[0]), "steps": min(TRIED["steps"], options.steps)}
    elif kind == "won":
        point |= {"lr": best_rate(found), "steps": options.steps, "seed": 0}
    return points.measured("benchmarks.real.precision", json.dumps(point), options.threads)


def main() -> None:
    parser = points.arguments(__doc__.splitlines()[0], RESULTS)
    parser.add_argument("--steps", type=int, default=60, help="of each QLoRA (default 60)")
    options = parser.parse_args()
    if options.child:
        options.to.write_text(json.dumps(child(json.loads(options.child))), encoding="utf-8")
        return
    place = model.folder()
    if place is None:
        return
    about = {"what": "a real model's loss on real text, by precision", "batch": BATCH}
    about |= {"tokens": TOKENS, "tried": TRIED, "command": machine.command()}
    about |= model.about(place)
    found = points.run(options, about, keys(), lambda key, has: measure(key, has, options))
    print(f"{len(found)} of {len(keys())} points in {options.out}")


if __name__ == "__main__":
    main()

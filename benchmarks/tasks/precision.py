"""The shipped base at every precision (lesson 05): held-out loss against bits stored per weight.
`python -m benchmarks.tasks.precision`

What it replaces: a leaderboard.
How it works: the linear layers of the decoder are quantized and put back as what the codes stand
for (`minilora.quantize`); embedding, head and norms stay as they are. The loss is that of
`minilora.recipes.pretrain.examine` on documents that the training never saw, nats per token, and
`lookup` the share of look-up questions answered exactly. Bits are what `Quantized.nbytes` counts:
codes, scales and the scales' constants.
What it leaves out: quantized arithmetic and activations (one row computes in bf16); calibration
with data.
Where numerics differ: see kit/short_runs.py. The rounding itself is the same everywhere.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.kit.short_runs import RESULTS, sweep
from minilora.system.files import data_folder

CODES = ("int8", "nf4", "fp4", "int4", "int3", "int2")
PIECES = (("tensor", False), ("row", False), (64, False), (64, True))
DOCUMENTS, FEW = 20, 3  # of each family; the lesson runs points again on the few


def recipes() -> list[dict]:
    """Every code for each kind of piece; then NF4 and int4 by block size, and codes with a zero
    point.
    """
    found = [
        {"code": code, "block": block, "double": double}
        for code in ("fp32", "bf16", "fp16", "bf16 arithmetic")
        for block, double in ((None, False),)
    ]
    found += [
        {"code": code, "block": block, "double": double}
        for code in CODES
        for block, double in PIECES
    ]
    found += [
        {"code": code, "block": block, "double": False}
        for code in ("nf4", "int4")
        for block in (16, 32, 128, 256, 1024)
    ]
    return found + [
        {"code": code, "block": 64, "double": False}
        for code in ("uint8", "uint4", "uint3", "uint2")
    ]


def model_at(code: str, block=None, double: bool = False):
    """(model, bits stored per weight of its linear layers): the shipped base in that precision."""
    import torch
    from torch import nn

    from minilora.llama import Llama
    from minilora.quantize import quantize

    model = Llama.from_pretrained(data_folder() / "base")
    linear = [m for m in model.model.modules() if isinstance(m, nn.Linear)]
    plain = {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "bf16 arithmetic": torch.bfloat16,
    }
    if code == "bf16 arithmetic":
        return model.to(torch.bfloat16), 16.0
    stored = 0
    with torch.no_grad():
        for layer in linear:
            kept = (
                layer.weight.to(plain[code])
                if code in plain
                else quantize(layer.weight, code, block, double)
            )
            stored += kept.nbytes
            layer.weight.copy_(kept if code in plain else kept.dequantize())
    return model, 8 * stored / sum(layer.weight.numel() for layer in linear)


def one_run(recipe: dict) -> dict:
    """The recipe's loss and size, at one thread."""
    import torch

    torch.set_num_threads(1)
    from minilora.recipes.pretrain import examine
    from minilora.text import Tokenizer

    began = time.perf_counter()
    model, bits = model_at(**recipe)
    tokenizer = Tokenizer.from_pretrained(data_folder() / "base").backend
    found, few = examine(model, tokenizer, DOCUMENTS), examine(model, tokenizer, FEW)["loss"]
    seconds = round(time.perf_counter() - began, 1)
    return {
        **recipe,
        "bits": round(bits, 4),
        "loss": round(found["loss"], 5),
        "lookup": found["lookup"],
        "loss_on_few": round(few, 5),
        "seconds": seconds,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "precision.json", help="the JSON file to write"
    )
    about = (
        "the shipped base at every precision, held-out loss and bits per weight of its "
        "linear layers"
    )
    out = parser.parse_args().out
    sweep(out, about, recipes(), 1, one_run, documents=DOCUMENTS, few=FEW)

"""Lesson 08, a real layer: what rank and alpha cost, and how far one step of training moves the
layer's output.

What it replaces: a rule of thumb for α.
How it works: sixteen examples of `extract` run once through the shipped base; the inputs x (N, 256)
of one query projection and the gradient G (N, 256) of the loss for its output are kept. With B = 0,
Adam's first step is lr against the sign of the gradient, whatever its size: B = −lr · sign(Gᵀ x
Aᵀ). The detour then puts out s · (x Aᵀ) Bᵀ, and its size beside that of x Wᵀ is drawn for all ranks
and for the scales s = α/r (LoRA) and s = α/√r (rsLoRA).
What it leaves out: the later steps, the other layers; A is drawn from one seed, and rank r takes
its first r rows.
Where numerics differ: x and G are the base's own, so the curves belong to it.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from . import layout, svg
from .widget import Explorer, Slider

RANKS = range(1, 65)

LR = 2e-3

LAYER = 2


@functools.cache
def observed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (N, in), G (N, out) and W (out, in) of one query projection, on sixteen examples."""
    import torch

    from ...llama.model import Llama
    from ...system.files import data_folder
    from ...text.examples import read_split
    from ...text.rows import encode_rows
    from ...text.tokenizer import Tokenizer
    from ...train.loss import loss_sum, tensors

    folder = data_folder()
    model = Llama.from_pretrained(folder / "base")
    rows = encode_rows(
        read_split(folder / "tasks" / "extract", "train")[:16],
        Tokenizer.from_pretrained(folder / "base"),
    )
    layer, kept = model.model.layers[LAYER].self_attn.q_proj, {}

    def keep(module, inputs, output):
        kept["x"] = inputs[0].detach()
        output.register_hook(lambda gradient: kept.__setitem__("G", gradient))

    hook = layer.register_forward_hook(keep)
    with torch.enable_grad():
        loss, tokens = loss_sum(model, tensors(rows, model))
        (loss / tokens).backward()
    hook.remove()
    return tuple(
        t.detach().reshape(-1, t.shape[-1]).numpy() for t in (kept["x"], kept["G"], layer.weight)
    )


@functools.cache
def moves() -> tuple[float, ...]:
    """For each rank ‖(x Aᵀ) Bᵀ‖ / ‖x Wᵀ‖ after one step of Adam, at scale 1."""
    x, G, W = observed()
    A = np.random.default_rng(0).uniform(-1, 1, size=(RANKS[-1], x.shape[1])).astype(
        np.float32
    ) / math.sqrt(x.shape[1])
    h = x @ A.T  # (N, r): row k of A gives column k, at every rank
    B = -LR * np.sign(G.T @ h)  # (out, r)
    size = np.linalg.norm(x @ W.T)
    return tuple(float(np.linalg.norm(h[:, :r] @ B[:, :r].T) / size) for r in RANKS)


@functools.cache
def per_rank() -> tuple[int, int]:
    """(numbers that one more rank adds on all linear layers of the shipped base, numbers of the
    whole base).
    """
    import torch

    from ...llama.checkpoint import read_config
    from ...llama.model import Llama
    from ...lora.adapters import add_lora, count_parameters
    from ...system.files import data_folder

    with torch.device("meta"):
        return count_parameters(add_lora(Llama(read_config(data_folder() / "base")), rank=1))


def compute(rank: int, alpha: int) -> dict:
    """Cost of the rank, scale, and the two curves over all ranks, in percent of the layer's own
    output.
    """
    each, whole = per_rank()
    curve = np.array(moves())
    ranks = np.array(RANKS)
    return {
        "rank": rank,
        "alpha": alpha,
        "scale": alpha / rank,
        "numbers": each * rank,
        "base": whole - each,
        "ranks": ranks,
        "α/r": 100 * curve * alpha / ranks,
        "α/√r": 100 * curve * alpha / np.sqrt(ranks),
    }


def render(found: dict) -> tuple[str, str]:
    rank, numbers, base = found["rank"], found["numbers"], found["base"]
    move, other = found["α/r"][rank - 1], found["α/√r"][rank - 1]
    label = (
        f"Rank {rank}, α {found['alpha']}: {numbers:,} numbers train, "
        f"{100 * numbers / base:.1f} % of the base's {base:,}; the adapter's file "
        f"holds {numbers * 4 / 1e6:.2f} MB. Scale α/r = {svg.number(found['scale'])}: the "
        f"first step moves this layer's output by {move:.2f} % "
        f"(with α/√r: {other:.2f} %)."
    )
    curves = svg.lines(
        {name: (found["ranks"], found[name]) for name in ("α/r", "α/√r")},
        x_label="rank r",
        y_label="first step moves the output by … %",
        x_range=(1, RANKS[-1]),
        y_range=(0, float(max(found["α/√r"].max(), found["α/r"].max()))),
        mark=(rank, move),
    )
    cost = svg.bars([numbers, base], ["trained", "in the base"], top=base, width=560)
    return label, layout.below([curves, cost])


EXPLORER = Explorer(
    "alpha",
    compute,
    render,
    [
        Slider("rank", RANKS, start=8, label="rank r"),
        Slider("alpha", range(1, 65), start=16, label="alpha α"),
    ],
)

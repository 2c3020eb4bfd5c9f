"""Lesson 14, what a fine-tuning run will need, on which card: rank, precision of the base, and
length of the rows.

What it replaces: "QLoRA fits a T4", which is right until the rows get long.
How it works: `budget.estimate` counts one step of four rows with transformers' Llama, PEFT's
layers, checkpointing and AdamW. The bar is the worst moment by parts, the lines below are the
cards, each with what stays free or is missing.
What it leaves out: other batches (the lesson asks for its own), 8-bit and paged optimizers, several
cards.
Where numerics differ: nowhere; it shows what the budget says. A card without bf16 (T4) computes in
fp16, which takes the same bytes.
"""

from __future__ import annotations

import functools

from ...budget import catalog
from ...budget.estimate import estimate
from ...budget.table import decimal
from . import layout, palette, svg
from .widget import Explorer, Slider

MODELS = (
    "smollm2-135m",
    "smollm2-360m",
    "smollm2-1.7b",
    "tinyllama-1.1b",
    "llama-3.2-1b",
    "llama-3.2-3b",
    "llama-3.1-8b",
    "llama-65b",
)

RANKS = (1, 2, 4, 8, 16, 32, 64, 128)

BASES = {"16 bits": "lora", "8 bits": "int8", "4 bits": "qlora"}

LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192)

CARDS = ("T4", "L4", "RTX 4090", "A100 40", "RTX A6000", "A100 80", "H200")

ROWS = 4  # of a batch

WIDE = 640


@functools.lru_cache(maxsize=4096)
def _told(model: str, rank: int, precision: str, seq: int):
    return estimate(
        model,
        method=BASES[precision],
        rank=rank,
        batch=ROWS,
        seq=seq,
        checkpointing=True,
        foreach=False,
        detour="plain",
    )


def parts(told) -> dict[str, int]:
    """Bytes at the worst moment: the base, what trains and its averages, and all that comes and
    goes.
    """
    base = sum(
        told.parts[name].bytes
        for name in ("weights", "quantization constants", "unquantized weights")
        if name in told.parts
    )
    trained = told.parts["adapters"].bytes + told.parts["optimizer states"].bytes
    return {
        "base": base,
        "adapter and AdamW's averages": trained,
        "activations, gradients, temporaries": told.peak_allocated - base - trained,
    }


def compute(model: str, rank: int, precision: str, seq: int) -> dict:
    """The parts, and what each card needs and has."""
    told = _told(model, rank, precision, seq)
    cards = {name: (told.needs(name), catalog.gpu(name).usable) for name in CARDS}
    return {
        "state": (model, rank, precision, seq),
        "parts": parts(told),
        "cards": cards,
        "trained": told.trainable,
        "context": told.setup.shape.context,
    }


def _bar(found: dict, end: float) -> str:
    """The parts end to end, a number in each, their names below."""
    left, at, drawn = 4, 0.0, []
    for number, (name, size) in enumerate(found.items(), start=1):
        wide, x = (WIDE - 8) * size / end, left + (WIDE - 8) * at / end
        drawn.append(
            f'<rect x="{x:.1f}" y="4" width="{max(wide, 0.5):.1f}" height="28" '
            f'fill="{palette.hue(number - 1)}"/>'
        )
        if wide > 20:
            drawn.append(f'<circle cx="{x + wide / 2:.1f}" cy="18" r="9" fill="#fff"/>')
            drawn.append(svg.text(x + wide / 2, 22.5, str(number), "middle", fill="#111"))
        drawn.append(
            f'<rect x="4" y="{26 + 20 * number}" width="13" height="13" '
            f'fill="{palette.hue(number - 1)}"/>'
        )
        drawn.append(svg.text(24, 37 + 20 * number, f"{number}  {name}: {decimal(size)}"))
        at += size
    return svg.canvas(WIDE, 106, *drawn)


def _cards(found: dict) -> str:
    """A line for each card: its memory as a frame, the need as a bar in it, and the verdict in
    words.
    """
    most, drawn = max(room for _, room in found.values()), []
    for row, (name, (need, room)) in enumerate(found.items()):
        y, wide = 4 + 26 * row, 300 * room / most
        fits = need <= room
        drawn.append(svg.text(92, y + 15, name, "end"))
        drawn.append(
            f'<rect x="100" y="{y}" width="{min(300 * need / most, wide):.1f}" height="18" '
            f'fill="{palette.hue(0) if fits else palette.hue(3)}"/>'
        )
        drawn.append(
            f'<rect x="100" y="{y}" width="{wide:.1f}" height="18" fill="none" '
            'stroke="currentColor"/>'
        )
        told = (
            f"✓ {decimal(room - need)} of {decimal(room)} free"
            if fits
            else f"✗ {decimal(need - room)} more than its {decimal(room)}"
        )
        drawn.append(svg.text(100 + wide + 8, y + 15, told))
    return svg.canvas(WIDE, 8 + 26 * len(found), *drawn)


def render(found: dict) -> tuple[str, str]:
    model, rank, precision, seq = found["state"]
    holding = [name for name, (need, room) in found["cards"].items() if need <= room]
    total = sum(found["parts"].values())
    smallest = (
        f"the smallest card here that holds it is the {holding[0]}"
        if holding
        else "none of these cards holds it"
    )
    beyond = (
        f" Its makers trained it on rows of {found['context']:,} tokens at most."
        if seq > found["context"]
        else ""
    )
    label = (
        f"{model}, base in {precision}, rank {rank} ({found['trained']:,} numbers train), {ROWS} "
        f"rows of {seq:,} tokens: {decimal(total)} at the worst moment; {smallest}.{beyond}"
    )
    return label, layout.below([_bar(found["parts"], total), _cards(found["cards"])])


EXPLORER = Explorer(
    "cards",
    compute,
    render,
    [
        Slider("model", MODELS, start="llama-3.2-1b", label="model"),
        Slider("rank", RANKS, start=8, label="rank r"),
        Slider("precision", tuple(BASES), start="4 bits", label="precision of the base"),
        Slider("seq", LENGTHS, start=512, label="tokens in a row"),
    ],
)

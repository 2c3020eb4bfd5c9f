"""Lesson 03, does it fit? Models × precision × method × GPUs, from the budget's closed forms.

What it replaces: "a 7B model needs a 24 GB card", which is right for one method and one precision.
How it works: `budget.estimate` gives the parts and the worst moments of one row of 512 tokens, with
checkpointing and AdamW in one kernel. On one GPU the need is the budget's own. On n GPUs all that
belongs to parameters (weights, gradients, optimizer states) is split evenly, as ZeRO-3 and FSDP do;
what the row needs stays whole on each, and beside it one layer stands gathered for its product.
What it leaves out: what several GPUs tell each other (lesson 13); other batches and lengths; 8-bit
and paged optimizers.
Where numerics differ: one GPU exactly as `budget.estimate`; several a little too much rather than
too little, since the gradients of a split model are booked as if all stood at the worst moment.
"""

from __future__ import annotations

import functools
import math

from ...budget import catalog
from ...budget.estimate import SEGMENT, WORKSPACES, Budget, estimate
from ...budget.forms.memory import ceil, trained_width
from . import layout, palette, svg
from .widget import Explorer, Slider

NAMES = (
    "smollm2-360m",
    "tinyllama-1.1b",
    "llama-3.2-3b",
    "llama-2-7b",
    "llama-2-13b",
    "qwen2.5-32b",
    "llama-2-70b",
    "llama-3.1-405b",
)

BITS = ("32", "32 + 16", "16", "8", "4")

METHODS = ("full fine-tuning", "LoRA", "inference")

CARDS = ("T4", "RTX 4090", "RTX 5090", "A100 40", "A100 80", "H200", "B200")

COUNTS = (1, 2, 4, 8, 64)

SETTINGS = {  # (method, bits of a weight) → what `estimate` is asked; what is not here cannot be
    ("full fine-tuning", "32"): {"method": "full"},
    ("full fine-tuning", "32 + 16"): {"method": "mixed"},
    ("full fine-tuning", "16"): {"method": "full-bf16"},
    ("LoRA", "32"): {"method": "lora", "precision": "fp32"},
    ("LoRA", "32 + 16"): {"method": "lora", "precision": "autocast"},
    ("LoRA", "16"): {"method": "lora"},
    ("LoRA", "8"): {"method": "int8"},
    ("LoRA", "4"): {"method": "qlora"},
    ("inference", "32"): {"method": "inference", "precision": "fp32"},
    ("inference", "32 + 16"): {"method": "inference", "precision": "autocast"},
    ("inference", "16"): {"method": "inference"},
    ("inference", "8"): {"method": "inference", "base": "int8"},
    ("inference", "4"): {"method": "inference", "base": "4bit"},
}

BASE = ("weights", "quantization constants", "unquantized weights")

PARTS = (
    "weights",
    "gradients",
    "optimizer states",
    "activations and temporaries",
    "driver and allocator",
)

WIDE = 640


def _gathered(told: Budget) -> int:
    """Bytes of one layer that stands whole on each GPU for its product, and of its gradient where
    it trains.
    """
    shape, setup = told.setup.shape, told.setup
    kept = sum(told.parts[name].bytes for name in BASE[:2] if name in told.parts)
    per = kept / (shape.parameters if setup.base == "dense" else shape.linear_parameters)
    return int(shape.linear_parameters / shape.layers * (per + trained_width(setup) * setup.whole))


def share(told: Budget, card: catalog.GPU, count: int) -> dict[str, float]:
    """Bytes on each of `count` GPUs at the worst moment, by `PARTS`. Their sum for one GPU is
    `told.needs(card)`.
    """
    held = sum(told.parts[name].bytes for name in (*BASE, "adapters") if name in told.parts)
    states = told.parts["optimizer states"].bytes if told.setup.trains else 0
    gradients = told.parts["gradients"].bytes if told.setup.trains else 0
    step = told.moments.get("optimizer step")
    if count == 1:
        peak = told.peak_allocated
        grads = (
            min(gradients, peak - held - states)
            if told.moment in ("backward", "optimizer step")
            else 0
        )
        rest = peak - held - states - grads
    else:
        passing = {name: moment.bytes - held - states for name, moment in told.moments.items()}
        inside = max(
            passing.get("backward", 0) - gradients * told.setup.whole,
            passing.get("forward", 0),
            passing.get("generation", 0),
        )
        after = step.bytes - held - states - gradients if step else 0
        rest, grads = max(inside + _gathered(told), after), gradients / count
    parts = {
        "weights": held / count,
        "gradients": grads,
        "optimizer states": states / count,
        "activations and temporaries": rest,
    }
    whole = ceil(int(sum(parts.values())) + WORKSPACES, SEGMENT) * SEGMENT + card.context
    return {**parts, "driver and allocator": whole - sum(parts.values())}


@functools.cache
def _table(model: str, precision: str, method: str) -> dict | None:
    """(card, count) → bytes on each GPU by part; None where the method cannot train such
    weights.
    """
    asked = SETTINGS.get((method, precision))
    if asked is None:
        return None
    told = estimate(model, foreach=False, **asked)
    return {
        (name, count): share(told, catalog.gpu(name), count) for name in CARDS for count in COUNTS
    }


def need(model: str, precision: str, method: str, card: str, count: int = 1) -> float:
    """Bytes on each of `count` cards at the worst moment; infinity where the method cannot train
    such weights.
    """
    table = _table(model, precision, method)
    return sum(table[card, count].values()) if table else math.inf


def suffices(model: str, precision: str, method: str, card: str, count: int = 1) -> bool:
    """Whether so many cards hold it."""
    return need(model, precision, method, card, count) <= catalog.gpu(card).usable


def compute(model: str, precision: str, method: str, card: str, count: int) -> dict:
    """What each GPU must hold, for the chosen setting and for all cards and counts."""
    return {
        "model": model,
        "precision": precision,
        "method": method,
        "card": card,
        "count": count,
        "table": _table(model, precision, method),
        "room": {name: catalog.gpu(name).usable for name in CARDS},
    }


def _amount(size: float) -> str:
    """Bytes in GB, two digits at least."""
    return (
        f"{size / 1e9:,.0f}"
        if size >= 99.5e9
        else f"{size / 1e9:.1f}"
        if size >= 1e9 or not size
        else f"{size / 1e9:.2g}"
    )


def _bar(parts: dict[str, float], room: float, card: str) -> str:
    """The parts of one GPU stacked on a scale that also holds the card's memory, and their names
    below.
    """
    end, left, right = 1.02 * max(sum(parts.values()), room), 4, WIDE - 4
    place, at = (lambda size: left + (right - left) * size / end), 0.0
    line, words = place(room), f"{card}: {_amount(room)} GB usable"
    anchor = "start" if line < WIDE / 2 else "end"
    drawn = [svg.text(line + (4 if anchor == "start" else -4), 12, words, anchor)]
    for number, (name, size) in enumerate(parts.items(), 1):
        wide = place(at + size) - place(at)
        drawn.append(
            f'<rect x="{place(at):.1f}" y="20" width="{max(wide, 0.5):.1f}" height="28" '
            f'fill="{palette.hue(number - 1)}"/>'
        )
        if wide > 20:
            middle = place(at) + wide / 2
            drawn.append(f'<circle cx="{middle:.1f}" cy="34" r="9" fill="#fff"/>')
            drawn.append(svg.text(middle, 38.5, str(number), "middle", fill="#111"))
        y, x = 68 + 20 * ((number - 1) // 2), 4 + 320 * ((number - 1) % 2)
        drawn.append(
            f'<rect x="{x}" y="{y - 11}" width="13" height="13" fill="{palette.hue(number - 1)}"/>'
        )
        drawn.append(svg.text(x + 20, y, f"{number}  {name}: {_amount(size)} GB"))
        at += size
    drawn.append(
        f'<path d="M{line:.1f} 4V56" stroke="currentColor" stroke-width="2" '
        'stroke-dasharray="5 3"/>'
    )
    return svg.canvas(WIDE, 116, *drawn)


def _grid(found: dict) -> str:
    """A row for each card, a column for each number of GPUs: ✓ or ✗ and the need of each GPU, the
    chosen one ringed.
    """
    left, above, wide, tall, drawn = 180, 40, 90, 26, []
    drawn.append(svg.text(4, 14, "does it fit? GB that each GPU needs", font_weight="bold"))
    for column, count in enumerate(COUNTS):
        drawn.append(
            svg.text(
                left + wide * column + wide / 2,
                above - 8,
                f"{count} GPU" + "s" * (count > 1),
                "middle",
            )
        )
    for row, name in enumerate(CARDS):
        y = above + tall * row
        drawn.append(
            svg.text(left - 8, y + 17, f"{name}: {_amount(found['room'][name])} GB", "end")
        )
        for column, count in enumerate(COUNTS):
            x = left + wide * column
            if found["table"] is None:
                drawn.append(svg.text(x + wide / 2, y + 17, "–", "middle"))
            else:
                need = sum(found["table"][name, count].values())
                fits = need <= found["room"][name]
                paint, ink = ("#0072B2", "#fff") if fits else ("#e8e8e8", "#333")
                drawn.append(
                    f'<rect x="{x + 2}" y="{y + 1}" width="{wide - 4}" height="{tall - 3}" '
                    f'fill="{paint}"/>'
                )
                drawn.append(
                    svg.text(
                        x + wide / 2,
                        y + 17,
                        f"{'✓' if fits else '✗'} {_amount(need)}",
                        "middle",
                        fill=ink,
                    )
                )
            if (name, count) == (found["card"], found["count"]):
                drawn.append(
                    f'<rect x="{x}" y="{y - 1}" width="{wide}" height="{tall + 1}" '
                    'fill="none" stroke="currentColor" stroke-width="3"/>'
                )
    return svg.canvas(WIDE, above + tall * len(CARDS) + 6, *drawn)


def render(found: dict) -> tuple[str, str]:
    card, count = found["card"], found["count"]
    asked = f"{found['model']}, {found['method']}, weights in {found['precision']} bits"
    if found["table"] is None:
        label = (
            f"{asked}: no such thing. Steps of training are smaller than the gaps between "
            f"{found['precision']}-bit numbers; LoRA trains numbers beside them."
        )
        return label, _grid(found)
    parts, room = found["table"][card, count], found["room"][card]
    need = sum(parts.values())
    verdict = (
        f"fits, {_amount(room - need)} GB to spare"
        if need <= room
        else f"does not fit, {_amount(need - room)} GB short"
    )
    each = "one" if count == 1 else f"each of {count}"
    label = (
        f"{asked}: {_amount(need)} GB on {each} {card}, which has {_amount(room)} GB; it "
        f"{verdict}. One row of 512 tokens, checkpointing."
    )
    return label, layout.below([_bar(parts, room, card), _grid(found)])


EXPLORER = Explorer(
    "fits",
    compute,
    render,
    [
        Slider("model", NAMES, start="llama-2-7b", label="model"),
        Slider("precision", BITS, start="32", label="bits of a weight"),
        Slider("method", METHODS, start="full fine-tuning", label="method"),
        Slider("card", CARDS, start="A100 80", label="GPU"),
        Slider("count", COUNTS, start=1, label="how many GPUs"),
    ],
)

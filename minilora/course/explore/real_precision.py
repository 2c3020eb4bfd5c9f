"""Lesson 05: what each precision costs a real model on real text, and what a short QLoRA
wins back.

What it replaces: quantizing and scoring 135 million weights at each move of a slider.
How it works: `benchmarks/real/precision.py` put SmolLM2-135M into each precision, took its loss on
docstrings of Python's own library, trained an adapter over some of them, and wrote what came out to
`benchmarks/results/real-precision.json`. Any training on docstrings lowers that loss, so a trained
precision is compared with trained fp32, an untrained one with untrained fp32.
What it leaves out: other block sizes than 64, and scales that stand alone.
Where numerics differ: the text is that of the Python of the run; the file says which.
"""

from __future__ import annotations

import functools

from . import palette, svg
from .stored import stored
from .widget import Explorer, Slider

CODES = ("fp32", "bf16", "llm.int8", "int8", "nf4", "fp4", "int4", "int3", "int2")
NAMES = {"llm.int8": "LLM.int8()", "nf4": "NF4", "fp4": "FP4"}
BEFORE, AFTER = "as quantized", "after a short QLoRA"
TOP = 6.0  # nats; a longer bar is cut there, or a few hundredths could not be seen beside it
WEIGHTS = 106_168_320  # of the linear layers of SmolLM2-135M


@functools.cache
def points() -> list[dict]:
    """What the benchmark wrote. Raises MiniloraError where it is missing."""
    command = "benchmarks.real.precision"
    return stored("real-precision.json", "losses", command, "20 minutes")["points"]


@functools.cache
def losses() -> dict[str, dict[str, float]]:
    """BEFORE or AFTER → code → loss on the text in nats a token, as far as measured."""
    found: dict[str, dict[str, float]] = {BEFORE: {}, AFTER: {}}
    for point in points():
        kind = point["key"].partition("/")[0]
        if kind in ("loss", "won"):
            found[BEFORE if kind == "loss" else AFTER][point["code"]] = point["text_loss"]
    return found


@functools.cache
def bits() -> dict[str, float]:
    """code → bits stored for each weight, scales included."""
    return {point["code"]: point["bits"] for point in points()}


def compute(code: str, when: str) -> dict:
    """All losses at that time, and what the chosen code costs."""
    known = losses()
    return {
        "code": code,
        "when": when,
        "losses": {each: known[when].get(each) for each in CODES},
        "untrained": known[BEFORE],
        "fp32": known[when]["fp32"],
        "bits": bits(),
    }


def _told(found: dict) -> str:
    """The sentence below the picture."""
    code, when, got = found["code"], found["when"], found["losses"][found["code"]]
    name, stored_bits = NAMES.get(code, code), found["bits"][code]
    held = f"{stored_bits:.3g} bits a weight, {stored_bits * WEIGHTS / 8e6:.0f} MB of linear layers"
    if got is None:
        return f"{name}: {held}; not trained here."
    rise = got - found["fp32"]
    told = f"{name} {when}: {held}; loss {got:.3f}, {rise:+.3f} beside fp32 {when}"
    lost = found["untrained"][code] - found["untrained"]["fp32"]
    if when == AFTER and lost > 0.01:
        told += f". Before, it lost {lost:.3f}: {100 * (1 - rise / lost):.0f} % of that is won back"
    return told + "."


def render(found: dict) -> tuple[str, str]:
    left, room, parts = 120, 330, []
    place = left + room * found["fp32"] / TOP
    for row, code in enumerate(CODES):
        y, loss, chosen = 6 + 26 * row, found["losses"][code], code == found["code"]
        weight = "bold" if chosen else "normal"
        label = ("▸ " if chosen else "") + NAMES.get(code, code)
        parts.append(svg.text(left - 8, y + 14, label, "end", font_weight=weight))
        long = room * min(loss or found["fp32"], TOP) / TOP
        if loss is not None:
            colour = palette.hue(1 if chosen else 0)
            parts.append(
                f'<rect x="{left}" y="{y}" width="{long:.1f}" height="18" fill="{colour}"/>'
            )
        words = "not trained" if loss is None else f"{loss:.3f}  ({found['bits'][code]:.3g} bits)"
        words = f"… {words}" if loss and loss > TOP else words
        parts.append(svg.text(left + long + 6, y + 14, words, font_weight=weight))
    end = 6 + 26 * len(CODES)
    parts.append(
        f'<path d="M{place:.1f} 2V{end}" fill="none" stroke="currentColor" stroke-dasharray="3 3"/>'
    )
    parts.append(svg.text(place, end + 16, "fp32's loss", "middle"))
    return _told(found), svg.canvas(620, end + 24, *parts)


EXPLORER = Explorer(
    "real-precision",
    compute,
    render,
    [
        Slider("code", CODES, start="nf4", label="precision"),
        Slider("when", (BEFORE, AFTER), start=BEFORE, label="when"),
    ],
)

"""Lesson 06, a real layer's input with its outlier columns: which of them go the floating-point
way, and what that saves.

What it replaces: a drawing of LLM.int8() in which nothing is computed.
How it works: one held-out document runs once through the shipped base; the input x (48, 256) of a
query projection and its weight are kept. Six columns of x are multiplied by a factor and the same
columns of the weight divided by it, so that the product is the same and the outliers are there. A
move asks `minilora.qlora.int8` for the columns at this threshold; the curves show the error of the
product at all thresholds, as it is and as it would be if the weights of the columns apart were not
in int8 as well (they are in bitsandbytes; in the paper they are fp16).
What it leaves out: the other layers; the lesson tabulates the loss of the whole model.
Where numerics differ: x and W are the base's own, so the picture belongs to it.
"""

from __future__ import annotations

import base64
import functools

import numpy as np

from . import layout, palette, picture, svg
from .widget import Explorer, Slider

PLANTED = (7, 50, 100, 141, 200, 230)

THRESHOLDS = (0, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)

FACTORS = (1, 4, 16, 64, 256)

TOKENS, LAYER = 48, 2

PIXELS, HIGH = 3, 4  # of one number in the picture


@functools.cache
def observed():
    """x (48, in) and W (out, in) of one query projection of the shipped base on one held-out
    document; torch tensors.
    """
    import torch

    from ...llama.model import Llama
    from ...system.files import data_folder
    from ...text.examples import read_split
    from ...text.tokenizer import Tokenizer

    base = data_folder() / "base"
    model, kept = Llama.from_pretrained(base), {}
    example = read_split(data_folder() / "tasks" / "extract", "valid")[0]
    ids = Tokenizer.from_pretrained(base).encode(example["prompt"], bos=True)[:TOKENS]
    layer = model.model.layers[LAYER].self_attn.q_proj
    hook = layer.register_forward_pre_hook(
        lambda module, inputs: kept.__setitem__("x", inputs[0][0])
    )
    with torch.no_grad():
        model(torch.tensor([ids]))
    hook.remove()
    return kept["x"].detach(), layer.weight.detach()


def planted(factor: int):
    """The same x and W with the outliers: columns of x times the factor, columns of W divided by
    it.
    """
    x, w = (t.clone() for t in observed())
    x[:, PLANTED] *= factor
    w[:, PLANTED] /= factor
    return x, w


def _errors(factor: int) -> list[tuple[float, float]]:
    """At each of THRESHOLDS the relative error of the product, and what it is if W's outlier
    columns are not rounded.
    """
    from ...qlora import int8

    x, w = planted(factor)
    codes, scale, _ = int8.quantize_rows(w)
    lost, exact = w - int8.dequantize(codes, scale), x.double() @ w.double().T
    found = []
    for threshold in THRESHOLDS:
        columns = int8.outlier_columns(x, threshold)
        y = int8.int8_matmul(x, codes, scale, threshold=threshold)
        both = y, y + x[:, columns] @ lost[:, columns].T
        found.append(tuple(float((z - exact).norm() / exact.norm()) for z in both))
    return found


@functools.cache
def table() -> dict[int, list[tuple[float, float]]]:
    """`_errors` for each factor: a second at the first move, nothing after that."""
    return {factor: _errors(factor) for factor in FACTORS}


def compute(threshold: float, factor: int) -> dict:
    """The input, the columns that reach the threshold, and the errors of the product: split, split
    with exact weights, plain.
    """
    from ...qlora.int8 import outlier_columns

    x, _ = planted(factor)
    measured = table()[factor]
    error, exact_weights = measured[THRESHOLDS.index(threshold)]
    return {
        "threshold": threshold,
        "factor": factor,
        "x": x.numpy(),
        "columns": outlier_columns(x, threshold).tolist(),
        "error": error,
        "exact weights": exact_weights,
        "plain": measured[0][0],
        "curves": np.array(measured),
    }


def _map(x: np.ndarray, columns: list[int]) -> str:
    """The input as a coloured map; above it a tick for each column that goes apart, and the number
    of as many as have room.
    """
    tokens, features = x.shape
    wide, high, above = PIXELS * features, HIGH * tokens, 34
    data = base64.b64encode(picture.png(palette.colours(x, -8.0, 8.0))).decode()
    parts = [
        f'<image x="0" y="{above}" width="{wide}" height="{high}" preserveAspectRatio="none" '
        'style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{data}"><title>{tokens} tokens by {features} '
        "features</title></image>"
    ]
    last = -100.0
    for column in columns:
        x0 = PIXELS * column
        parts.append(
            f'<rect x="{x0}" y="{above - 12}" width="{PIXELS}" height="10" '
            f'fill="{palette.hue(3)}"/>'
        )
        if x0 - last >= 28:
            parts.append(svg.text(x0 + PIXELS / 2, 16, str(column), "middle", font_size="12px"))
            last = x0
    foot = (
        f"{tokens} tokens (down) by {features} features (across), blue −8 or less, orange +8 or "
        "more; ticks: columns in floating point"
    )
    return svg.canvas(wide + 12, above + high + 22, *parts, svg.text(0, above + high + 16, foot))


def render(found: dict) -> tuple[str, str]:
    columns, features = found["columns"], found["x"].shape[1]
    named = ", ".join(map(str, columns[:8])) + (
        f" and {len(columns) - 8} more" if len(columns) > 8 else ""
    )
    if not found["threshold"]:
        apart = "Threshold 0, plain int8: no column goes apart"
    else:
        apart = (
            f"Threshold {found['threshold']}: {len(columns)} of {features} columns "
            f"({named or 'none'}) go in floating point"
        )
    label = (
        f"{apart}, {100 * len(columns) / features:.1f} %. Outliers × {found['factor']}: the "
        f"product is off by {100 * found['error']:.2f} % "
        f"({100 * found['exact weights']:.2f} % if the weights of these columns were not "
        f"rounded), in plain int8 by {100 * found['plain']:.2f} %."
    )
    places = np.log2(THRESHOLDS[1:])
    curves, plain = 100 * found["curves"][1:], 100 * found["plain"]
    mark = (np.log2(found["threshold"]), 100 * found["error"]) if found["threshold"] else None
    lines = svg.lines(
        {
            "two parts": (places, curves[:, 0]),
            "exact weights": (places, curves[:, 1]),
            "plain int8": (places, np.full(len(places), plain)),
        },
        x_label=f"threshold as a power of two, 2^x: from {THRESHOLDS[1]} to {THRESHOLDS[-1]}",
        y_label="error of the product in %",
        y_range=(0, max(float(curves.max()), plain) * 1.05),
        mark=mark,
        height=230,
    )
    return label, layout.below([_map(found["x"], columns), lines])


EXPLORER = Explorer(
    "outliers",
    compute,
    render,
    [
        Slider("threshold", THRESHOLDS, start=6, label="outlier threshold"),
        Slider("factor", FACTORS, start=64, label="outliers ×"),
    ],
)

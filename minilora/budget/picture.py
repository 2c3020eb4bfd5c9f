"""A budget as a picture: its parts stacked, the peak, and the memory of graphics cards as lines.

What it replaces: a pie chart without a scale.
How it works: `layout` says in bytes what stands where: one bar of all parts, a mark at the peak,
lines for the cards that are near. `svg` writes that as text, in pure Python; `png` draws the same
with matplotlib. No part is known by its colour alone: each has a number in the bar and in the list,
a `<title>` that a mouse or a screen reader finds, and the whole picture has a title and a
description. The colours come from the caller (`explore.palette.HUES`, after Okabe and Ito), as the
page's own do.
What it leaves out: several runs in one picture; the lessons' sliders do that.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MiniloraError
from ..system.files import atomic_write
from .catalog import GPU, cards
from .estimate import Budget
from .table import decimal, headline

WIDTH, LEFT, RIGHT, BAR_TOP, BAR_HEIGHT, ROW = 820, 20, 800, 104, 46, 22

SMALLEST_NUMBER = 14  # pixels: a narrower segment carries no number


@dataclass(frozen=True)
class Segment:
    """A part in the bar: where it starts, its bytes, its name and what it is."""

    name: str
    start: int
    bytes: int
    what: str


@dataclass(frozen=True)
class Layout:
    """What is drawn, in bytes: segments in order, the peak, the cards' lines, and the right end of
    the scale.
    """

    title: str
    total: int
    segments: tuple[Segment, ...]
    peak: int
    needed: int
    cards: tuple[GPU, ...]
    end: float

    def size(self, size: float) -> str:
        """Bytes in the picture's one unit."""
        return decimal(size, self.total)


def near(needed: int, asked: Iterable[GPU] = ()) -> list[GPU]:
    """The cards whose lines help: those asked for, the largest that is too small and the two
    smallest that suffice, one of each size.
    """
    ordered = sorted(cards().values(), key=lambda card: card.usable)
    small = [card for card in ordered if card.usable < needed][-1:]
    enough = [card for card in ordered if card.usable >= needed][:2]
    found: dict[int, GPU] = {}
    for card in [*asked, *small, *enough]:
        found.setdefault(card.memory, card)
    return sorted(found.values(), key=lambda card: card.usable)


def layout(told: Budget, asked: Iterable[GPU] = ()) -> Layout:
    """Stack the parts that stand on the card, the largest scale first needed."""
    segments, at = [], 0
    for name, part in told.parts.items():
        if part.bytes and not part.host:
            segments.append(Segment(name, at, part.bytes, part.what))
            at += part.bytes
    asked = list(asked)
    needed = told.needs(asked[0] if asked else None)
    lines = near(needed, asked) if told.setup.device == "cuda" else asked
    top = max(
        [
            told.total,
            needed,
            *(card.usable for card in lines if card.usable < 4 * max(told.total, needed)),
        ]
    )
    return Layout(
        headline(told),
        told.total,
        tuple(segments),
        told.peak_allocated,
        needed,
        tuple(lines),
        1.04 * top,
    )


class _Drawing:
    """An SVG element tree, and the place of a byte on its scale."""

    def __init__(self, plan: Layout, height: int):
        self.plan = plan
        self.root = ElementTree.Element(
            "svg",
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {WIDTH} {height}",
            width=str(WIDTH),
            height=str(height),
            role="img",
        )
        self.root.set("aria-labelledby", "title description")
        self.root.set(
            "style", "background:#fff;color:#111;font-family:system-ui,sans-serif;font-size:13px"
        )

    def x(self, size: float) -> float:
        return LEFT + (RIGHT - LEFT) * size / self.plan.end

    def add(
        self, tag: str, words: str | None = None, parent=None, **attributes
    ) -> ElementTree.Element:
        named = {
            name.replace("_", "-").rstrip("-"): f"{value:.2f}"
            if isinstance(value, float)
            else str(value)
            for name, value in attributes.items()
        }
        child = ElementTree.SubElement(self.root if parent is None else parent, tag, named)
        child.text = words
        return child

    def text(self, x: float, y: float, words: str, anchor: str = "start", **attributes) -> None:
        self.add(
            "text",
            words,
            x=float(x),
            y=float(y),
            text_anchor=anchor,
            fill=attributes.pop("fill", "currentColor"),
            **attributes,
        )


def _segments(drawing: _Drawing, hues: Sequence[str]) -> None:
    for number, segment in enumerate(drawing.plan.segments, 1):
        left, right = drawing.x(segment.start), drawing.x(segment.start + segment.bytes)
        box = drawing.add(
            "rect",
            x=left,
            y=BAR_TOP,
            width=max(right - left, 0.5),
            height=BAR_HEIGHT,
            fill=hues[(number - 1) % len(hues)],
            stroke="#fff",
            stroke_width=0.5,
        )
        drawing.add(
            "title",
            f"{segment.name}: {drawing.plan.size(segment.bytes)}, {segment.what}",
            parent=box,
        )


def _numbers(drawing: _Drawing) -> None:
    """Above the cards' lines, so that none crosses a number out."""
    for number, segment in enumerate(drawing.plan.segments, 1):
        left, right = drawing.x(segment.start), drawing.x(segment.start + segment.bytes)
        if right - left >= SMALLEST_NUMBER:
            middle = (left + right) / 2
            drawing.add("circle", cx=middle, cy=float(BAR_TOP + BAR_HEIGHT / 2), r=9, fill="#fff")
            drawing.text(
                middle,
                BAR_TOP + BAR_HEIGHT / 2 + 4.5,
                str(number),
                "middle",
                fill="#111",
                font_size="12px",
            )


def _lines(drawing: _Drawing) -> None:
    """The peak below the bar, the cards above it, each on a row of its own if it would run into its
    neighbour.
    """
    plan, rows = drawing.plan, [float("-inf")] * 4
    for card in plan.cards:
        if card.usable > plan.end:
            continue
        x, label = drawing.x(card.usable), f"{card.name}: {decimal(card.usable)} usable"
        left = min(max(x - 3.6 * len(label), LEFT), RIGHT - 7.2 * len(label))
        row = next((i for i, end in enumerate(rows) if left > end), 0)
        rows[row] = left + 7.2 * len(label) + 8
        line = drawing.add(
            "line",
            x1=x,
            x2=x,
            y1=float(BAR_TOP - 6 - 15 * row),
            y2=float(BAR_TOP + BAR_HEIGHT + 6),
            stroke="#111",
            stroke_width=1.5,
            stroke_dasharray="6 3",
        )
        drawing.add("title", label, parent=line)
        drawing.text(left, BAR_TOP - 10 - 15 * row, label, font_size="12px")
    x, below = drawing.x(plan.peak), BAR_TOP + BAR_HEIGHT
    words = f"peak of a step {plan.size(plan.peak)}" + (
        f"; a card needs {plan.size(plan.needed)}" if plan.needed != plan.peak else ""
    )
    drawing.add("path", d=f"M{x:.2f} {below}l-6 12h12z", fill="#111")
    drawing.text(
        min(max(x - 3.6 * len(words), LEFT), RIGHT - 7.2 * len(words)),
        below + 28,
        words,
        font_weight="bold",
    )


def svg(told: Budget, hues: Sequence[str], asked: Iterable[GPU] = ()) -> str:
    """The picture as SVG text. hues: colours as #rrggbb; asked: cards whose lines must be there."""
    plan = layout(told, asked)
    first_row = BAR_TOP + BAR_HEIGHT + 58
    drawing = _Drawing(plan, first_row + ROW * len(plan.segments))
    drawing.add("title", "Memory of a run, part by part", id="title")
    parts = "; ".join(f"{segment.name} {plan.size(segment.bytes)}" for segment in plan.segments)
    drawing.add("desc", f"{plan.title}. {parts}. Peak {plan.size(plan.peak)}.", id="description")
    main, _, rest = plan.title.partition(": ")
    drawing.text(LEFT, 18, main, font_weight="bold")
    drawing.text(LEFT, 36, rest, font_size="12px")
    _segments(drawing, hues)
    _lines(drawing)
    _numbers(drawing)
    for number, segment in enumerate(plan.segments, 1):
        y = first_row + ROW * (number - 1)
        drawing.add(
            "rect", x=LEFT, y=y - 12, width=16, height=16, fill=hues[(number - 1) % len(hues)]
        )
        drawing.text(LEFT + 24, y, f"{number}  {segment.name}")
        drawing.text(LEFT + 290, y, plan.size(segment.bytes), "end")
        drawing.text(LEFT + 306, y, segment.what, font_size="12px")
    return ElementTree.tostring(drawing.root, encoding="unicode") + "\n"


def _png(told: Budget, hues: Sequence[str], asked: Iterable[GPU], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plan = layout(told, asked)
    figure = Figure(figsize=(10, 3))
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    for number, segment in enumerate(plan.segments, 1):
        label = f"{number}  {segment.name}: {plan.size(segment.bytes)}"
        axes.barh(
            0,
            segment.bytes / 1e9,
            left=segment.start / 1e9,
            height=0.6,
            color=hues[(number - 1) % len(hues)],
            edgecolor="white",
            label=label,
        )
        if segment.bytes > plan.end / 50:
            axes.text(
                (segment.start + segment.bytes / 2) / 1e9,
                0,
                str(number),
                ha="center",
                va="center",
                bbox={"boxstyle": "circle", "fc": "white", "lw": 0},
            )
    for card in plan.cards:
        if card.usable <= plan.end:
            axes.axvline(card.usable / 1e9, color="black", linestyle="--", linewidth=1)
            axes.text(
                card.usable / 1e9,
                0.96,
                card.name,
                rotation=90,
                va="top",
                ha="center",
                fontsize=8,
                bbox={"fc": "white", "lw": 0, "pad": 1},
            )
    axes.plot(
        [plan.peak / 1e9],
        [-0.38],
        "^",
        color="black",
        markersize=9,
        label=f"peak of a step: {plan.size(plan.peak)}",
    )
    axes.set(xlim=(0, plan.end / 1e9), ylim=(-0.5, 1.0), yticks=[], xlabel="GB (10⁹ bytes)")
    axes.set_title(plan.title, fontsize=8, loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.25), fontsize=8, ncols=2, frameon=False)
    figure.savefig(path, format="png", dpi=120, bbox_inches="tight")


def write(
    told: Budget, path: str | os.PathLike, hues: Sequence[str], asked: Iterable[GPU] = ()
) -> None:
    """Write FILE.svg or FILE.png. Raises MiniloraError for another ending, or where nothing can be
    written.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".svg", ".png"):
        raise MiniloraError(
            f"--picture {path} ends in {kind or 'nothing'!r}; name a .svg or a .png file"
        )
    with atomic_write(path) as temporary:
        if kind == ".svg":
            temporary.write_text(svg(told, hues, asked), encoding="utf-8")
        else:
            _png(told, hues, asked, temporary)

"""From two pure functions to a live picture: sliders, one HTML widget, one observer.

What it replaces: `ipywidgets.interact` with an `Output` area, which redraws by clearing.
How it works: `Explorer.html(**state)` computes and renders one state; `show()` builds one
ipywidgets slider per `Slider` and sets the HTML widget's value at each move. Whole numbers get an
IntSlider, evenly spaced decimals a FloatSlider (both can be typed into), anything else a
SelectionSlider. `still()` shows the default state for readers without a kernel, as text and as SVG.
What it leaves out: all that ipywidgets 7.7 (Colab) and 8 do not share; debouncing, since a move is
cheap.
Where numerics differ: a FloatSlider's value is snapped to the nearest position before it reaches
`compute`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...errors import MiniloraError


class Slider:
    """One control: `name` (the argument of compute, and data-NAME in the page), its positions, the
    start, the label beside it.
    """

    def __init__(self, name: str, values: Sequence, start: Any, label: str = ""):
        self.name, self.values, self.start, self.label = name, tuple(values), start, label or name
        if start not in self.values:
            raise ValueError(f"slider {name}: start {start!r} is not among its positions")

    @property
    def step(self) -> float | None:
        """The distance between positions if they are evenly spaced numbers, else None."""
        if len(self.values) < 2 or any(
            isinstance(v, bool) or not isinstance(v, (int, float)) for v in self.values
        ):
            return None
        steps = [b - a for a, b in zip(self.values, self.values[1:])]
        even = steps[0] > 0 and all(
            abs(s - steps[0]) <= 1e-9 * abs(steps[0]) + 1e-12 for s in steps
        )
        return steps[0] if even else None

    def snap(self, value: Any) -> Any:
        """The position nearest to a widget's value (floats drift by rounding)."""
        return min(self.values, key=lambda v: abs(v - value)) if self.step else value

    def widget(self) -> Any:
        """The ipywidgets control. Raises MiniloraError where ipywidgets is missing."""
        try:
            import ipywidgets
        except ImportError as error:
            raise MiniloraError(
                "sliders need ipywidgets; install it with `pip install ipywidgets`"
            ) from error
        common = {
            "value": self.start,
            "description": self.label,
            "style": {"description_width": "initial"},
            "layout": {"width": "460px"},
        }
        if not self.step:
            options = [(str(value), value) for value in self.values]
            return ipywidgets.SelectionSlider(options=options, **common)
        kind = (
            ipywidgets.IntSlider
            if all(isinstance(v, int) for v in self.values)
            else ipywidgets.FloatSlider
        )
        extra = (
            {} if kind is ipywidgets.IntSlider else {"readout_format": f".{_decimals(self.step)}f"}
        )
        return kind(min=self.values[0], max=self.values[-1], step=self.step, **extra, **common)


def _decimals(step: float) -> int:
    """How many decimals a readout needs to tell two positions apart."""
    return next((n for n in range(8) if abs(step * 10**n - round(step * 10**n)) < 1e-6), 8)


def view(state: dict, picture: str, label: str) -> str:
    """Wrap a picture: `data-*` with the state, role="img", an aria-label, and the label as a line
    of text below.
    """
    data = "".join(
        f' data-{_dashed(name)}="{html.escape(str(value))}"' for name, value in state.items()
    )
    said = html.escape(label)
    return (
        f'<div class="minilora-view" role="img" aria-label="{said}"{data}>{picture}'
        f'<div style="line-height:1.4;margin:4px 0 8px">{said}</div></div>'
    )


def _dashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class Still:
    """The default state for a reader without a kernel: its sentence as text, and the picture where
    it is a single SVG.
    """

    def __init__(self, label: str, picture: str):
        self.label, self.picture = label, picture

    def __repr__(self) -> str:
        return self.label

    def _repr_svg_(self) -> str | None:
        """The SVG on its own white ground, since an image cannot inherit the page's text colour."""
        if not self.picture.startswith("<svg") or self.picture.count("<svg") != 1:
            return None
        return re.sub(r'style="', 'style="background:#fff;color:#111;', self.picture, count=1)


class Explorer:
    """A topic's live picture: `compute(**state)` → anything, `render(that)` → (sentence, html).
    Both pure.
    """

    def __init__(self, name: str, compute: Callable, render: Callable, sliders: Sequence[Slider]):
        self.name, self.compute, self.render, self.sliders = name, compute, render, tuple(sliders)

    @property
    def start(self) -> dict:
        """The default state."""
        return {slider.name: slider.start for slider in self.sliders}

    def states(self) -> Iterator[dict]:
        """Each position of each slider, the others at their start; then all at their lowest and all
        at their highest.
        """
        for slider in self.sliders:
            for value in slider.values:
                yield {**self.start, slider.name: value}
        yield {slider.name: slider.values[0] for slider in self.sliders}
        yield {slider.name: slider.values[-1] for slider in self.sliders}

    def html(self, **state: Any) -> str:
        """The view at a state; names left out stand at their start."""
        full = {**self.start, **state}
        label, picture = self.render(self.compute(**full))
        return view(full, picture, label)

    def still(self, **state: Any) -> Still:
        """One state as text and picture, without widgets."""
        return Still(*self.render(self.compute(**{**self.start, **state})))

    def show(self) -> Any:
        """The sliders above the picture, as one widget for the last line of a cell."""
        controls = [slider.widget() for slider in self.sliders]
        import ipywidgets

        picture = ipywidgets.HTML(value=self.html())

        def draw(change: dict) -> None:
            picture.value = self.html(
                **{s.name: s.snap(c.value) for s, c in zip(self.sliders, controls)}
            )

        for control in controls:
            control.observe(draw, "value")
        return ipywidgets.VBox([*controls, picture])

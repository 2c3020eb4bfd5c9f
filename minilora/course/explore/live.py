"""The loss while it falls: a picture that grows with the run.

What it replaces: a progress bar beside a plot that is cleared and drawn anew, which flickers and
stays in the saved page.
How it works: a `LossPicture` is handed to `train.fit` as `on_step`. It keeps the losses, and sets
the value of one HTML widget to a new SVG a few times a second. `still()` is the finished picture
for readers without a kernel.
What it leaves out: validation losses, which `fit` returns with its history.
"""

from __future__ import annotations

import time
from typing import Any

from ...errors import MiniloraError
from . import svg
from .widget import Still, view

BETWEEN = 0.25  # seconds


class LossPicture:
    """`on_step` of `train.fit`: the losses so far, drawn over the steps of the whole run."""

    def __init__(self, steps: int):
        self.steps, self.losses = steps, {}
        self.picture: Any = None  # the HTML widget, once shown
        self._drawn = 0.0

    def __call__(self, step: int, loss: float) -> None:
        self.losses[step] = loss
        if self.picture is not None and (
            step == self.steps or time.monotonic() - self._drawn >= BETWEEN
        ):
            self.picture.value = self.html()
            self._drawn = time.monotonic()

    def remember(self, losses: list[float]) -> None:
        """Take over the losses of steps 1, 2, …, as a run that goes on brings them along."""
        self.losses.update(enumerate(losses, start=1))

    def _drawing(self) -> tuple[str, str]:
        done, losses = list(self.losses), list(self.losses.values())
        if not done:
            return f"step 0 of {self.steps}", svg.lines(
                {},
                x_label="step",
                y_label="loss (nats per token)",
                x_range=(1, max(2, self.steps)),
                y_range=(0, 1),
            )
        told = (
            f"step {done[-1]} of {self.steps}: loss {losses[-1]:.3f}, {losses[0]:.3f} at step "
            f"{done[0]}"
        )
        drawn = svg.lines(
            {"loss": (done, losses)},
            x_label="step",
            y_label="loss (nats per token)",
            x_range=(1, max(2, self.steps)),
            y_range=(0, max(losses)),
        )
        return told, drawn

    def html(self) -> str:
        """The picture as it stands."""
        told, drawn = self._drawing()
        return view({"step": max(self.losses, default=0)}, drawn, told)

    def still(self) -> Still:
        """The picture and its sentence, without widgets."""
        return Still(*self._drawing())

    def show(self) -> Any:
        """The widget, to be displayed before the run begins. Raises MiniloraError where ipywidgets
        is missing.
        """
        try:
            import ipywidgets
        except ImportError as error:
            raise MiniloraError(
                "the live picture needs ipywidgets; install it with `pip install ipywidgets`, "
                "or look at still()"
            ) from error
        self.picture = ipywidgets.HTML(value=self.html())
        return self.picture

"""Every position of every slider renders, without a browser; and a slider's cell needs only the
setup cell.
"""

import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import statistics
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
import pytest
from course import code_cells, number, read, tagged

from minilora.course import explore
from minilora.course.explore.widget import Explorer
from tools.project import lessons

matplotlib.use("Agg")
KIT = {"palette", "picture", "svg", "widget"}


def _explorers() -> dict[str, Explorer]:
    """All explorers of all topic modules, by module and name."""
    found = {}
    for module in pkgutil.iter_modules(explore.__path__):
        if module.name not in KIT:
            for name, value in vars(
                importlib.import_module(f"minilora.course.explore.{module.name}")
            ).items():
                if isinstance(value, Explorer):
                    found[f"{module.name}.{name}"] = value
    return found


ALL = _explorers()


@pytest.mark.parametrize("explorer", ALL.values(), ids=ALL)
def test_every_position_renders(explorer):
    for state in explorer.states():
        root = ElementTree.fromstring(explorer.html(**state).replace("&nbsp;", "&#160;"))
        assert root.get("role") == "img" and root.get("aria-label")
        assert {f"data-{name.replace('_', '-')}" for name in state} <= set(root.attrib)
        for image in root.iter("img"):
            assert image.get("alt")
        drawn = "".join(root.itertext())
        assert not re.search(r"\bnan\b|\binf\b", drawn), f"{state}: {drawn[:200]}"


@pytest.mark.parametrize("explorer", ALL.values(), ids=ALL)
def test_every_slider_changes_the_picture(explorer):
    for slider in explorer.sliders:
        pictures = {
            re.sub(r'data-[a-z-]+="[^"]*"', "", explorer.html(**{slider.name: value}))
            for value in slider.values
        }
        assert len(pictures) > 1, f"{slider.name} changes nothing but its own state"


@pytest.mark.parametrize("explorer", ALL.values(), ids=ALL)
def test_the_same_state_gives_the_same_picture(explorer):
    assert explorer.html() == explorer.html()
    assert repr(explorer.still()).strip()


@pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)
def test_a_lesson_has_a_slider_and_a_still_before_it(path):
    sliders = tagged(path, "slider")
    assert sliders or number(path) == "15"
    for cell in sliders:
        above = [
            c for c in read(path).cells[: read(path).cells.index(cell)] if c.cell_type == "code"
        ]
        assert ".show()" in cell.source and ".still(" in above[-1].source + cell.source, (
            f"{cell.id}: a still() stands beside each slider"
        )


@pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)
def test_a_slider_cell_needs_only_the_setup_cell(path):
    for cell in tagged(path, "slider"):
        names: dict = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code_cells(path)[0].source, names)
            exec(cell.source, names)


def test_only_what_ipywidgets_7_and_8_share():
    """No interact, Output, Stack, TagsInput: Colab still has 7.7.1; and no matplotlib in the slider
    path.
    """
    kit = [
        Path(explore.__path__[0]) / f"{m.name}.py" for m in pkgutil.iter_modules(explore.__path__)
    ]
    for name, text in [
        *((p.name, p.read_text(encoding="utf-8")) for p in kit),
        *((p.name, c.source) for p in lessons() for c in tagged(p, "slider")),
    ]:
        code = re.sub(r'""".*?"""', "", text, flags=re.S)
        for forbidden in (
            "interact(",
            "Output(",
            "clear_output",
            "Stack(",
            "TagsInput",
            "titles=",
            "matplotlib",
            "plt.",
        ):
            assert forbidden not in code, f"{name} uses {forbidden}"


@pytest.mark.skipif(
    "MINILORA_RENDER_TIMES" not in os.environ,
    reason="measured only where MINILORA_RENDER_TIMES names the file to write: `make bench`",
)
def test_times_per_move_in_the_kernel():
    """Compute and render, median and worst over all positions, for the benchmark file; the
    browser's share is measured elsewhere.
    """
    told = {}
    for name, explorer in ALL.items():
        explorer.html()
        taken = []
        for state in explorer.states():
            start = time.perf_counter()
            explorer.html(**state)
            taken.append(1000 * (time.perf_counter() - start))
        told[name] = {
            "median_ms": round(statistics.median(taken), 2),
            "worst_ms": round(max(taken), 2),
            "positions": len(taken),
        }
    Path(os.environ["MINILORA_RENDER_TIMES"]).write_text(
        json.dumps(told, indent=1, sort_keys=True) + "\n"
    )

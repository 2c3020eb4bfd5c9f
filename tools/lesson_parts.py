"""The cells that are written for the lessons: badges, first cell, map of the course, way onward.

How it works: a cell tagged `badges`, `setup`, `map` or `next` is filled from here, from the titles
in course_table.py, from the notebooks that there are and from the one repository address in
pyproject.toml. `python -m tools.run_notebooks --parts` rewrites them; the tests compare. While the
repository has no address, a line of text stands in place of the buttons, and the first cell says so
where it would fetch the course.
"""

from __future__ import annotations

import sys

from . import project
from .buttons import NO_BUTTONS as NO_BUTTONS
from .buttons import all_three, colab
from .course_table import TITLES

FIRST_CELL = project.ROOT / "tools" / "first_cell.py"


def setup(archive: str | None = None) -> str:
    """The source of the first code cell, which fetches from `archive`: the address of a zip."""
    if archive is None:
        archive = f"{project.repository()}/archive/refs/tags/{project.tag()}.zip"
        archive = archive if project.published() else ""
    source = FIRST_CELL.read_text(encoding="utf-8").rstrip("\n")
    for empty, filled in {
        'ARCHIVE = ""': f'ARCHIVE = "{archive}"',
        'FOLDER = Path("")': f'FOLDER = Path("minilora-{project.tag().removeprefix("v")}")',
    }.items():
        assert source.count(empty) == 1
        source = source.replace(empty, filled)
    return source


def badges(name: str) -> str:
    """The markdown of the badges cell of notebooks/`name`."""
    return all_three(name)


def course() -> list[tuple[str, str, str, str]]:
    """(number, title, what one does in it, name of the notebook or "" if it is to come) of each
    lesson.
    """
    there = {path.stem[3:]: path.name for path in project.lessons()}
    return [
        (f"{number:02d}", title, told, there.get(stem, ""))
        for number, (stem, (title, told)) in enumerate(TITLES.items())
    ]


def link(words: str, name: str) -> str:
    """A link to a lesson beside this one. Colab opens no neighbours, so it gets an address."""
    beside = f" ([on Colab]({colab(name)}))" if project.published() else ""
    return f"[{words}]({name}){beside}"


def course_map(name: str = "") -> str:
    """All lessons as a table, those that are there as links."""
    rows = [
        f"| {number} | {link(title, file) if file else f'{title} (to come)'} | {told} |"
        for number, title, told, file in course()
    ]
    return "\n".join(["| no. | lesson | what you do |", "| --- | --- | --- |", *rows])


def onward(name: str) -> str:
    """The last cell of notebooks/`name`: the next lesson that is there, what is still to come
    before it, and the way back to the start.
    """
    known = course()
    here = next(i for i, lesson in enumerate(known) if lesson[3] == name)
    after = next((i for i in range(here + 1, len(known)) if known[i][3]), len(known))
    skipped = [f"{number} ({title})" for number, title, *_ in known[here + 1 : after]]
    told, links = "", []
    if len(skipped) == 1:
        told = f"Lesson {skipped[0]} is to come. "
    elif skipped:
        told = f"Lessons {', '.join(skipped[:-1])} and {skipped[-1]} are to come. "
    elif after == len(known):
        told = "This is the last lesson. "
    if after < len(known):
        links.append(link(f"Next: {known[after][0]} · {known[after][1]}", known[after][3]))
    if here:
        links.append(link("Back to the start", known[0][3]))
    return told + " · ".join(links)


PARTS = {
    "badges": badges,
    "setup": lambda name: setup(),
    "map": course_map,
    "next": onward,
}


def tags(cell: dict) -> list[str]:
    """The tags of a notebook cell."""
    return list(cell["metadata"].get("tags", []))


def refresh(notebook: dict, name: str) -> None:
    """Put the parts as they are now into `notebook`, in place. Says on stderr if it has no cell for
    one that every lesson has.
    """
    for wanted, written in PARTS.items():
        found = [cell for cell in notebook["cells"] if wanted in tags(cell)]
        for cell in found:
            cell["source"] = written(name)
        if not found and wanted != "map":
            print(f"{name}: no cell is tagged {wanted}", file=sys.stderr)

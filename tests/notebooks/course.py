"""What the course demands of its lessons, as data for the tests."""

import functools

import nbformat

from minilora.course.audit.claims import CLAIMS as TOLD
from tools.lesson_parts import tags

# Exercises that a lesson must have at least.
EXERCISES = {
    "00": 1,
    **{f"{n:02d}": 4 for n in range(1, 15)},
    **{n: 5 for n in ("05", "07", "08", "10", "12", "13")},
    "15": 2,
}

# Every claim of the course and the lessons that run it.
CLAIMS = {claim.id: " ".join(claim.lessons) for claim in TOLD.values()}
# (claim, lesson) pairs whose lesson is there but does not run the claim yet. A pair that it does
# run must be taken off this list.
LATER: set[tuple[str, str]] = set()
VERDICTS = ("does not hold", "holds if", "holds", "rounds")


@functools.cache
def read(path):
    """A notebook, read once per test run; do not change it."""
    return nbformat.read(path, as_version=4)


def number(path) -> str:
    """The two digits of a lesson."""
    return path.name[:2]


def code_cells(path) -> list:
    """The code cells that are not empty."""
    return [cell for cell in read(path).cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(path, tag: str) -> list:
    """The cells of a lesson with a tag, in order."""
    return [cell for cell in read(path).cells if tag in tags(cell)]


def output_text(cell) -> str:
    """All that a code cell shows, as text: streams, plain text, HTML and SVG."""
    parts = []
    for output in cell.get("outputs", []):
        parts.append(output.get("text", ""))
        parts.extend(
            value
            for kind, value in output.get("data", {}).items()
            if kind.startswith("text/") or kind.endswith("svg+xml")
        )
    return "\n".join(parts)

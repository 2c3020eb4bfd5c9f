"""What the course demands of its lessons, as data for the tests."""

import functools

import nbformat

from tools.lesson_parts import tags

# Exercises that a lesson must have at least.
EXERCISES = {"00": 1, **{f"{n:02d}": 4 for n in range(1, 14)}, **{n: 5 for n in ("05", "07", "08", "10", "12")}, "14": 2}

# Every claim of the course and the lessons that run it.
CLAIMS = {
    "C01": "03", "C02": "03", "C03": "01", "C04": "01", "C05": "02", "C06": "02", "C07": "03", "C08": "03", "C09": "03", "C10": "03",
    "C11": "03 14", "C12": "03 14", "C13": "03", "C14": "03 14", "C15": "03 10", "C16": "03 12", "C17": "04", "C18": "04 05", "C19": "04 05",
    "C20": "05 11", "C21": "06", "C22": "06 13", "C23": "07", "C24": "07", "C25": "07 08", "C26": "07 08", "C27": "08", "C28": "08",
    "C29": "08", "C30": "08 14", "C31": "09 14", "C32": "14", "C33": "08", "C34": "08 14", "C35": "08", "C36": "09", "C37": "09",
    "C38": "10 13 14", "C39": "10 14", "C40": "10", "C41": "13", "C42": "11", "C43": "12", "C44": "12", "C45": "12", "C46": "12",
    "C47": "13", "C48": "08",
}
# (claim, lesson) pairs whose lesson is there but does not run the claim yet. A pair that it does run must be taken off this list.
LATER = {(claim, "08") for claim in ("C25", "C26", "C30", "C34", "C48")}
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
        parts.extend(value for kind, value in output.get("data", {}).items() if kind.startswith("text/") or kind.endswith("svg+xml"))
    return "\n".join(parts)

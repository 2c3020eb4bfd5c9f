"""A table that reads well in a terminal, in a notebook and on a README page.

What it replaces: pandas, for a few rows that are shown and never computed with.
How it works: cells are text already. `str(table)` pads the columns; numbers, which are cells that
start with a digit, a sign or ≈, stand to the right. A notebook shows `_repr_html_`, where every
cell is escaped; `markdown()` is for README files.
What it leaves out: sorting, merging of cells, colours.
Where numerics differ: nowhere; who makes the table rounds.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

NUMERIC = re.compile(
    r"[-+−±≈<>≤≥]?\s?[\d.,]+(?:[eE][-+]?\d+)?(?:\s?(?:[a-zA-Zµ%°×·/]+|[kMGTP]i?B))?"
)


def width(text: str) -> int:
    """Columns that a text takes in a terminal: wide signs two, marks that stand on the letter
    before them none.
    """
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


class Table:
    """Rows of text under column titles; `note` stands below. Raises ValueError if a row has another
    number of cells.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""):
        self.columns, self.rows, self.note = (
            [str(c) for c in columns],
            [[str(cell) for cell in row] for row in rows],
            note,
        )
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(row)} cells under {len(self.columns)} columns: {row}")
        cells = [
            [row[i] for row in self.rows if row[i] not in ("", "–")]
            for i in range(len(self.columns))
        ]
        self.right = [
            bool(column) and all(NUMERIC.fullmatch(cell) for cell in column) for column in cells
        ]

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(width(line[i]) for line in lines) for i in range(len(self.columns))]
        text = []
        for line in lines:
            padded = (
                " " * (w - width(c)) + c if right else c + " " * (w - width(c))
                for c, w, right in zip(line, widths, self.right)
            )
            text.append("  ".join(padded).rstrip())
        return "\n".join([*text, *([self.note] if self.note else [])])

    __repr__ = __str__

    def _line(self, cells: Sequence[str], tag: str) -> str:
        """One row of HTML; what is short stays on one line."""
        made = []
        for cell, right in zip(cells, self.right):
            style = f"text-align:{'right' if right else 'left'}" + (
                ";white-space:nowrap" if len(cell) <= 20 else ""
            )
            made.append(f'<{tag} style="{style}">{html.escape(cell)}</{tag}>')
        return "<tr>" + "".join(made) + "</tr>"

    def _repr_html_(self) -> str:
        body = "".join(self._line(row, "td") for row in self.rows)
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<table><thead>{self._line(self.columns, 'th')}</thead><tbody>{body}</tbody></table>{note}"

    def markdown(self) -> str:
        """The table as GitHub reads it, its note as a paragraph below."""
        lines = [self.columns, ["---:" if right else "---" for right in self.right], *self.rows]
        text = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        ]
        return "\n".join([*text, *(["", self.note] if self.note else [])])

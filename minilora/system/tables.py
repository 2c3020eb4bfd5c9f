"""A table that reads well in a terminal, in a notebook and on a README page.

What it replaces: pandas, for a few rows that are shown and never computed with.
How it works: cells are text already. `str(table)` is lined up by tabulate, which knows letters that
are two columns wide (wcwidth); numbers, which are cells that start with a digit, a sign or ≈, stand
to the right. A notebook shows `_repr_html_`, where every cell is escaped; `markdown()` is for the
pages of the repository. Both are written here: tabulate's HTML breaks short cells over lines, and
its markdown pads every cell, so that one longer name would change each line of a committed table,
and leaves a | in a cell as it is.
What it leaves out: sorting, merging of cells, colours, spaces before the text of a cell.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from tabulate import tabulate

NUMERIC = re.compile(
    r"[-+−±≈<>≤≥]?\s?[\d.,]+(?:[eE][-+]?\d+)?(?:\s?(?:[a-zA-Zµ%°×·/]+|[kMGTP]i?B))?"
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
        # the titles as a first row: as headers they would get two more columns each
        text = tabulate(
            [self.columns, *self.rows],
            tablefmt="plain",
            colalign=["right" if right else "left" for right in self.right],
            disable_numparse=True,
        )
        return "\n".join([text, *([self.note] if self.note else [])])

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
        head = self._line(self.columns, "th")
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{note}"

    def markdown(self) -> str:
        """The table as GitHub reads it, its note as a paragraph below."""
        lines = [self.columns, ["---:" if right else "---" for right in self.right], *self.rows]
        text = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        ]
        return "\n".join([*text, *(["", self.note] if self.note else [])])

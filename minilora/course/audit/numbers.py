"""A number as a paper prints it, beside one that is computed, and the verdict on it.

What it replaces: "about right", said by eye.
How it works: the printed text says how exact it wants to be: its last digit is the unit. Zeros at
the end of a whole number are no digits beyond the second one: 780 is right to ten, 10,000 to a
thousand. Then a printed number

    reproduces  if the computed one, rounded to that unit, is the printed one; a tie may go either
                way
    rounds      if it is off by at most one unit and 5 %, as a number that was cut instead of
                rounded is, or by at most 1 %
    does not    otherwise

`Book` keeps what has been audited, each number once, and shows it as a table or as points for a
picture.
What it leaves out: uncertainty of the inputs. A paper that rounds its inputs may compute right and
still print another last digit; that is what `rounds` is for, and the reason given beside it.
Where numerics differ: nowhere; the comparison is made in decimal fractions, so that 0.285 is no
0.28499….
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from ...errors import MiniloraError
from ...system.tables import Table

PRINTED = re.compile(r"([-−]?)(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:[eE]([-+]?\d+))?")

SIGNS = {"reproduces": "✓", "rounds": "≈", "does not": "✗"}


def read_printed(text: str) -> tuple[Decimal, Decimal]:
    """(value, unit of the last digit) of a number as it is printed: "31.4", "175,255.8",
    "3.14E+23".

    Raises MiniloraError for what is no number.
    """
    found = PRINTED.fullmatch(text.strip())
    if not found or not (found[2] or found[3]):
        raise MiniloraError(
            f"{text!r} is no printed number; write it as the paper does, such as 31.4 or "
            "10,000 or 3.14E+23"
        )
    whole, part, power = (
        (found[2] or "0").replace(",", ""),
        (found[3] or "").lstrip("."),
        int(found[4] or 0),
    )
    value = Decimal(f"{whole}.{part or 0}E{power}") * (-1 if found[1] else 1)
    if part or power:
        return value, Decimal(1).scaleb(power - len(part))
    zeros = len(whole) - len(whole.rstrip("0"))
    return value, Decimal(1).scaleb(max(0, min(zeros, len(whole) - 2)))


def verdict(printed: str, computed: float) -> str:
    """ "reproduces", "rounds" or "does not"; see the top of this file."""
    value, unit = read_printed(printed)
    exact = Decimal(repr(float(computed)))
    if not exact.is_finite():
        return "does not"
    gap, size = abs(exact - value), abs(value)
    slack = abs(exact) * Decimal("1e-12")  # what float64 loses on the way to a tie
    if gap <= unit / 2 + slack:
        return "reproduces"
    if (gap <= unit and gap <= size / 20) or gap <= size / 100:
        return "rounds"
    return "does not"


@dataclass(frozen=True)
class Finding:
    """One audited number: where it stands (source, place), what it is, how it is printed, what was
    computed, and why they differ.
    """

    source: str
    place: str
    what: str
    printed: str
    unit: str
    computed: float
    why: str = ""

    @property
    def value(self) -> float:
        return float(read_printed(self.printed)[0])

    @property
    def verdict(self) -> str:
        return verdict(self.printed, self.computed)

    @property
    def off(self) -> float:
        """Computed over printed, less one."""
        return self.computed / self.value - 1

    def cells(self) -> list[str]:
        """A row of the table; what reproduces needs no reason."""
        part = re.search(r"\.(\d+)$", self.printed)
        computed = shown(self.computed, len(part[1]) if part else 0)
        off = (
            f"{100 * self.off:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0").replace("-", "−")
        )
        told = self.why if self.verdict != "reproduces" else ""
        return [
            self.place,
            self.what,
            f"{self.printed} {self.unit}".strip(),
            f"{computed} {self.unit}".strip(),
            f"{off} %",
            f"{SIGNS[self.verdict]} {self.verdict}",
            told,
        ]


def shown(value: float, decimals: int = 0) -> str:
    """Four digits, and at least so many decimals: 31.41, 2,219, 3.143E+23."""
    if value == 0 or not 1e-4 < abs(value) < 1e7:
        return f"{value:.3E}"
    digits = max(0, 3 - _exponent(value), decimals)
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text and not decimals else text


def _exponent(value: float) -> int:
    return int(f"{value:e}".split("e")[1])


class Book:
    """All that has been audited, in order, each number once."""

    columns = ("where", "number", "printed", "computed", "off", "verdict", "why")

    def __init__(self):
        self.findings: list[Finding] = []

    def __len__(self) -> int:
        return len(self.findings)

    def add(
        self,
        source: str,
        place: str,
        what: str,
        printed: str,
        unit: str,
        computed: float,
        why: str = "",
    ) -> Finding:
        """Audit one number. Run again, a cell replaces its numbers. Raises MiniloraError if what
        differs is given no reason.
        """
        finding = Finding(source, place, what, printed, unit, float(computed), why)
        if finding.verdict != "reproduces" and not why:
            raise MiniloraError(
                f"{source}, {what}: printed {printed}, computed {computed:.6g}, verdict "
                f"{finding.verdict}; say why"
            )
        key = (source, place, what)
        places = [(f.source, f.place, f.what) for f in self.findings]
        if key in places:
            self.findings[places.index(key)] = finding
        else:
            self.findings.append(finding)
        return finding

    def audit(self, source: str, rows: Iterable[tuple]) -> Table:
        """Add rows (place, number, printed, unit, computed[, why]) of one source; returns its
        table.
        """
        for row in rows:
            self.add(source, *row)
        return self.table(source)

    def of(self, source: str) -> list[Finding]:
        """The findings of one source. Raises MiniloraError, naming all, if there is none."""
        found = [finding for finding in self.findings if finding.source == source]
        if not found:
            raise MiniloraError(
                f"nothing of {source!r} was audited; there is "
                f"{', '.join(dict.fromkeys(f.source for f in self.findings)) or 'nothing'}"
            )
        return found

    def table(self, source: str) -> Table:
        """The numbers of one source with their verdicts."""
        return Table(
            self.columns,
            [finding.cells() for finding in self.of(source)],
            self._tally(self.of(source), source),
        )

    def tally(self) -> Table:
        """How many numbers of each source reproduce."""
        sources = list(dict.fromkeys(finding.source for finding in self.findings))
        counts = [
            [sum(f.verdict == v for f in self.of(source)) for v in SIGNS] for source in sources
        ]
        rows = [
            [source, *map(str, count), str(sum(count))] for source, count in zip(sources, counts)
        ]
        total = [sum(column) for column in zip(*counts)] if counts else [0] * len(SIGNS)
        rows.append(["together", *map(str, total), str(sum(total))])
        return Table(
            ["source", *(f"{sign} {name}" for name, sign in SIGNS.items()), "numbers"], rows
        )

    @staticmethod
    def _tally(findings: list[Finding], source: str) -> str:
        counts = {name: sum(f.verdict == name for f in findings) for name in SIGNS}
        return f"{source}: of {len(findings)} numbers " + ", ".join(
            f"{count} {SIGNS[name]} {name}" for name, count in counts.items() if count
        )

"""The numbers that a setting may have: looked at where they are typed, before anything is done.

What it replaces: `type=int` and what comes of a number with thirty digits an hour later.
How it works: a Range says in one line what is wrong with a value, and which values can be. Its ends
are wide: what lies beyond is a slip of the keyboard.
What it leaves out: what one setting says about another.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MiniloraError


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`. above: `least` itself is none of them. zero: 0 is one more.
    such: an example.
    """

    least: float
    most: float
    whole: bool = True
    above: bool = False
    zero: bool = False
    such: str = ""

    def told(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        least, most = (f"{end:,}" for end in (self.least, self.most))
        ends = f"above {least}, at most {most}" if self.above else f"from {least} to {most}"
        such = f", such as {self.such}" if self.such else ""
        return f"{'0, or ' if self.zero else ''}{kind} {ends}{such}"

    def holds(self, value: object) -> bool:
        if not isinstance(value, int if self.whole else (int, float)) or isinstance(value, bool):
            return False
        if self.zero and value == 0:
            return True
        # an int that is too large for a float is compared as it is; NaN is in no range
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def require(self, value: object, name: str) -> None:
        """Raise MiniloraError, in which the value is called `name`, unless it is in the range."""
        if not self.holds(value):
            raise MiniloraError(f"{name} is {told(value)}; give {self.told()}")

    def parse(self, text: str, name: str) -> int | float:
        """The number that was typed. Raises MiniloraError for another text, and another number."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:  # no number, or one of thousands of digits
            raise MiniloraError(f"{name} is {told(text)}; give {self.told()}") from None
        self.require(value, name)
        return value


def told(value: object) -> str:
    """A value in an error's line, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= 48 else f"{text[:40]}… ({len(text)} characters)"


def whole(least: int, most: int) -> Range:
    return Range(least, most)


def number(least: float, most: float, **more) -> Range:
    return Range(least, most, whole=False, **more)


ROWS = whole(1, 2**20)  # of a batch
TOKENS = whole(1, 2**24)  # of a text
SEED = whole(0, 2**63 - 1)  # what every generator takes
TEMPERATURE = number(0.001, 1000, zero=True)  # as it is typed

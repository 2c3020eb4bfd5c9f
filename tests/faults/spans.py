"""Finds a piece of Python by its tokens and puts another in its place.

White space, line breaks, comments, a comma before a closing bracket and the kind of quotes do not
count, so a formatter may lay the code out anew and the piece is still found. `find` gives the span
in the source; `replaced` fills it.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

QUOTED = "|".join(
    rf"{quote}(?:\\.|(?!{quote}){inside})*{quote}"
    for quote, inside in (("'''", "."), ('"""', "."), ("'", r"[^\\\n]"), ('"', r"[^\\\n]"))
)
TOKEN = re.compile(
    rf"(?P<string>[rbfuRBFU]{{0,2}}(?:{QUOTED}))"
    r"|(?P<comment>\#[^\n]*)"
    r"|(?P<skipped>\s+|\\\n)"
    r"|(?P<word>\d[\w.]*(?:(?<=[eE])[-+]\d+)?|\w+)"
    r"|(?P<sign>\*\*=?|//=?|>>=?|<<=?|->|:=|[-+*/%&|^@=<>!]=|\.\.\.|.)",
    re.DOTALL,
)


class DoesNotFit(ValueError):
    """The piece stands in the source never, or more than once."""


@dataclass(frozen=True)
class Token:
    """What counts of it, where it stands, and whether it is a comma that a formatter may add."""

    what: str
    start: int
    end: int
    optional: bool = False


def tokens_of(source: str) -> list[Token]:
    """The tokens of a whole file or of a piece, which may begin and end in the middle of a
    statement.
    """
    found: list[Token] = []
    for match in TOKEN.finditer(source):
        if match.lastgroup in ("comment", "skipped"):
            continue
        what = match.group()
        if match.lastgroup == "string":
            what = _meaning(what)
        elif what in ")]}" and found and found[-1].what == ",":
            found[-1] = Token(",", found[-1].start, found[-1].end, optional=True)
        found.append(Token(what, match.start(), match.end()))
    return found


def _meaning(literal: str) -> str:
    """A string without its quotes' kind; an f-string stays as it is written between them."""
    try:
        return repr(ast.literal_eval(literal))
    except (SyntaxError, ValueError):
        return re.sub(r"^(\w*)('''|\"\"\"|'|\")(.*)\2$", r"\1|\3", literal, flags=re.DOTALL)


def _end(source: list[Token], at: int, piece: list[Token]) -> int | None:
    """Where the piece ends that begins at token `at`, or None."""
    for token in piece:
        if at < len(source) and source[at].optional and token.what != ",":
            at += 1
        if at < len(source) and source[at].what == token.what:
            at += 1
        elif not token.optional:
            return None
    return at


def find(source: str, old: str) -> tuple[int, int]:
    """The span of `old` in `source`. Raises DoesNotFit unless it stands there exactly once."""
    whole, piece = tokens_of(source), tokens_of(old)
    if not piece:
        raise DoesNotFit("there is no code in the text that is to be replaced")
    ends = {
        start: end
        for start, token in enumerate(whole)
        if token.what == piece[0].what and (end := _end(whole, start, piece)) is not None
    }
    if len(ends) != 1:
        raise DoesNotFit(f"this code stands there {len(ends)} times, not once:\n{old}")
    ((start, end),) = ends.items()
    return whole[start].start, whole[end - 1].end


def replaced(source: str, old: str, new: str) -> str:
    """`source` with `new` where `old` stands, moved to the depth at which `old` is found."""
    start, end = find(source, old)
    depth = _depth(source, start)
    given = _depth(old, len(old) - len(old.lstrip()))
    if given is None:  # `old` begins in the middle of a line: its second line tells the depth
        given = depth
        second = re.search(r"\n([ ]*)\S", old.strip())
        there = re.search(r"\n([ ]*)\S", source[start:end])
        if second and there:
            given, depth = len(second[1]), len(there[1])
    lines = new.strip().split("\n")
    shift = (depth or 0) - (given or 0)
    moved = [
        (" " * shift + line if shift >= 0 else line[-shift:]) if line.strip() else line
        for line in lines[1:]
    ]
    return source[:start] + "\n".join([lines[0], *moved]) + source[end:]


def _depth(text: str, at: int) -> int | None:
    """The indentation of the line on which `at` is the first thing written, else None."""
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return len(line) if not line.strip() and (line or "\n" in text[:at]) else None

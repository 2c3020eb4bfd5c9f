"""Real text that every learner has and no one need ship: the docstrings of Python's own library.

What it replaces: a download of WikiText. On text that a real model knows well, a lost bit is seen:
there the shipped base, which knows a small world of its own, hardly tells 4 bits from 32.
How it works: the library's files lie beside the running Python. They are read as text and never
imported, shuffled by a fixed seed, and parted into two halves: one to score, one to learn from. A
scored row is the beginning of the longest docstring of a file, so no two come from one file. Rows
to learn are docstrings cut into pieces. The loss is the mean cross-entropy of each next token.
What it leaves out: the library's tests, and parts that a system may leave out (Tk, IDLE).
Where numerics differ: another Python has other docstrings, so compare only under one `told()`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import platform
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MiniloraError

if TYPE_CHECKING:
    from torch import nn

    from ..text.rows import Row
    from ..text.tokenizer import Tokenizer

SEED = 0
WINDOWS, TOKENS = 24, 256  # rows that are scored, and the ids of each
LEAST = 300  # letters of a docstring that is worth learning from
# of the standard library: tests, and what some systems pack separately or not at all
LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "lib2to3", "distutils", "ensurepip"}
LEFT_OUT |= {"turtledemo", "site-packages", "dist-packages", "__pycache__"}


def told() -> str:
    """Which text it is, in words."""
    return f"docstrings of Python {platform.python_version()}'s standard library"


@functools.cache
def files() -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(files to score, files to learn from), each in an order that only the library decides."""
    library = Path(sysconfig.get_path("stdlib"))
    found = {path.relative_to(library).as_posix(): path for path in library.rglob("*.py")}
    names = sorted(name for name in found if not LEFT_OUT & set(name.split("/")))
    random.Random(SEED).shuffle(names)
    middle = len(names) // 2
    ordered = [found[name] for name in names]
    return tuple(ordered[:middle]), tuple(ordered[middle:])


@functools.cache
def docstrings(path: Path) -> tuple[str, ...]:
    """The docstrings of a file, without their indent, in the order in which they stand."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        nodes = [n for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, kinds)]
    except (SyntaxError, ValueError):  # a file for another Python
        return ()
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return tuple(dict.fromkeys(text for text in map(ast.get_docstring, nodes) if text))


def rows_to_score(tokenizer: Tokenizer, windows: int = WINDOWS, tokens: int = TOKENS) -> list[Row]:
    """`windows` rows of `tokens` ids, a file each. Raises MiniloraError where the library has too
    few docstrings of that length.
    """
    return _first(_beginnings(tokenizer, tokens), windows, tokens)


def rows_to_learn(tokenizer: Tokenizer, windows: int, tokens: int = TOKENS) -> list[Row]:
    """`windows` rows of `tokens` ids from files that are never scored."""
    return _first(_pieces(tokenizer, tokens), windows, tokens)


def _beginnings(tokenizer: Tokenizer, tokens: int) -> Iterator[Row]:
    for path in files()[0]:
        ids = tokenizer.encode_text(max(docstrings(path), key=len, default=""))
        if len(ids) >= tokens:
            yield _row(ids[:tokens], tokenizer)


def _pieces(tokenizer: Tokenizer, tokens: int) -> Iterator[Row]:
    for path in files()[1]:
        for text in docstrings(path):
            if len(text) >= LEAST:
                ids, opening = tokenizer.encode(text), tokenizer.opening
                size = tokens - len(opening)
                for start in range(0, len(ids) - size + 1, size):
                    yield _row(opening + ids[start : start + size], tokenizer)


def _row(ids: list[int], tokenizer: Tokenizer) -> Row:
    """All of it is learned, but for what the tokenizer puts in front."""
    from ..text.rows import IGNORE

    given = len(tokenizer.opening)
    return ids, [IGNORE] * given + ids[given:]


def _first(rows: Iterator[Row], windows: int, tokens: int) -> list[Row]:
    found = [row for row, _ in zip(rows, range(windows))]
    if len(found) < windows:
        raise MiniloraError(
            f"the standard library beside this Python has {len(found)} such texts of {tokens} "
            f"tokens, not {windows}; ask for fewer or shorter ones"
        )
    return found


def fingerprint(rows: Sequence[Row]) -> str:
    """The first digits of the SHA-256 of rows of ids: equal rows give comparable losses."""
    text = "\n".join(" ".join(map(str, ids)) for ids, _ in rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def loss_on(
    model: nn.Module, tokenizer: Tokenizer, windows: int = WINDOWS, tokens: int = TOKENS
) -> float:
    """The model's loss on that text, in nats a token."""
    from ..train.loss import evaluate_loss

    return evaluate_loss(model, rows_to_score(tokenizer, windows, tokens), batch_size=4)

"""The one folder in which fetched models are kept, to be moved or cleared as one likes.

What it replaces: a cache of links into blobs, as the hub's library keeps it.
How it works: each model is an ordinary folder, `models/NAME` in the cache. It appears under its
name when it is complete, with `source.json` that says where it came from. What is being fetched has
a name of its own, and one process at a time fetches a name.
What it leaves out: models that were fetched by another Hub name; those are in the hub's own cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import MiniloraError
from ..system.files import sweep
from ..system.json_files import read_json

VARIABLE = "MINILORA_CACHE"
SOURCE = "source.json"
SCHEMA = {
    "type": "object",
    "required": ["name", "source", "licence"],
    "properties": {
        name: {"type": "string"} for name in ("name", "source", "licence", "went_through")
    },
}


class NoAnswer(Exception):
    """A source cannot give a model; says why in a few words."""


@dataclass
class Source:
    """Where a model in the cache came from. went_through: what its weights lost on the way."""

    name: str
    source: str
    licence: str
    went_through: str = ""


def folder() -> Path:
    """The cache: $MINILORA_CACHE, else where this system keeps such things."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    home = Path("~").expanduser()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "minilora"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "minilora"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "minilora"


def models() -> Path:
    return folder() / "models"


def place(name: str) -> Path:
    """The folder of the model `name`, there or not."""
    return models() / name


def have(name: str) -> Path | None:
    """The folder of the model `name`, if it is complete."""
    path = place(name)
    return path if (path / SOURCE).is_file() else None


def listed() -> list[tuple[Source, Path]]:
    """All complete models, by name."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(models().iterdir()):
            if (path / SOURCE).is_file():
                fields = read_json(path / SOURCE, SCHEMA, remedy=f"remove {path}")
                found.append((Source(**{key: fields.get(key, "") for key in keys()}), path))
    return found


def keys() -> list[str]:
    return list(Source.__dataclass_fields__)


def write_source(path: Path, source: Source) -> None:
    text = json.dumps(asdict(source), indent=2) + "\n"
    (path / SOURCE).write_text(text, encoding="utf-8")


def size(path: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def clear(name: str) -> list[Path]:
    """Remove the model `name` and what is there of it unfinished; returns what was removed.

    Only a name that stands in the cache's own list is ever made a path: one that was typed could
    lead anywhere ("..", "/"). A folder that somebody else put there stays.
    """
    inside = _in_cache()
    gone = [inside[each] for each in (name, partial(name).name) if each in inside and name]
    gone = [path for path in gone if _ours(path)]
    for path in gone:
        remove(path)
    return gone


def _in_cache() -> dict[str, Path]:
    """The folders that lie in the cache, by name; no links."""
    with contextlib.suppress(OSError), os.scandir(models()) as entries:
        return {
            each.name: models() / each.name
            for each in entries
            if each.is_dir(follow_symlinks=False)
        }
    return {}


def _ours(path: Path) -> bool:
    """Whether a folder in the cache was made here: it says where it came from, or is unfinished."""
    return (path / SOURCE).is_file() or path == partial(path.name[1:].removesuffix(".partial"))


def remove(path: Path) -> None:
    """Remove a model that lies in the cache. Raises ValueError for any other folder."""
    if path.parent != models() or path.name not in _in_cache() or not _ours(path):
        raise ValueError(f"{path} is no model in {models()}")
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise MiniloraError(
            f"cannot remove {path}: {error.strerror or error}; remove it yourself"
        ) from error


def partial(name: str) -> Path:
    """Where files of `name` lie until all are there; a broken download goes on from these."""
    return models() / f".{name}.partial"


def require_room(name: str, need: int) -> None:
    """Raise MiniloraError before the first byte if the disk has less than `need` bytes free."""
    there = next(path for path in (models(), *models().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if need > free:
        raise MiniloraError(
            f"{name} takes {need / 1e9:.1f} GB while it is fetched, and {free / 1e9:.1f} GB are "
            f"free at {there}; make room, or set {VARIABLE} to a folder on a larger disk"
        )


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Within the block no other process fetches `name`; waits for one that does."""
    from filelock import FileLock, Timeout

    try:
        models().mkdir(parents=True, exist_ok=True)
        lock = FileLock(models() / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process is fetching {name}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise MiniloraError(
            f"cannot keep models in {folder()}: {error.strerror or error}; set {VARIABLE} to a "
            "folder that can be written"
        ) from error
    try:
        sweep(place(name))
        yield
    finally:
        lock.release()


def say(text: str) -> None:
    """A line for the person who waits; standard output is the command's."""
    print(f"minilora: {text}", file=sys.stderr, flush=True)

"""Which files in a folder a run made: those alone it replaces and deletes.

What it replaces: `shutil.rmtree(out)`, and files that are written over for their names.
How it works: run.json lists the files that the run put into its folder, each with its mark
(system/outputs.py); a file is listed before it is in its place, so that a killed run knows its own
again. What is there under such a name with another mark was put there by somebody else.
metrics.jsonl grows and has no mark: it is known by its lines. A saved state is known by its files
and, where no run.json speaks for it, by the sum in its manifest.
What it leaves out: whole folders of others, which are never entered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from ..errors import MiniloraError
from ..system.files import LAST, UNFINISHED, kind_of
from ..system.json_files import parse_json, read_bytes
from ..system.outputs import made_by, mark

METRICS, PICTURE, MANIFEST, STATES = "metrics.jsonl", "loss.png", "manifest.json", "state"

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
MODEL: tuple[str, ...] = (
    "config.json",
    "generation_config.json",
    "model*.safetensors*",
    "tokenizer*",
)
MODEL += ("special_tokens_map.json", "chat_template.jinja")

LINE = b'{"step": '  # how every line of the metrics begins

STATE_FILES = ("state.safetensors", METRICS, MANIFEST)  # in this order they go
STATE = re.compile(r"step-\d{8,}")

BODY = {  # of a manifest
    "type": "object",
    "required": ["step", "files"],
    "properties": {
        "step": {"type": "integer", "minimum": 0},
        "files": {"type": "object", "propertyNames": {"enum": list(STATE_FILES)}},
        "run": {"type": "string"},
    },
}
SCHEMA = {
    "type": "object",
    "required": ["body", "sha256"],
    "properties": {"body": BODY, "sha256": {"type": "string"}},
}


class Made:
    """The record of one run's folder: a file's name, and the marks that it had."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.marks: dict[str, list[str]] = {}

    def take(self, about: dict | None) -> None:
        """What run.json says was made. One from before it said so speaks for all that runs
        write.
        """
        if about is None or "files" in about:
            self.marks = dict((about or {}).get("files", {}))
            return
        known = (PICTURE, *ADAPTER, *MODEL)
        there = [path for path in _files(self.folder) if _named(path.name, known)]
        self.marks = {METRICS: [], **{path.name: [mark(path)] for path in there}}

    def owns(self, name: str) -> bool:
        """Whether what stands under that name was made by the run, or nothing does."""
        path = self.folder / name
        if kind_of(path) is None:
            return True
        if name not in self.marks:
            return False
        return _metrics(path) if name == METRICS else made_by(path, self.marks[name])

    def require_own(self, patterns: Iterable[str]) -> None:
        """Raise MiniloraError if under one of the names stands what no run made."""
        wanted = (METRICS, *patterns)
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.folder)):
                if _named(name, wanted) and not self.owns(name):
                    raise MiniloraError(
                        f"{self.folder / name} was not made by this run and would be replaced; "
                        "move it away, or choose another --out"
                    )

    def claim(self, temporary: Path) -> None:
        """Write down the files that are to take their places. Raises MiniloraError if one would
        replace what the run did not make.
        """
        for file in _files(temporary):
            if not self.owns(file.name):
                raise MiniloraError(
                    f"{self.folder / file.name} is not what this run made and stays as it is; "
                    "move it away, then add --resume"
                )
            if (known := mark(file)) not in self.marks.setdefault(file.name, []):
                self.marks[file.name].append(known)

    def settle(self) -> None:
        """Forget the marks of files that were replaced."""
        self.marks = {
            name: [] if name == METRICS else [mark(self.folder / name)]
            for name in sorted(self.marks)
            if kind_of(self.folder / name) == "a file" and self.owns(name)
        }

    def remove(self) -> None:
        """Delete the files, those first without which the rest is no model and no adapter."""
        for name in sorted(self.marks, key=lambda name: (name not in LAST, name)):
            if kind_of(self.folder / name) is not None and self.owns(name):
                (self.folder / name).unlink()
        self.marks = {METRICS: []}


# ------------------------------------------------------------------------------------------- states


def read_manifest(folder: Path) -> dict:
    """The body of a state's manifest, if its sum agrees. Raises MiniloraError if not."""
    path = folder / MANIFEST
    manifest = parse_json(read_bytes(path), path, SCHEMA)
    body = manifest["body"]
    if hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest() != manifest["sha256"]:
        raise MiniloraError(f"{path}: its sum is another")
    return body


def own_state(folder: Path, known: bool) -> bool:
    """Whether a run made this state. known: a run.json speaks for the folder."""
    if kind_of(folder) != "a folder" or not STATE.fullmatch(folder.name):
        return False
    for entry in folder.iterdir():
        if kind_of(entry) != "a file" or entry.name not in STATE_FILES:
            return False
    if known:
        return True
    try:
        return bool(read_manifest(folder))
    except MiniloraError:
        return False


def drop_state(folder: Path) -> None:
    """Delete a state file by file, the manifest last, which says whose it is; what else is in the
    folder stays.
    """
    for name in STATE_FILES:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def require_own_states(states: Path, known: bool) -> None:
    """Raise MiniloraError if the folder of states is somebody else's, or holds a state that no run
    made.
    """
    if (kind := kind_of(states)) is None:
        return
    entries = sorted(states.iterdir()) if kind == "a folder" else []
    own = [entry for entry in entries if own_state(entry, known)]
    others = [e for e in entries if e not in own and not UNFINISHED.fullmatch(e.name)]
    strange = [entry for entry in others if STATE.fullmatch(entry.name)]
    if kind != "a folder" or strange or (others and not own and not known):
        what = strange[0] if strange else states
        raise MiniloraError(
            f"{what} was not made by a run, and this run would write there; move it away, or "
            "choose another --out"
        )


def _named(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if kind_of(path) == "a file"]


def _metrics(path: Path) -> bool:
    """Whether a file begins as a run's metrics do, in the middle of a line for all that is
    known.
    """
    if kind_of(path) != "a file":
        return False
    with open(path, "rb") as file:
        first = file.read(len(LINE))
    return LINE.startswith(first)

"""`minilora lessons`: lay the course's notebooks out in a folder and open them.

How it works: a hidden file in the folder keeps the digest of every notebook as it was laid out. A
notebook that still has that digest is replaced when a newer minilora brings another; one that the
learner has run or written in is left alone, until `--renew` names it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import MiniloraError
from ..system.files import atomic_folder, atomic_write, course_folder, kind_of
from ..system.json_files import read_json
from ..system.outputs import alone, spelled

RECORD = ".minilora-lessons.json"


def add_arguments(parser) -> None:
    parser.add_argument(
        "folder",
        nargs="?",
        default="minilora-lessons",
        metavar="DIR",
        help="where the notebooks go (default: ./minilora-lessons)",
    )
    parser.add_argument(
        "--renew",
        action="append",
        default=[],
        metavar="NAME",
        help="set a lesson back as it is shipped, by its number or name; yours becomes NAME.bak-1. "
        "May be given more than once",
    )
    parser.add_argument(
        "--no-open", action="store_true", help="lay the notebooks out, do not start JupyterLab"
    )


@dataclass
class Plan:
    """What is to be written into a folder, and what stays."""

    new: dict[str, bytes] = field(default_factory=dict)  # name → the shipped bytes
    same: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)  # changed by the learner
    backups: dict[str, bytes] = field(default_factory=dict)  # name of a copy → the learner's bytes


def shipped() -> dict[str, bytes]:
    """The course's notebooks by name, in reading order."""
    folder = course_folder() / "notebooks"
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("*.ipynb"))}
    if not found:
        raise MiniloraError(
            f"the lessons are not at {folder}; install minilora again, from its wheel or, in a "
            "clone of its repository, with `pip install -e .`"
        )
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _record(folder: Path) -> dict[str, str]:
    """Name → digest of what was laid out here before; empty where that is not known."""
    try:
        return read_json(folder / RECORD, {"type": "object"})
    except MiniloraError:
        return {}


def _chosen(wanted: str, names: list[str]) -> str:
    """The notebook that `--renew` means: 00, 00-start-here or 00-start-here.ipynb."""
    for name in names:
        if wanted in (name, name.removesuffix(".ipynb"), name.partition("-")[0]):
            return name
    raise MiniloraError(f"--renew {wanted}: there is no such lesson; choose {', '.join(names)}")


def backup_name(folder: Path, name: str) -> str:
    """The first of NAME.bak-1, NAME.bak-2, … that is free."""
    number = 1
    while os.path.lexists(folder / f"{name}.bak-{number}"):
        number += 1
    return f"{name}.bak-{number}"


def plan(folder: Path, notebooks: dict[str, bytes], renew: list[str]) -> Plan:
    """Compare what lies in `folder` with what is shipped. Writes nothing."""
    made, before = Plan(), _record(folder)
    again = {_chosen(wanted, list(notebooks)) for wanted in renew}
    for name, content in notebooks.items():
        path = folder / name
        if (kind := kind_of(path)) not in (None, "a file"):
            raise MiniloraError(f"{path} is {kind}; move it away, or name another folder")
        there = path.read_bytes() if kind else None
        if there == content:
            made.same.append(name)
        elif there is None or _digest(there) == before.get(name):
            made.new[name] = content
        elif name in again:
            made.backups[backup_name(folder, name)] = there
            made.new[name] = content
        else:
            made.kept.append(name)
    return made


def lay_out(folder: Path, made: Plan) -> None:
    """Carry a plan out. Copies of the learner's files are on the disk before anything replaces
    them, and each file is the old one or the new one at any moment.
    """
    for name, content in made.backups.items():
        with atomic_write(folder / name) as path:
            path.write_bytes(content)
    if made.new:
        digests = {name: _digest(content) for name, content in made.new.items()}
        record = {**_record(folder), **digests}
        with atomic_folder(folder) as temporary:
            for name, content in made.new.items():
                (temporary / name).write_bytes(content)
            (temporary / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def report(shown: str, made: Plan) -> list[str]:
    """What was done, in lines for the terminal."""
    there = f", {len(made.same)} are there already" if made.same else ""
    lines = [f"{shown}: {len(made.new)} lessons laid out{there}"]
    lines += [f"yours is now {name}" for name in made.backups]
    if made.kept:
        lines.append(f"kept as you left them: {', '.join(made.kept)}")
        lines.append(
            f"`minilora lessons {shown} --renew {made.kept[0].removesuffix('.ipynb')}` sets one "
            "back and keeps yours beside it"
        )
    return lines


def open_lab(folder: Path, first: str) -> int:
    """Run JupyterLab on the first lesson until it is ended; returns its exit code."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise MiniloraError(
            "JupyterLab is not installed; `python -m pip install jupyterlab ipywidgets` brings it, "
            f"then `jupyter lab` in {folder} opens the lessons"
        )
    root = hasattr(os, "getuid") and os.getuid() == 0
    command = [sys.executable, "-m", "jupyterlab", *(["--allow-root"] if root else []), first]
    lab = subprocess.Popen(command, cwd=folder)
    while True:
        try:
            return lab.wait()
        except KeyboardInterrupt:  # the terminal sends Ctrl-C to JupyterLab as well, which asks
            continue


def run(args) -> int:
    folder, notebooks = spelled(args.folder, "DIR").resolve(), shipped()
    if folder.exists() and not folder.is_dir():
        raise MiniloraError(f"{args.folder} is a file; name a folder for the lessons")
    if folder == (course_folder() / "notebooks").resolve():
        raise MiniloraError(
            f"{args.folder} holds the course's own notebooks; name another folder, or open them "
            f"there with `jupyter lab {args.folder}`"
        )
    with alone(folder, "folder"):
        made = plan(folder, notebooks, args.renew)
        lay_out(folder, made)
    print("\n".join(report(args.folder, made)))
    if args.no_open:
        print(f"`jupyter lab {args.folder}` opens them")
        return 0
    return open_lab(folder, next(iter(notebooks)))

"""Where output may go, and by whom: nothing that a command did not make is replaced or deleted.

What it replaces: `os.makedirs(out, exist_ok=True)` and then whatever stands there is written over.
How it works: a place is looked at before any work is done. A folder for a run is no folder that is
read, none that one stands in, and can be written; a file is new, or a regular one that the user
allows to be replaced, and none that is read. Places are compared by what the system says they are
(`os.path.samefile`), not by their spelling. While a command writes, it holds a lock beside the
place: the system lets go of it when the process ends, however it ends. What a run made is known by
a mark, its size and a sum over its ends, which the run writes down before the file is in its place.
What it leaves out: who changes files in the moment between the look and the rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import MiniloraError
from .files import kind_of, sweep

ENDS = 1 << 20  # bytes at each end of a file that its mark is made of
LONGEST_NAME = 200  # bytes: an unfinished file's name is longer, and file systems take 255
INSIDE = "state/.step-00000000.minilora-12345678.part/state.safetensors"  # the deepest that we go

# (option, path) of what a command reads: in such a folder nothing is written, nor over such a file
Read = Iterable[tuple[str, Path]]


def same(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether both are there and the same file or folder, however they are spelled."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def spelled(path: str | os.PathLike, option: str = "--out", what: str = "folder") -> Path:
    """The path that was typed, `~` as the home folder. Raises MiniloraError for what is no name of
    a file: nothing, no UTF-8, too long.
    """
    text = os.fspath(path)
    if not text.strip():
        raise MiniloraError(f"{option} is empty; name a {what}")
    if "\0" in text:
        raise MiniloraError(f"{option} holds a NUL character; name a {what} without it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MiniloraError(
            f"{option} {ascii(text)} is no UTF-8 text, and could not be written into the files "
            f"that name it; choose another {what}"
        ) from error
    for name in Path(text).parts:
        if (size := len(os.fsencode(name))) > LONGEST_NAME:
            raise MiniloraError(
                f"{option}: the name {name[:20]}… has {size} bytes; give one of at most "
                f"{LONGEST_NAME}"
            )
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # a home that nobody has
        raise MiniloraError(f"{option} {text}: {error}; choose another {what}") from error
    # new/../there is there, although new is not yet
    if path.name == "..":
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name if ".." in path.parts else path


def require_folder(path: str | os.PathLike, option: str = "--out", read: Read = ()) -> Path:
    """The folder into which a command may write. Raises MiniloraError if it is none, cannot be
    written, is one of those that are read, the current or the home folder, or holds one of these.
    """
    path = spelled(path, option)
    for place, called in ((Path.cwd(), "the current folder"), (_home(), "your home folder")):
        for above in (place, *place.parents):
            if same(path, above):
                holds = "is" if above == place else "holds"
                raise MiniloraError(
                    f"{option} {str(path)!r} {holds} {called}; name a folder in it, such as "
                    f"{option} runs/first"
                )
    for name, other in read:
        place = other if other.is_dir() else other.parent
        if same(path, place):
            raise MiniloraError(
                f"{option} {path} is the folder of {name} ({other}), whose files stay as they "
                f"are; choose another {option}"
            )
    _require_writable(path, path, option)
    return path


def require_file(
    path: str | os.PathLike,
    option: str,
    read: Read = (),
    overwrite: bool | None = None,
    what: str = "file",
) -> Path:
    """The file that a command may write. overwrite: whether the user allows a file that is there
    to be replaced (None: the command has no such option). what: how it is called.

    Raises MiniloraError if anything but a regular file is there, or one that is read, and for a
    file in a folder that is read.
    """
    a_folder = os.fspath(path).endswith((os.sep, "/"))  # a Path drops it
    path = spelled(path, option, what)
    if a_folder or not path.name:
        raise MiniloraError(f"{option} {path} is a folder; name a {what}")
    _require_writable(path.parent, path, option)
    for name, other in read:
        if same(path, other) or (other.is_dir() and same(path.parent, other)):
            raise MiniloraError(
                f"{option} {path} is of what {name} reads ({other}); choose another {option}"
            )
    kind = kind_of(path)
    if kind not in (None, "a file"):
        raise MiniloraError(
            f"{option} {path}: {kind} is there, and only regular files are written; choose another "
            "name"
        )
    if kind and not overwrite:
        allow = "" if overwrite is None else ", or add --overwrite"
        raise MiniloraError(f"{option} {path} is there already; choose another name{allow}")
    return path


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # nobody's, as in some containers
        return Path.cwd()


def _require_writable(folder: Path, path: Path, option: str) -> None:
    """Raise MiniloraError now, and not after an hour, if nothing can be written in `folder`, or
    where it would be made.
    """
    there = folder
    try:
        while (kind := kind_of(there)) is None and there != there.parent:
            there = there.parent
        kind_of(folder / INSIDE)  # a path may be too long for the system
        if not there.is_dir():
            raise MiniloraError(
                f"cannot write {path}: {there} is {kind}, not a folder; choose another {option}"
                if there.exists()
                else f"cannot write {path}: {there} is {kind} to nothing; choose another {option}"
            )
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise MiniloraError(
            f"cannot write {_shown(path)}: {error.strerror}; choose another {option}"
        ) from error


def _shown(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-60:]}"


# ------------------------------------------------------------------------------------------- a lock


@contextlib.contextmanager
def alone(path: str | os.PathLike, option: str = "--out") -> Iterator[None]:
    """Within the block no other command writes at `path`; what a killed one left unfinished there
    is gone. Raises MiniloraError if another is writing.
    """
    from filelock import FileLock, Timeout

    path = Path(os.path.realpath(path))
    made = _make_parents(path)
    # beside it, so that a folder can still appear whole; in it only where nothing fits beside
    beside = os.access(path.parent, os.W_OK)
    file = path.with_name(f".{path.name}.minilora.lock") if beside else path / ".minilora.lock"
    if (kind := kind_of(file)) not in (None, "a file"):
        raise MiniloraError(f"cannot lock {path}: {file} is {kind}; take it away")
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise MiniloraError(
            f"another command is writing {path} at this moment; wait for its end, or choose "
            f"another {option}"
        ) from None
    except OSError as error:
        raise MiniloraError(
            f"cannot lock {path} ({error.strerror or error}); choose another {option}"
        ) from error
    try:
        sweep(path)
        yield
    finally:
        if os.name != "nt":
            _remove(file)  # while it is held: who opened it meanwhile sees that its name has gone
        lock.release()
        if os.name == "nt":
            _remove(file)  # nobody can remove there what another has opened
        for folder in made:
            with contextlib.suppress(OSError):  # no longer empty
                folder.rmdir()


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError):
        if file.stat().st_size == 0:  # anything else is none of ours
            file.unlink()


def _make_parents(path: Path) -> list[Path]:
    """Make the folder in which `path` will be; returns those that were not there, the lowest
    first.
    """
    made = []
    for folder in (path.parent, *path.parent.parents):
        if folder.exists():
            break
        made.append(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiniloraError(f"cannot write {path}: {error.strerror}; choose another") from error
    return made


# ------------------------------------------------------------------------------------ what was made


def mark(path: str | os.PathLike) -> str:
    """The size of a file and a sum over its first and last bytes: enough to know it again, and
    quick for many GB.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        total = hashlib.sha256(file.read(ENDS))
        file.seek(max(0, size - ENDS))
        total.update(file.read(ENDS))
    return f"{size}:{total.hexdigest()[:32]}"


def made_by(path: str | os.PathLike, marks: Iterable[str]) -> bool:
    """Whether a regular file is at `path` that has one of the marks."""
    return kind_of(path) == "a file" and mark(path) in set(marks)

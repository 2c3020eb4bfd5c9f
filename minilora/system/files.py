"""Writing files so that a crash at any moment leaves the old file or the new one, never half of
one.

What it replaces: `open(path, "w")`, which truncates first and fills later.
How it works: write beside the target under a temporary name, flush to the disk, then rename; a
rename within one folder is atomic on POSIX and on NTFS. Then the folder is flushed too, for it is
the folder that holds the new name: without that a power cut may bring the old file back. A folder
is written beside its target in the same way and swapped in. Only regular files are replaced: a
symbolic link, a pipe, a device or a folder in the place of a file is left as it is.
What it leaves out: which files may be replaced, and by how many at once (outputs.py). Windows opens
no folder, so there the new name is in the system's hands.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import MiniloraError

# what file systems answer that cannot flush a folder, network drives for the most part
REFUSED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM}

# Without these a folder is no model and no adapter, so they come last: a folder that was cut off in
# the middle is refused by whoever reads it.
LAST = ("config.json", "adapter_config.json")

# How everything unfinished is called; no other program writes such a name.
PREFIX, SUFFIX = ".{}.minilora-", ".part"
UNFINISHED = re.compile(r"\.(?P<name>.+)\.minilora-\w{8}\.part", re.DOTALL)

KINDS = {  # what may stand where a file is to be written, by the system's word for it
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def course_folder() -> Path:
    """What the course is made of: `data/`, `notebooks/`, `benchmarks/results/`.

    It is what the wheel carries inside the package, or in a clone the repository.
    """
    package = Path(__file__).resolve().parents[1]
    carried = package / "shipped"
    return carried if carried.is_dir() else package.parent


def data_folder() -> Path:
    """The shipped base, the tasks and the adapters.

    Raises MiniloraError where the package was installed without them.
    """
    folder = course_folder() / "data"
    if not folder.is_dir():
        raise MiniloraError(
            f"the shipped data is not at {folder}; install minilora again, from its wheel or, in a "
            "clone of its repository, with `pip install -e .`"
        )
    return folder


def results_folder() -> Path:
    """The committed results of the benchmarks, which lessons and sliders read."""
    return course_folder() / "benchmarks" / "results"


def _sync(path: Path) -> None:
    """Force the file's bytes to the disk, so that the rename cannot overtake them."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Force the names in a folder to the disk, so that a rename in it outlives a power cut."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
    finally:
        os.close(descriptor)


def _from_disk(error: Exception) -> bool:
    """True for what the system refused; safetensors, written in Rust, reports that in an exception
    of its own.
    """
    return isinstance(error, OSError) or (
        type(error).__name__ == "SafetensorError" and "os error" in str(error)
    )


@contextlib.contextmanager
def _refusals_told(path: Path) -> Iterator[None]:
    """Turn what the system refuses into one line that names `path`."""
    try:
        yield
    except Exception as error:
        if not _from_disk(error):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise MiniloraError(
            f"cannot write {path}: {reason}; free some space or choose another folder with write "
            "permission"
        ) from error


def _drop(temporary: Path) -> None:
    """Remove what has not come to its place."""
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    elif temporary.exists():
        temporary.unlink()


def kind_of(path: str | os.PathLike) -> str | None:
    """What stands at `path`, the last link not followed: "a file", one of KINDS, or None for
    nothing. Raises OSError for what cannot be asked.
    """
    try:
        mode = os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return KINDS.get(stat.S_IFMT(mode), "a file")


def require_replaceable(path: str | os.PathLike) -> None:
    """Raise MiniloraError if at `path` stands what no file may replace."""
    if (kind := kind_of(path)) not in (None, "a file"):
        raise MiniloraError(
            f"cannot write {path}: {kind} is there, and only regular files are written; choose "
            "another name"
        )


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, it becomes `path` in one step.

    Raises MiniloraError if the disk is full, the folder cannot be written, or no regular file
    stands at `path`; `path` is then as it was before.
    """
    path = Path(path)
    with _refusals_told(path), contextlib.ExitStack() as unfinished:
        require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(SUFFIX, PREFIX.format(path.name), path.parent)
        os.close(handle)
        temporary = Path(name)
        unfinished.callback(_drop, temporary)
        yield temporary
        _sync(temporary)
        os.chmod(temporary, 0o644)
        require_replaceable(path)
        os.replace(temporary, path)
        _sync_folder(path.parent)


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike, before: Callable[[Path], object] = lambda temporary: None
) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends well, its files take the place of those
    of the same name in `path`, the configs last. If `path` does not exist yet, the whole folder
    appears in one rename. `before` is called with the temporary folder when its files are on the
    disk and none is in its place: what it raises stops that.

    Raises MiniloraError as `atomic_write` does.
    """
    path = Path(path)
    with _refusals_told(path), contextlib.ExitStack() as unfinished:
        there = path.exists()  # what is there may be a disk of its own: no rename leads into it
        home = path if there else path.parent
        home.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(SUFFIX, PREFIX.format(path.name), home))
        unfinished.callback(_drop, temporary)
        yield temporary
        made = sorted(temporary.iterdir(), key=lambda file: (file.name in LAST, file.name))
        for file in made:
            # some libraries write 0600, which a reader of a shared folder cannot open
            os.chmod(file, 0o644)
            _sync(file)
        os.chmod(temporary, 0o755)
        before(temporary)
        if there:
            for file in made:
                require_replaceable(path / file.name)
            for file in made:
                os.replace(file, path / file.name)
            _sync_folder(path)
        else:
            _sync_folder(temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)


def sweep(path: str | os.PathLike) -> None:
    """Remove what a killed process left unfinished of `path`: beside it, and in it."""
    path = Path(path)
    beside = [each for each in _unfinished(path.parent) if _target(each) == path.name]
    for rest in (*beside, *_unfinished(path)):
        with contextlib.suppress(OSError):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()


def _target(path: Path) -> str | None:
    """The name for which an unfinished file or folder was made."""
    found = UNFINISHED.fullmatch(path.name)
    return found["name"] if found else None


def _unfinished(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [
                Path(each.path)
                for each in entries
                if UNFINISHED.fullmatch(each.name)
                and (each.is_file(follow_symlinks=False) or each.is_dir(follow_symlinks=False))
            ]
    except OSError:  # not there, or not to be read
        return []


def sort_metadata(path: str | os.PathLike) -> None:
    """Sort the metadata in a safetensors file's header, in place: the library writes it in an order
    drawn anew each time.

    With this, equal tensors and equal metadata give equal bytes. The header keeps its length.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        if len(text) > length:
            raise ValueError(f"the header of {path} would grow from {length} to {len(text)} bytes")
        file.seek(8)
        file.write(text.ljust(length))

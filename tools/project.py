"""What pyproject.toml says, read once for the scripts and tests that must agree with it."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def pyproject() -> dict:
    """pyproject.toml as a dict."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def repository() -> str:
    """The repository's address, without a slash at its end."""
    return pyproject()["project"]["urls"]["Repository"].rstrip("/")


def published() -> bool:
    """Whether the repository has an address, so that a button or a download can lead there."""
    return not repository().startswith("https://github.com/OWNER/")


def tag() -> str:
    """The tag that Colab, Kaggle and Binder fetch: v and the version."""
    import minilora

    return f"v{minilora.__version__}"


def lessons() -> list[Path]:
    """The notebooks of the course, in reading order."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))

"""Puts the course into the wheel: data, lessons and what the lessons read, as `minilora/shipped/`.

How it works: when hatchling builds a wheel, it loads this file, named in pyproject.toml, and asks
it which files to add under which names. An editable install gets none, for the package then finds
the repository's own.
"""

from __future__ import annotations

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = ("data/**/*", "notebooks/*.ipynb", "benchmarks/results/*.json", "README.md")
MADE_ON_THE_WAY = {".pyc", ".part"}


def shipped(root: Path) -> dict[str, str]:
    """File → its name in the wheel, without hidden files and what programs leave behind."""
    found = {}
    for pattern in SHIPPED:
        for path in sorted(root.glob(pattern)):
            inside = path.relative_to(root)
            hidden = any(part.startswith(".") for part in inside.parts)
            if path.is_file() and not hidden and path.suffix not in MADE_ON_THE_WAY:
                found[str(path)] = f"minilora/shipped/{inside.as_posix()}"
    return found


class ShippedCourse(BuildHookInterface):
    """The hook, by the name under which hatchling looks for it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict) -> None:
        if version != "editable":
            build_data["force_include"].update(shipped(Path(self.root)))

"""Writes environment.yml, the conda environment, from pyproject.toml.

What it replaces: `pyproject2conda yaml`, whose table in pyproject.toml it reads, so that either can
be used.
How it works: the core dependencies and all extras, in order, each under its conda name if
`[tool.pyproject2conda.dependencies]` gives one (`skip` with `packages`), or under `pip:` if it says
`pip = true`; at the end minilora itself in place.
What it leaves out: environments by extra, markers and platforms.
"""

from __future__ import annotations

import re

from .project import ROOT, pyproject

HEAD = "# Made from pyproject.toml by `make environment.yml`; change it there.\n"


def name_of(requirement: str) -> str:
    """`Torch>=2.4` → `torch`."""
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()


def requirements(project: dict) -> list[str]:
    """Every requirement of the project and its extras once, in the order of pyproject.toml."""
    extras = project["project"]["optional-dependencies"].values()
    return list(
        dict.fromkeys(
            [*project["project"]["dependencies"], *(r for extra in extras for r in extra)]
        )
    )


def environment(project: dict) -> str:
    """The text of environment.yml."""
    table = project["tool"]["pyproject2conda"]
    conda, by_pip = [f"python{project['project']['requires-python']}"], []
    for requirement in requirements(project):
        rule = table["dependencies"].get(name_of(requirement), {})
        if rule.get("pip"):
            by_pip.append(requirement)
        elif rule.get("skip"):
            conda.extend(
                [rule["packages"]] if isinstance(rule["packages"], str) else rule["packages"]
            )
        else:
            conda.append(requirement)
    lines = [
        "name: minilora",
        "channels:",
        *(f"  - {channel}" for channel in table["channels"]),
        "dependencies:",
    ]
    lines += [f"  - {package}" for package in [*conda, "pip"]] + ["  - pip:"]
    lines += [f"      - {package}" for package in [*by_pip, "-e ."]]
    return HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "environment.yml").write_text(environment(pyproject()), encoding="utf-8")

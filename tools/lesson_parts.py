"""The two cells that every lesson has alike: its badges and its setup cell.

How it works: a markdown cell tagged `badges` and the first code cell, tagged `setup`, are written
from here and from the one repository address in pyproject.toml.
`python -m tools.run_notebooks --parts` rewrites them; the tests compare.
"""

from __future__ import annotations

import sys

from .project import repository, tag

SETUP = """\
# Setup, the same in every lesson. In a clone of the course it only imports; on Colab and Kaggle it fetches the course first.
import importlib.util, os, subprocess, sys

if importlib.util.find_spec("minilora") is None:
    course = os.path.abspath(".." if os.path.isdir("../minilora") else "minilora-course")
    if not os.path.isdir(course):
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", "--branch", "{tag}", "{repository}", course], check=True)
    sys.path.insert(0, course)
    os.environ["PYTHONPATH"] = course
    if importlib.util.find_spec("bitsandbytes") is None:  # --no-deps: the torch and NumPy that are here stay as they are
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "bitsandbytes"], check=True)

import matplotlib.pyplot as plt
import numpy as np
import torch

import minilora
from minilora.course import check

device = "cuda" if torch.cuda.is_available() else "cpu"
print(f"minilora {{minilora.__version__}} is ready")"""


def setup() -> str:
    """The source of the first code cell."""
    return SETUP.format(tag=tag(), repository=repository())


def badges(name: str) -> str:
    """The markdown of the badges cell of notebooks/`name`."""
    address, version = repository(), tag()
    place = address.removeprefix("https://github.com/")
    path = f"notebooks/{name}"
    colab = f"https://colab.research.google.com/github/{place}/blob/{version}/{path}"
    kaggle = f"https://kaggle.com/kernels/welcome?src={address}/blob/{version}/{path}"
    binder = f"https://mybinder.org/v2/gh/{place}/{version}?labpath={path.replace('/', '%2F')}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
        f"[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]({kaggle})\n"
        f"[![Launch Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def tags(cell: dict) -> list[str]:
    """The tags of a notebook cell."""
    return list(cell["metadata"].get("tags", []))


def refresh(notebook: dict, name: str) -> None:
    """Put the current badges and setup into `notebook`, in place. Says on stderr if it has no cells
    for them.
    """
    for wanted, source in (("badges", badges(name)), ("setup", setup())):
        found = [cell for cell in notebook["cells"] if wanted in tags(cell)]
        for cell in found:
            cell["source"] = source
        if not found:
            print(f"{name}: no cell is tagged {wanted}", file=sys.stderr)

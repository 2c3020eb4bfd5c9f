"""The buttons that open a lesson on Colab, Kaggle and Binder, and what stands in their place while
the repository has no address.
"""

from __future__ import annotations

from . import project

COLAB = "https://colab.research.google.com"
COLAB_BADGE = f"{COLAB}/assets/colab-badge.svg"
KAGGLE_BADGE = "https://kaggle.com/static/images/open-in-kaggle.svg"
BINDER_BADGE = "https://mybinder.org/badge_logo.svg"
NO_BUTTONS = "*Colab, Kaggle, Binder: the buttons appear once the repository has an address.*"


def _place() -> str:
    return project.repository().removeprefix("https://github.com/")


def colab(name: str) -> str:
    """The address at which Colab opens notebooks/`name`."""
    return f"{COLAB}/github/{_place()}/blob/{project.tag()}/notebooks/{name}"


def kaggle(name: str) -> str:
    """The address at which Kaggle opens it."""
    path = f"{project.repository()}/blob/{project.tag()}/notebooks/{name}"
    return f"https://kaggle.com/kernels/welcome?src={path}"


def binder(name: str) -> str:
    """The address at which Binder opens it."""
    return f"https://mybinder.org/v2/gh/{_place()}/{project.tag()}?labpath=notebooks%2F{name}"


def on_colab(name: str) -> str:
    """The button of Colab alone."""
    return f"[![Open in Colab]({COLAB_BADGE})]({colab(name)})"


def all_three(name: str) -> str:
    """A button for each cloud, or the line without an address."""
    if not project.published():
        return NO_BUTTONS
    return (
        f"{on_colab(name)}\n"
        f"[![Open in Kaggle]({KAGGLE_BADGE})]({kaggle(name)})\n"
        f"[![Launch Binder]({BINDER_BADGE})]({binder(name)})"
    )

"""A photograph as a matrix: the sample that matplotlib ships, grey, so that a lesson needs no
download.

What it replaces: a picture file in the repository, or one fetched from somewhere.
How it works: matplotlib comes with a portrait of the computer scientist Grace Hopper (US Navy,
public domain), 512 × 606 in colour. Pillow turns it grey, averages 2 × 2 pixels into one, and the
last three rows are cut: 300 rows, 256 columns, values from 0 (black) to 255.
What it leaves out: colour, which is three such matrices.
Where numerics differ: grey is Pillow's 0.299 R + 0.587 G + 0.114 B, and both steps round to whole
numbers; another JPEG decoder may differ by one.
"""

from __future__ import annotations

import functools

import numpy as np

from ..errors import MiniloraError

NAME = "grace_hopper.jpg"

SHAPE = (300, 256)


@functools.cache
def _pixels() -> np.ndarray:
    try:
        from matplotlib import cbook
        from PIL import Image

        with cbook.get_sample_data(NAME) as file:
            grey = Image.open(file).convert("L").reduce(2)
    except (ImportError, OSError) as error:
        raise MiniloraError(
            f"matplotlib's sample {NAME} cannot be read ({error}); install the pip or conda "
            "package, which holds it"
        ) from error
    return np.asarray(grey, dtype=np.float64)[: SHAPE[0], : SHAPE[1]]


def photograph() -> np.ndarray:
    """The portrait as a matrix (300, 256) of float64 between 0 and 255; a new array at each
    call.
    """
    return _pixels().copy()

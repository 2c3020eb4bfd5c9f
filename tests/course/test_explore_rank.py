"""The numbers behind the sliders of lesson 07, and the photograph they are about."""

import base64
import io
import re

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from minilora import lowrank
from minilora.course import photograph
from minilora.course.explore import matrix_size, photo
from minilora.errors import MiniloraError


def test_the_photograph_is_matplotlibs_sample_in_grey():
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        colour = np.asarray(Image.open(file), dtype=float)
    grey = colour @ [0.299, 0.587, 0.114]
    blocks = grey[:600, :512].reshape(300, 2, 256, 2).mean(axis=(1, 3))
    shot = photograph.photograph()
    assert shot.shape == photograph.SHAPE and np.abs(shot - blocks).max() <= 1.01  # two roundings
    shot[:] = 0
    assert photograph.photograph().any(), "callers get an array of their own"


def test_a_missing_sample_is_named(monkeypatch):
    def gone(name):
        raise FileNotFoundError(name)

    monkeypatch.setattr(cbook, "get_sample_data", gone)
    photograph._pixels.cache_clear()
    with pytest.raises(MiniloraError, match="grace_hopper.jpg cannot be read .* install"):
        photograph.photograph()
    photograph._pixels.cache_clear()


@pytest.mark.parametrize("rank", [1, 20, 150])
def test_the_error_shown_is_the_one_foretold(rank):
    found, shot = photo.compute(rank), photograph.photograph()
    assert (
        np.allclose(found["near"], lowrank.truncate(shot, rank))
        and np.linalg.matrix_rank(found["near"]) == rank
    )
    assert found["error"] == pytest.approx(
        lowrank.predicted_error(shot, rank) / np.linalg.norm(shot), rel=1e-9
    )
    assert (
        found["foretold"] == pytest.approx(found["error"], rel=1e-9)
        and found["numbers"] == 556 * rank
    )


def test_the_picture_shown_is_the_approximation():
    found = photo.compute(30)
    first = re.search(r"data:image/png;base64,([^\"]+)", photo.render(found)[1])[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first))), dtype=float)
    assert np.abs(pixels - np.clip(found["near"], 0, 255)).max() <= 0.5


def test_the_pictures_say_when_nothing_is_saved():
    assert (
        "nothing is saved" not in photo.render(photo.compute(138))[0]
        and "nothing is saved" in photo.render(photo.compute(139))[0]
    )
    said = {
        rank: matrix_size.render(matrix_size.compute(100, 100, rank))[0] for rank in (2, 50, 51)
    }
    assert "= 400 numbers instead of 10,000, 96.0 % fewer" in said[2]
    assert "just as many" in said[50] and "2.0 % more: nothing is saved" in said[51]
    assert (
        "(rank 64 is more than such a matrix can have)"
        in matrix_size.render(matrix_size.compute(10, 4096, 64))[0]
    )


def test_twice_the_side_is_half_the_share():
    found = matrix_size.compute(256, 1024, 8)
    assert (found["numbers"], found["of"], found["break even"]) == (8 * 1280, 256 * 1024, 204)
    assert list(found["squares"].values()) == [200 * 8 / side for side in matrix_size.SQUARES]

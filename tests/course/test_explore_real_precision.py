"""The slider over the real model's losses says what stands in the table of runs."""

import json

import pytest

from minilora.course.explore import real_precision
from minilora.course.explore.real_precision import AFTER, BEFORE, CODES, TOP, compute, render
from minilora.system.files import results_folder


@pytest.fixture(scope="module")
def table():
    points = json.loads((results_folder() / "real-precision.json").read_text())["points"]
    return {point["key"]: point for point in points}


@pytest.mark.parametrize("code", CODES)
def test_a_precision_stands_beside_fp32(table, code):
    told, _ = render(compute(code, BEFORE))
    loss, plain = (table[f"loss/{each}"]["text_loss"] for each in (code, "fp32"))
    assert f"loss {loss:.3f}, {loss - plain:+.3f} beside fp32 as quantized" in told
    assert f"{table[f'loss/{code}']['bits']:.3g} bits a weight" in told


@pytest.mark.parametrize("code", ["nf4", "int3"])
def test_trained_stands_beside_trained(table, code):
    told, _ = render(compute(code, AFTER))
    lost = table[f"loss/{code}"]["text_loss"] - table["loss/fp32"]["text_loss"]
    left = table[f"won/{code}"]["text_loss"] - table["won/fp32"]["text_loss"]
    assert f"{100 * (1 - left / lost):.0f} % of that is won back" in told


def test_what_was_not_trained_is_said_and_what_is_off_the_scale_is_marked(table):
    assert "not trained" in render(compute("int2", AFTER))[0]
    assert table["loss/int2"]["text_loss"] > TOP
    _, drawn = render(compute("int2", BEFORE))
    assert drawn.count("…") == 1


def test_all_weights_of_the_linear_layers_are_counted():
    hidden, keys, inner, layers = 576, 192, 1536, 30  # of SmolLM2-135M
    each = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    assert real_precision.WEIGHTS == layers * each

"""The drawing kit of the sliders: pure, quick, accessible."""

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from minilora.course.explore import palette, picture, svg
from minilora.course.explore.widget import Explorer, Slider, view


def _parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(markup)


def test_bars_carry_their_numbers_and_share_a_scale():
    root = _parsed(svg.bars([1, 2], ["one", "<two>"], top=4, unit="GB"))
    words = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["one", "1 GB", "<two>", "2 GB"]
    widths = [float(r.get("width")) for r in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)


def test_bars_refuse_unlabelled_values():
    with pytest.raises(ValueError, match="2 values but 1 labels"):
        svg.bars([1, 2], ["one"])


@pytest.mark.parametrize("values", [[], [0.0], [float("nan"), 1], [float("inf")], [-3, 2]])
def test_bars_survive_odd_values(values):
    _parsed(svg.bars(values, ["x"] * len(values)))


def test_lines_differ_by_dash_and_by_name_not_by_colour_alone():
    root = _parsed(svg.lines({f"s{i}": ([0, 1], [i, i + 1]) for i in range(8)}, mark=(0.5, 3)))
    drawn = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len({line.get("stroke-dasharray") for line in drawn}) == 8
    assert {f"s{i}" for i in range(8)} <= {
        t.text for t in root.iter("{http://www.w3.org/2000/svg}text")
    }


@pytest.mark.parametrize(
    "series",
    [
        {},
        {"a": ([], [])},
        {"a": ([1], [1])},
        {"a": ([0, 1], [float("nan"), 2])},
        {"a": ([1, 1], [2, 2])},
    ],
)
def test_lines_survive_odd_series(series):
    markup = svg.lines(series)
    _parsed(markup)
    assert "nan" not in markup


def test_labels_at_the_ends_of_lines_do_not_collide():
    root = _parsed(svg.lines({f"s{i}": ([0, 1], [0, 1]) for i in range(5)}))
    rows = sorted(
        float(t.get("y"))
        for t in root.iter("{http://www.w3.org/2000/svg}text")
        if (t.text or "").startswith("s")
    )
    assert all(b - a >= 14 for a, b in zip(rows, rows[1:]))


def test_a_grid_writes_every_number_in_readable_ink():
    root = _parsed(svg.grid(np.linspace(-1, 1, 24).reshape(4, 6), title="W"))
    cells = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    inks = [t for t in root.iter("{http://www.w3.org/2000/svg}text") if t.text != "W"]
    assert len(cells) == len(inks) == 24
    for cell, ink in zip(cells, inks):
        assert (
            _contrast(
                _rgb(cell.get("fill")), (0, 0, 0) if ink.get("fill") == "#000" else (255, 255, 255)
            )
            >= 4.5
        )


def _rgb(text: str) -> tuple:
    return tuple(int(c) for c in re.findall(r"\d+", text))


def _contrast(first: tuple, second: tuple) -> float:
    """WCAG 2 contrast ratio of two sRGB colours."""

    def light(colour):
        linear = [
            c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4
            for c in colour
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(first), light(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_plain_text_takes_the_pages_colour():
    assert 'fill="currentColor"' in svg.text(0, 0, "x")


def test_the_plain_colour_map_grows_lighter_all_along():
    light = palette.colours(np.linspace(0, 1, 64), 0, 1, "plain").astype(float) @ [
        0.2126,
        0.7152,
        0.0722,
    ]
    assert (np.diff(light) >= -0.6).all() and light[-1] - light[0] > 150


def test_the_signed_colour_map_is_white_at_zero_and_grey_for_nan():
    drawn = palette.colours(np.array([[0.0, np.nan]]), -1, 1)
    assert drawn[0, 0].tolist() == [247, 247, 247] and tuple(drawn[0, 1]) == palette.MISSING


def test_a_matrix_becomes_a_png_with_a_description():
    markup = picture.matrix(np.eye(8), 'identity "I"')
    data = base64.b64decode(re.search(r"base64,([^\"]+)", markup).group(1))
    assert Image.open(io.BytesIO(data)).size == (8, 8)
    assert 'alt="identity &quot;I&quot;"' in markup
    with pytest.raises(ValueError, match="alt text"):
        picture.image(np.zeros((2, 2)), " ")


def _explorer() -> Explorer:
    return Explorer(
        "size",
        lambda rank, kind: rank,
        lambda n: (f"{n} < 3 & so on", svg.bars([n], ["n"])),
        [
            Slider("rank", range(1, 5), 2, "rank r"),
            Slider("kind", ["nf4", "int4"], "nf4"),
        ],
    )


def test_a_view_says_its_state_to_machines_and_to_ears():
    shown = _explorer().html(rank=3)
    assert 'data-rank="3"' in shown and 'data-kind="nf4"' in shown and 'role="img"' in shown
    assert 'aria-label="3 &lt; 3 &amp; so on"' in shown
    assert 'data-learning-rate="0.1"' in view({"learning_rate": 0.1}, "", "x")


def test_states_cover_every_position_of_every_slider():
    states = list(_explorer().states())
    assert {s["rank"] for s in states} == {1, 2, 3, 4} and {s["kind"] for s in states} == {
        "nf4",
        "int4",
    }
    assert {"rank": 4, "kind": "int4"} in states


@pytest.mark.parametrize(
    "values, start, kind",
    [
        (range(1, 9), 2, "IntSlider"),
        ([2, 4, 6], 4, "IntSlider"),
        ([0.0, 0.1, 0.2, 0.3], 0.1, "FloatSlider"),
        ([1, 2, 4, 8], 4, "SelectionSlider"),
        (["q", "v"], "q", "SelectionSlider"),
        ([5], 5, "SelectionSlider"),
    ],
)
def test_the_control_fits_the_positions(values, start, kind):
    control = Slider("x", values, start).widget()
    assert type(control).__name__ == kind and control.value == start


def test_a_start_off_the_positions_is_refused():
    with pytest.raises(ValueError, match="start 9 is not among"):
        Slider("x", range(3), 9)


def test_moving_a_slider_redraws_the_one_picture():
    box = _explorer().show()
    rank, kind, shown = box.children
    rank.value = 4
    assert 'data-rank="4"' in shown.value
    kind.value = "int4"
    assert 'data-rank="4" data-kind="int4"' in shown.value


def test_a_float_slider_snaps_to_its_positions():
    explorer = Explorer(
        "f",
        lambda rate: rate,
        lambda rate: (f"{rate!r}", "<svg></svg>"),
        [Slider("rate", [0.0, 0.1, 0.2, 0.3], 0.1)],
    )
    control, shown = explorer.show().children
    control.value = 0.1 + 0.2
    assert 'data-rate="0.3"' in shown.value


def test_a_still_is_text_and_svg_on_its_own_ground():
    still = _explorer().still(rank=4)
    assert repr(still) == "4 < 3 & so on" and "background:#fff" in still._repr_svg_()

"""The heat map that two sliders share."""

import re
import xml.etree.ElementTree as ElementTree

from minilora.course.explore.heat import heat


def drawn(**more):
    picture = heat(
        {("a", 1): 40.4, ("b", 2): 99.6},
        ["a", "b"],
        {1: "one", 2: "two"},
        ("b", 2),
        title="shares",
        **more,
    )
    return ElementTree.fromstring(picture), picture


def test_every_cell_says_its_number_and_a_hole_is_a_dash():
    root, _ = drawn()
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words == ["shares", "one", "two", "a", "40", "–", "b", "–", "100"]


def test_one_cell_is_ringed_and_lies_where_the_chosen_one_does():
    _, picture = drawn()
    rings = re.findall(r'<rect x="(\d+)" y="(\d+)"[^>]*fill="none"', picture)
    # one column to the right of 60, one row below 44, two pixels out
    assert rings == [("120", "72")]
    assert not re.search('fill="none"', heat({("a", 1): 1}, ["a"], {1: "one"}, None, title=""))


def test_lighter_is_more_and_notes_stand_below_the_number():
    _, picture = drawn(notes={("a", 1): "38–42"})
    paints = [sum(map(int, rgb)) for rgb in re.findall(r"rgb\((\d+),(\d+),(\d+)\)", picture)]
    assert paints[0] < paints[1] and "38–42" in picture
    # rows grow to hold the notes
    assert drawn(notes={("a", 1): "x"})[0].get("viewBox") != drawn()[0].get("viewBox")

"""Tables line up in a terminal and stay text elsewhere. More in tests/course/test_audit.py."""

from minilora.system.tables import Table


def test_wide_letters_and_marks_line_up():
    """A wide letter takes two columns, a mark on the letter before it none."""
    table = Table(["name", "GB"], [["日本", "1.5"], ["e\u0301a", "120.0"], ["abcde", "–"]])
    assert str(table).splitlines() == [
        "name      GB",
        "日本     1.5",
        "e\u0301a     120.0",
        "abcde      –",
    ]


def test_numbers_stay_as_they_were_written():
    """And what only looks like one stands to the left."""
    rows = [["1e-5", "1.50", "nan", ""], ["≈ 2 GB", "10.00", "0x1", ""]]
    table = Table(["a", "b", "c", "d"], rows)
    assert str(table).splitlines() == [
        "     a      b  c    d",
        "  1e-5   1.50  nan",
        "≈ 2 GB  10.00  0x1",
    ]
    assert str(Table(["4", "8"], [["1.50", "2.00"]])).splitlines() == ["   4     8", "1.50  2.00"]
    assert str(Table(["only", "titles"], [])) == "only  titles"


def test_html_says_nothing_but_text():
    html = Table(["<i>", "n"], [['<script>"&', "1"]], "<b>")._repr_html_()
    assert "&lt;i&gt;" in html and "&lt;script&gt;&quot;&amp;" in html and "&lt;b&gt;" in html
    assert "<script" not in html and "<b>" not in html
    assert html.count("text-align:right") == 2

"""The audit's verdicts: what a printed number allows, what the table shows, and how claims are read
from executed notebooks.
"""

import json
import math
import re

import pytest

from minilora.course.audit import claims, numbers
from minilora.errors import MiniloraError
from minilora.system.tables import Table
from tools.project import ROOT

CASES = [
    # printed, computed, verdict
    ("31.4", 31.406, "reproduces"),
    ("31.4", 31.45, "reproduces"),
    ("31.4", 31.35, "reproduces"),
    ("31.4", 31.46, "rounds"),
    ("31.4", 31.34, "rounds"),
    ("31.4", 32.5, "does not"),
    ("41.3", 41.25, "reproduces"),
    ("0.285", 0.2855, "reproduces"),
    ("2218", 2218.75, "rounds"),
    ("60", 60.4, "reproduces"),
    ("60", 64.0, "does not"),
    ("780", 784.9, "reproduces"),
    ("350", 355.9, "rounds"),
    ("10,000", 9_600, "reproduces"),
    ("10,000", 9_272, "does not"),
    ("175,255.8", 175_221.8, "rounds"),
    ("0.35", 0.393216, "does not"),
    ("3.14E+23", 3.1428e23, "reproduces"),
    ("5.76e23", 5.04e23, "does not"),
    (".373", 0.373047, "reproduces"),
    ("5", 6.0, "does not"),
    ("−1.0", -1.04, "reproduces"),
    ("4", math.nan, "does not"),
    ("4", math.inf, "does not"),
]


@pytest.mark.parametrize("printed, computed, wanted", CASES)
def test_a_verdict_follows_the_printed_digits(printed, computed, wanted):
    assert numbers.verdict(printed, computed) == wanted


@pytest.mark.parametrize("printed", ["31.4", "175,255.8", "10,000", "780", "3.14E+23", "0.285"])
def test_a_planted_wrong_number_does_not_pass(printed):
    right = float(numbers.read_printed(printed)[0])
    assert numbers.verdict(printed, right) == "reproduces"
    for factor in (0.9, 1.1, 2, 1024 / 1000 * 1.1, 0.5, -1):
        assert numbers.verdict(printed, right * factor) == "does not"


@pytest.mark.parametrize(
    "text, value, unit",
    [
        ("31.4", 31.4, 0.1),
        ("10,000", 10_000, 1000),
        ("780", 780, 10),
        ("700", 700, 10),
        ("60", 60, 1),
        ("5", 5, 1),
        ("1.2e3", 1200, 100),
        ("0", 0, 1),
    ],
)
def test_the_unit_is_that_of_the_last_digit(text, value, unit):
    assert tuple(map(float, numbers.read_printed(text))) == (value, unit)


@pytest.mark.parametrize("text", ["", "about 5", "1,00", "5 GB", "."])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(MiniloraError, match="no printed number"):
        numbers.read_printed(text)


def test_a_book_keeps_each_number_once_and_wants_reasons():
    book = numbers.Book()
    book.add("ZeRO", "figure 1", "a model", "120", "GB", 119.9)
    book.add("ZeRO", "figure 1", "a model", "120", "GB", 120)
    with pytest.raises(MiniloraError, match="say why"):
        book.add("ZeRO", "figure 1", "another", "16.6", "GB", 20)
    book.add("ZeRO", "figure 1", "another", "16.6", "GB", 20, "an <example>")
    assert len(book) == 2 and [f.verdict for f in book.findings] == ["reproduces", "does not"]
    table = book.table("ZeRO")
    assert "✗ does not" in str(table) and "of 2 numbers 1 ✓ reproduces, 1 ✗ does not" in str(table)
    assert "&lt;example&gt;" in table._repr_html_() and "<example>" not in table._repr_html_()
    assert book.tally().rows[-1] == ["together", "1", "0", "1", "2"]
    assert (
        book.audit(
            "GPT-3", [("D.1", "a", "3.14", "", 3.1428), ("D.1", "b", "2", "", 3, "why")]
        ).rows[1][-2:]
        == ["✗ does not", "why"]
        and len(book) == 4
    )
    book = numbers.Book()
    book.audit("ZeRO", [("figure 1", "a model", "120", "GB", 120)])
    with pytest.raises(MiniloraError, match="there is ZeRO"):
        book.table("GPipe")


@pytest.mark.parametrize(
    "value, text",
    [
        (31.406, "31.41"),
        (2218.75, "2,219"),
        (3.1428e23, "3.143E+23"),
        (0.373047, "0.373"),
        (120.0, "120"),
        (1234567, "1,234,567"),
    ],
)
def test_numbers_are_shown_with_four_digits(value, text):
    assert numbers.shown(value) == text


# ------------------------------------------------------------------------------------------- claims


def notebook(folder, name, cells, count=1):
    made = [
        {
            "cell_type": "code",
            "execution_count": count,
            "metadata": {"tags": [tag]},
            "source": "",
            "outputs": [{"output_type": "stream", "text": text}],
        }
        for tag, text in cells
    ]
    (folder / name).write_text(json.dumps({"cells": made}), encoding="utf-8")


def test_verdicts_are_read_from_the_tagged_cells(tmp_path):
    notebook(
        tmp_path,
        "08-lora.ipynb",
        [
            ("claim-C27", ["a line\n", "C27, an identity: holds, exactly\n"]),
            ("claim-C27", "C27: a + b: holds. More: holds if you look;\nwhich goes on below\n"),
            ("claim-C35", "no verdict in the right form\n"),
            ("setup", "C33, in a cell without its tag: holds\n"),
            ("claim-C28", "C29, another claim: holds\n"),
        ],
    )
    found = claims.gather(tmp_path)
    assert found["C27"] == {"08": ["holds, exactly", "holds. More: holds if you look"]}
    assert (
        found["C35"] == {"08": []} and found["C33"] == {"08": None} and found["C28"] == {"08": []}
    )
    assert found["C11"] == {"03": None, "15": None}
    notebook(
        tmp_path, "07-low-rank.ipynb", [("claim-C23", ["C23, not run yet: holds\n"])], count=None
    )
    assert claims.gather(tmp_path)["C23"] == {"07": None}
    text = str(claims.table(found))
    assert (
        "lesson 08: run, see there" in text
        and "lesson 03, to come · lesson 15, to come" in text
        and "1 of 48 claims have a verdict (1 holds)" in text
    )


def test_the_running_lesson_speaks_for_itself(tmp_path, capsys):
    notebook(tmp_path, "15-audit.ipynb", [("claim-C32", "C32, old: holds\n")])
    here = claims.Verdicts("15")
    here.say("C32", "no accounting fits", "does not hold")
    assert capsys.readouterr().out == "C32, no accounting fits: does not hold\n"
    assert claims.gather(tmp_path)["C32"] == {"15": ["holds"]}
    assert claims.gather(tmp_path, here)["C32"] == {"15": ["does not hold"]}
    for identity, verdict, told in (
        ("C33", "holds", "no claim of lesson 15"),
        ("C99", "holds", "no claim"),
        ("C32", "true", "begin with one of"),
    ):
        with pytest.raises(MiniloraError, match=told):
            here.say(identity, "words", verdict)


def test_every_claim_is_there_and_none_said_twice():
    assert list(claims.CLAIMS) == [f"C{n:02d}" for n in range(1, 49)]
    said = [claim.says for claim in claims.CLAIMS.values()]
    assert len(set(said)) == 48 and max(map(len, said)) <= 120
    for claim in claims.CLAIMS.values():
        assert claim.lessons and all(
            re.fullmatch(r"0[1-9]|1[0-5]", lesson) for lesson in claim.lessons
        )


def test_lessons_that_are_there_have_told_their_verdicts():
    """In the committed notebooks, whoever runs a claim says its verdict in the form that the table
    reads.
    """
    found = claims.gather(ROOT / "notebooks")
    silent = [
        (claim, lesson)
        for claim, lessons in found.items()
        for lesson, said in lessons.items()
        if said == []
    ]
    assert not silent, "print a line `Cxx, …: verdict` in the claim's tagged cell"
    assert any(said for lessons in found.values() for said in lessons.values())


# ------------------------------------------------------------------------------------------- tables


def test_a_table_lines_up_and_escapes():
    table = Table(["what", "GB"], [["α <b>", "1.5"], ["a|b", "120.0"]], "a note")
    assert str(table).splitlines() == ["what      GB", "α <b>    1.5", "a|b    120.0", "a note"]
    assert "<b>" not in table._repr_html_() and "text-align:right" in table._repr_html_()
    assert (
        table.markdown().splitlines()[:3] == ["| what | GB |", "| --- | ---: |", "| α <b> | 1.5 |"]
        and r"a\|b" in table.markdown()
    )
    with pytest.raises(ValueError, match="3 cells under 2 columns"):
        Table(["a", "b"], [["1", "2", "3"]])

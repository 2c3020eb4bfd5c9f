"""Lesson 15 audits enough numbers, computes each, and its committed page is what its cells give."""

import contextlib
import html
import io
import re

import matplotlib
import pytest
from course import code_cells, output_text, tagged

from minilora.course.audit import numbers
from minilora.course.audit.claims import CLAIMS
from tools.project import ROOT

matplotlib.use("Agg")
LESSON = ROOT / "notebooks" / "15-audit-the-papers.ipynb"


@pytest.fixture(scope="module")
def names():
    """What the lesson's cells define, up to the last number that is audited; the solutions stand in
    for the learner.
    """
    found: dict = {"display": lambda *_: None}
    cells = code_cells(LESSON)
    last = max(i for i, cell in enumerate(cells) if re.search(r"book\.(audit|add)\(", cell.source))
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in cells[: last + 1]:
            if "check" not in cell.metadata.get("tags", []):
                exec(cell.source, found)
    return found


def test_at_least_forty_distinct_numbers_are_audited(names):
    findings = names["book"].findings
    assert len({(f.source, f.place, f.what) for f in findings}) == len(findings) >= 100
    assert len({(f.source, f.printed, f.unit) for f in findings}) >= 100, (
        "the same number under many names"
    )
    sources = {f.source.split(",")[0] for f in findings}
    assert {
        "LoRA",
        "QLoRA",
        "LLM.int8()",
        "8-bit optimizers",
        "ZeRO",
        "GPipe",
        "Chinchilla",
        "Rooflines",
    } <= sources and any("Megatron" in s for s in sources)
    for finding in findings:
        assert finding.place and (finding.computed > 0 or finding.printed.startswith("-")), finding


def test_every_number_is_computed_and_none_typed(names):
    """A number whose computed value is the printed one, digit for digit, because it was typed twice
    would teach nothing.
    """
    source = "\n".join(cell.source for cell in code_cells(LESSON))
    for finding in names["book"].findings:
        typed = rf'"{re.escape(finding.printed)}", "[^"]*", {re.escape(finding.printed)}[,)]'
        assert not re.search(typed, source), f"{finding.what} is typed, not computed"


def test_a_planted_wrong_number_is_found(names):
    """The lesson's own inputs against each number made a tenth larger and a third smaller."""
    for finding in names["book"].findings:
        assert finding.verdict in numbers.SIGNS
        if (
            finding.verdict == "reproduces"
            and len(re.sub(r"\D", "", finding.printed).strip("0")) > 1
        ):
            for factor in (1.11, 0.67):
                assert numbers.verdict(finding.printed, finding.computed * factor) == "does not", (
                    finding
                )


def test_all_three_verdicts_occur_and_what_is_off_has_a_reason(names):
    findings = names["book"].findings
    assert {f.verdict for f in findings} == set(numbers.SIGNS)
    assert all(f.why for f in findings if f.verdict != "reproduces")


def test_the_page_shows_every_audited_number(names):
    page = html.unescape("\n".join(output_text(cell) for cell in code_cells(LESSON)))
    missing = [
        f.what for f in names["book"].findings if f.what not in page or f.printed not in page
    ]
    assert not missing


def test_the_claims_table_has_every_claim():
    (table,) = [
        html.unescape(output_text(cell))
        for cell in code_cells(LESSON)
        if "claims.table" in cell.source
    ]
    assert all(claim.id in table and claim.says in table for claim in CLAIMS.values())
    own = [claim for claim in CLAIMS.values() if "15" in claim.lessons]
    assert len(own) == 9 and not [
        claim.id for claim in own if re.search(rf"{claim.id} .*lesson 15, to come", table)
    ]
    for claim in own:
        assert tagged(LESSON, f"claim-{claim.id}")

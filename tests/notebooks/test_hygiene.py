"""What every committed notebook must be: executed, clean, small, the same at its start. By glob, so
that none is forgotten.
"""

import ast
import json
import re

import nbformat
import pytest
from course import CLAIMS, LATER, VERDICTS, code_cells, number, output_text, read, tagged

from tools import lesson_parts
from tools.lesson_parts import tags
from tools.project import ROOT, lessons, repository

KNOWN_TAGS = {
    "badges",
    "setup",
    "slider",
    "exercise",
    "check",
    "solution",
    "timing",
    "raises-exception",
    "nbval-check-output",
    "nbval-skip",
    "gpu",
    "traps",
}


@pytest.fixture(params=lessons(), ids=lambda path: path.stem)
def lesson(request):
    return request.param


def test_lessons_are_numbered_once():
    names = [path.name for path in lessons()]
    assert all(re.fullmatch(r"\d\d-[a-z0-9-]+\.ipynb", name) for name in names)
    assert len({name[:2] for name in names}) == len(names)
    assert {name[:2] for name in names} <= {f"{n:02d}" for n in range(16)}


def test_it_is_a_valid_notebook_with_ids(lesson):
    notebook = read(lesson)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def test_its_metadata_is_plain(lesson):
    """No widget states, no versions of somebody's Python, no trust or timing stamps."""
    notebook = read(lesson)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "jupyter", "cellView"}, cell.id
        unknown = {
            tag
            for tag in tags(cell)
            if tag not in KNOWN_TAGS
            and not re.fullmatch(r"claim-C\d\d|(trap|caught)-[a-z0-9-]+", tag)
        }
        assert not unknown, f"cell {cell.id}: unknown tags {unknown}"


def test_it_is_executed_from_top_to_bottom(lesson):
    assert [cell.execution_count for cell in code_cells(lesson)] == list(
        range(1, len(code_cells(lesson)) + 1)
    )


def test_it_is_small(lesson):
    assert lesson.stat().st_size < 500_000
    assert 30 <= len(read(lesson).cells) <= 60


def test_what_comments_say_is_seen_without_scrolling(lesson):
    """JupyterLab does not wrap code: on a laptop's page what stands behind some 120 letters is cut
    off.
    """
    for cell in code_cells(lesson):
        if tags(cell) != ["setup"]:
            long = [
                line
                for line in cell.source.splitlines()
                if line.lstrip().startswith("#") and len(line) > 118
            ]
            assert not long, (cell.id, long)


def test_it_starts_with_a_title_badges_and_the_setup(lesson):
    notebook = read(lesson)
    assert notebook.cells[0].cell_type == "markdown" and re.match(r"# \S", notebook.cells[0].source)
    (badges,) = tagged(lesson, "badges")
    assert badges.source == lesson_parts.badges(lesson.name), "run `make parts`"
    first = code_cells(lesson)[0]
    assert tags(first) == ["setup"] and first.source == lesson_parts.setup(), "run `make parts`"
    assert len(tagged(lesson, "setup")) == 1


def test_the_repository_address_is_written_only_where_parts_come_from(lesson):
    owner = repository().removeprefix("https://github.com/")
    for cell in read(lesson).cells:
        if not {"badges", "setup"} & set(tags(cell)):
            assert owner not in cell.source, (
                f"cell {cell.id} names the repository; link to files by relative paths"
            )


def test_relative_links_lead_somewhere(lesson):
    for cell in read(lesson).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(
                r"\]\((?!https?:|#|attachment:|mailto:)([^)#\s]+)", cell.source
            ):
                assert (lesson.parent / target).exists(), f"cell {cell.id} links to {target}"


def test_outputs_are_static_and_name_no_machine(lesson):
    for cell in code_cells(lesson):
        for output in cell.outputs:
            assert output.output_type != "error" or "raises-exception" in tags(cell), (
                f"cell {cell.id} stores an error"
            )
            assert output.get("name") != "stderr", (
                f"cell {cell.id} stores warnings or a progress bar"
            )
            assert not any("widget" in kind for kind in output.get("data", {})), (
                f"cell {cell.id} stores a widget"
            )
        told = re.sub(r'data:image/[^"]+', "", output_text(cell))
        for what, pattern in {
            "a memory address": r"\b0x[0-9a-f]{8,}\b",
            "a folder of some machine": r"(?:/home/|/Users/|/tmp/|/roo"
            + r"t/|/wor"
            + r"k/|[A-Z]:\\\\)",
            "a network address": r"\b(?:127\.0\.0\.1|localhost)\b",
            "a progress bar": r"\d+%\|.*\||\bit/s\]|\r",
        }.items():
            assert not re.search(pattern, told), f"cell {cell.id} prints {what}"


def test_cells_that_measure_time_say_so_and_are_never_compared(lesson):
    clock = re.compile(r"perf_counter|time\.time\(|timeit|%%time|process_time|monotonic")
    for cell in code_cells(lesson):
        if clock.search(cell.source):
            assert "timing" in tags(cell), f"cell {cell.id} measures time; tag it `timing`"
        assert not {"timing", "nbval-check-output"} <= set(tags(cell)), cell.id


def test_something_is_compared(lesson):
    """nbval-lax compares only tagged cells; a lesson needs golden values or asserts."""
    golden = [cell for cell in code_cells(lesson) if "nbval-check-output" in tags(cell)]
    asserts = [
        cell
        for cell in code_cells(lesson)
        if any(isinstance(node, ast.Assert) for node in _nodes(cell))
    ]
    assert golden and asserts


def _nodes(cell):
    lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    return ast.walk(ast.parse("\n".join(lines)))


def test_claims_are_the_courses_and_end_in_a_verdict(lesson):
    for cell in read(lesson).cells:
        for tag in tags(cell):
            if claim := re.fullmatch(r"claim-(C\d\d)", tag):
                assert claim[1] in CLAIMS, f"{claim[1]} is no claim of the course"
                assert number(lesson) in CLAIMS[claim[1]].split(), (
                    f"{claim[1]} belongs to lesson {CLAIMS[claim[1]]}"
                )
                assert cell.cell_type == "code"
    for claim in CLAIMS:
        cells = tagged(lesson, f"claim-{claim}")
        if cells:
            assert any(verdict in output_text(cells[-1]) for verdict in VERDICTS), (
                f"{claim}: its last cell ends in no verdict"
            )


def test_every_claim_of_a_lesson_is_run_in_it(lesson):
    run = {claim for claim in CLAIMS if tagged(lesson, f"claim-{claim}")}
    owed = {claim for claim, where in CLAIMS.items() if number(lesson) in where.split()}
    later = {claim for claim, where in LATER if where == number(lesson)}
    assert owed - run == later, "claims not run, against LATER in course.py"


def test_no_download_is_needed(lesson):
    for cell in code_cells(lesson):
        if "setup" not in tags(cell) and "gpu" not in tags(cell):
            assert not re.search(
                r"pip install|git clone|urlopen|requests\.get|wget |curl ", cell.source
            ), cell.id


def test_nothing_is_upgraded_on_colab():
    setup = lesson_parts.setup()
    assert "--no-deps" in setup and "--upgrade" not in setup and "-U" not in setup
    assert f'"--branch", "{lesson_parts.tag()}"' in setup


def test_the_file_is_written_as_the_tool_writes_it(lesson):
    """So that a diff of a lesson shows what changed, and nothing else."""
    text = lesson.read_text(encoding="utf-8")
    assert text == nbformat.writes(read(lesson), version=nbformat.NO_CONVERT).rstrip("\n") + "\n"
    assert json.loads(text)["cells"]


def test_the_readme_lists_every_lesson():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in lessons():
        assert f"](notebooks/{path.name})" in readme, (
            f"{path.name} is not in the README; run `make readme`"
        )

"""What every committed notebook must be: executed, clean, small, the same at its start. By glob, so
that none is forgotten.
"""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from course import CLAIMS, LATER, VERDICTS, code_cells, number, output_text, read, tagged

from minilora.course import ready
from tools import lesson_parts, project
from tools.course_table import TITLES
from tools.lesson_parts import tags
from tools.project import ROOT, lessons, repository

KNOWN_TAGS = {
    *lesson_parts.PARTS,
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
    written = [cell for cell in read(lesson).cells if "next" not in tags(cell)]
    assert 30 <= len(written) <= 60


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


def test_its_parts_stand_where_they_belong_and_are_not_stale(lesson):
    """A title, the badges, the first cell, and at the end the way onward; the map in lesson 00."""
    cells = read(lesson).cells
    assert cells[0].cell_type == "markdown" and re.match(r"# \S", cells[0].source)
    (badges,), (first,), (onward,) = (tagged(lesson, tag) for tag in ("badges", "setup", "next"))
    assert first is code_cells(lesson)[0] and onward is cells[-1]
    assert badges.cell_type == onward.cell_type == "markdown"
    assert len(tagged(lesson, "map")) == (number(lesson) == "00")
    for part, written in lesson_parts.PARTS.items():
        for cell in tagged(lesson, part):
            assert tags(cell) == [part] and cell.source == written(lesson.name), "run `make parts`"


def test_the_map_lists_the_files_that_are_there():
    """As lesson 00 is committed, without a look at what wrote it."""
    (table,) = tagged(lessons()[0], "map")
    linked = re.findall(r"^\| (\d\d) \| \[.+?\]\((.+?)\)", table.source, flags=re.M)
    to_come = re.findall(r"^\| (\d\d) \| .* \(to come\) \|", table.source, flags=re.M)
    assert linked == [(path.name[:2], path.name) for path in lessons()]
    assert sorted([*dict(linked), *to_come]) == [f"{n:02d}" for n in range(16)]


def test_each_lesson_opens_the_next_one():
    names = [path.name for path in lessons()]
    for path, after in zip(lessons(), [*names[1:], None]):
        (cell,) = tagged(path, "next")
        links = dict(re.findall(r"\[(.+?)\]\(([^)]+\.ipynb)\)", cell.source))
        assert [to for words, to in links.items() if words.startswith("Next: ")] == [after][
            : bool(after)
        ]
        assert links.get("Back to the start") == (None if path.name == names[0] else names[0])
        skipped = range(int(number(path)) + 1, int(after[:2]) if after else 16)
        assert all(f"{n:02d} (" in cell.source for n in skipped)


def test_parts_follow_the_files_and_the_address(monkeypatch):
    """What a lesson more or less, and a repository with an address, would change."""
    assert "Lesson 13 (distributed training) is to come" in _onward(
        monkeypatch, "12-fused-kernels", 14
    )
    assert _onward(monkeypatch, "12-fused-kernels", 13).startswith("[Next: 13 · distributed")
    assert "are to come" in _onward(monkeypatch, "10-qlora", 14)
    monkeypatch.undo()
    name = lessons()[1].name
    assert (
        lesson_parts.badges(name) == lesson_parts.NO_BUTTONS
        and 'ARCHIVE = ""' in lesson_parts.setup()
    )
    monkeypatch.setattr(project, "repository", lambda: "https://github.com/somebody/minilora")
    assert project.published()
    assert f"somebody/minilora/archive/refs/tags/{project.tag()}.zip" in lesson_parts.setup()
    colab = f"https://colab.research.google.com/github/somebody/minilora/blob/{project.tag()}"
    assert f"({colab}/notebooks/{name})" in lesson_parts.badges(name)
    assert f"({colab}/notebooks/{lessons()[2].name})" in lesson_parts.onward(name)
    assert f"({colab}/notebooks/{name})" in lesson_parts.course_map()


def _onward(monkeypatch, stem: str, after: int) -> str:
    """The way onward from a lesson, if the only other ones are 00 and number `after`."""
    stems = [f"{n:02d}-{title}" for n, title in enumerate(TITLES)]
    there = [Path(f"{each}.ipynb") for each in (stems[0], stem, stems[after])]
    monkeypatch.setattr(project, "lessons", lambda: there)
    return lesson_parts.onward(f"{stem}.ipynb")


def test_the_repository_address_is_written_only_where_parts_come_from(lesson):
    owner = repository().removeprefix("https://github.com/")
    for cell in read(lesson).cells:
        if not set(lesson_parts.PARTS) & set(tags(cell)):
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


def test_a_library_is_asked_for_before_its_first_use(lesson):
    """So that where it is missing the lesson says what to do, and other lessons do not ask."""
    asked: set[str] = set()
    for cell in code_cells(lesson):
        for node in _nodes(cell):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "ready.need":
                assert node.lineno == 1, f"cell {cell.id}: ask first"
                asked |= {name.value for name in node.args}
        for node in _nodes(cell):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {node.module.split(".")[0]}
            else:
                continue
            missed = names & set(ready.requirements("hub")) - asked
            assert not missed, f"cell {cell.id} imports {missed} without ready.need"


# Lessons that are still to be written anew, one idea to a cell and at most 100 columns. A lesson is
# taken off when it is; none is ever added.
WIDE = {
    "00-start-here",
    "01-gradient-descent",
    "02-next-token",
    "03-cost",
    "04-number-formats",
    "05-quantization",
    "06-int8",
    "07-low-rank",
    "08-lora",
    "09-many-adapters",
    "10-qlora",
    "15-audit-the-papers",
}
AT_FIRST = 13


def test_code_is_at_most_100_columns_wide_but_in_lessons_to_be_written_anew(lesson):
    if lesson.stem not in WIDE:
        long = [
            line for c in code_cells(lesson) for line in c.source.splitlines() if len(line) > 100
        ]
        assert not long


def test_the_lessons_to_be_written_anew_only_become_fewer():
    """And ruff looks at all others."""
    assert len(WIDE) <= AT_FIRST and WIDE <= {path.stem for path in lessons()}
    excluded = project.pyproject()["tool"]["ruff"]["extend-exclude"]
    assert sorted(excluded) == sorted(f"notebooks/{stem}.ipynb" for stem in WIDE)


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

"""Every exercise is proven: its solution passes, its stub waits, and at least three wrong answers
are called by their names.
"""

import ast
import contextlib
import io
import re

import matplotlib
import pytest
from course import EXERCISES, code_cells, number, output_text, read, tagged

from minilora.course import exercises
from minilora.course.check import judge
from tools.lesson_parts import tags
from tools.project import ROOT, lessons

matplotlib.use("Agg")
KNOWN = [exercise for n in range(16) for exercise in exercises.lesson(f"{n:02d}")]


def _triples(path) -> list[tuple]:
    """(stub, check, solution) of each exercise, in order."""
    return list(zip(tagged(path, "exercise"), tagged(path, "check"), tagged(path, "solution")))


ALL = [
    pytest.param(path, *cells, id=f"{path.stem}-{i}")
    for path in lessons()
    for i, cells in enumerate(_triples(path), start=1)
]


def _checked(check) -> tuple[str, str]:
    """The exercise's id and the name of the function that a check cell hands over."""
    last = ast.parse(check.source).body[-1]
    assert isinstance(last, ast.Expr) and isinstance(last.value, ast.Call), (
        "a check cell ends in its call, so that the verdict shows"
    )
    assert ast.unparse(last.value.func) == "check.exercise", (
        "a check cell calls check.exercise(id, function)"
    )
    identity, answer = last.value.args
    return identity.value, answer.id


@pytest.fixture(scope="module")
def setup_names():
    """What the setup cell defines; all that an exercise may use."""
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code_cells(lessons()[0])[0].source, names)
    return names


@pytest.mark.parametrize("path, stub, check, solution", ALL)
def test_the_stub_waits_and_the_solution_passes(path, stub, check, solution, setup_names):
    identity, name = _checked(check)
    names = dict(setup_names)
    exec(stub.source, names)
    task = exercises.find(identity)
    assert judge(task, names[name]).state == "waiting"
    exec(solution.source, names)
    verdict = judge(task, names[name])
    assert verdict.state == "done", verdict.message


@pytest.mark.slow
@pytest.mark.parametrize("task", KNOWN, ids=lambda task: task.id)
def test_wrong_answers_are_called_by_their_names(task):
    assert len(task.wrong) >= 3 and len({wrong.name for wrong in task.wrong}) == len(task.wrong)
    assert judge(task, task.reference).state == "done"
    for wrong in task.wrong:
        verdict = judge(task, wrong.answer)
        assert (verdict.state, verdict.mistake) == ("wrong", wrong.name), verdict.message
        assert wrong.hint in verdict.message and len(wrong.hint) > 15


@pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)
def test_a_lesson_has_its_exercises_in_four_cells(path):
    cells = read(path).cells
    marked = [
        tag for cell in cells for tag in tags(cell) if tag in ("exercise", "check", "solution")
    ]
    assert marked == ["exercise", "check", "solution"] * (len(marked) // 3)
    assert len(marked) // 3 >= EXERCISES[number(path)]
    used = [_checked(check)[0] for _, check, _ in _triples(path)]
    assert used == [exercise.id for exercise in exercises.lesson(number(path))], (
        "the lesson and its exercises file differ"
    )
    for stub in tagged(path, "exercise"):
        told = cells[cells.index(stub) - 1]
        assert told.cell_type == "markdown" and "<details>" in told.source, (
            f"{stub.id}: hints stand in <details> before the stub"
        )
        assert re.search(r"\bminutes?\b", told.source) and re.search(
            r"★|[Dd]ifficulty", told.source
        ), f"{stub.id}: difficulty and minutes"
        assert "NotImplementedError" in stub.source


@pytest.mark.parametrize("path, stub, check, solution", ALL)
def test_the_committed_page_shows_the_exercise_open(path, stub, check, solution):
    assert 'data-state="waiting"' in output_text(check)
    assert (
        solution.metadata.get("jupyter", {}).get("source_hidden") is True
        and solution.metadata.get("cellView") == "form"
    )


def test_no_exercise_is_without_a_lesson():
    files = {
        path.stem.removeprefix("lesson")
        for path in (ROOT / "minilora" / "course" / "exercises").glob("lesson*")
    }
    assert files <= {number(path) for path in lessons()}
    assert len({exercise.id for exercise in KNOWN}) == len(KNOWN)

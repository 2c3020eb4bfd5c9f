"""The traps stand in pairs of cells: `trap-NAME` shows how the large libraries fail in silence,
`caught-NAME` that it is caught. Both are run here.

Then what catches is taken away: a cell that still passes would prove nothing.
"""

import ast
import contextlib
import importlib.util
import io

import pytest
from course import code_cells, output_text, tagged

from minilora import lora, train
from minilora.train.checks import Report
from tools.lesson_parts import tags
from tools.project import lessons


def blind_check(real):
    return lambda model, batch: Report(trainable=1, total=1, loss=0.0, learned=0, tokens=0)


def does_nothing(real):
    return lambda model, *arguments: model


def begins_anew(real):
    return lambda *arguments, resume=False, **settings: real(*arguments, **settings)


def mean_of_means(real):
    def halves(model, rows, config):
        for part in (rows[:4], rows[4:]):
            real(model, part, config)
        for parameter in model.parameters():
            parameter.grad = None if parameter.grad is None else parameter.grad / 2

    return halves


# In the lesson's order, each beside what catches it and what would not: with that in its place the
# second cell must fail.
TRAPS = {
    "nothing-trains": (train, "check", blind_check),
    "after-evaluation": (train, "check", blind_check),
    "merge": (lora, "merge", does_nothing),
    "not-a-number": (train, "check", blind_check),
    "never-stops": (train, "check", blind_check),
    "adapter-file": (lora, "load_adapter", does_nothing),
    "resume": (train, "fit", begins_anew),
    "out-of-memory": (train, "step_gradients", mean_of_means),
    "qlora-larger": None,  # two ways measured side by side; no one function makes the difference
}


def pair_tag(cell) -> str:
    return next((tag for tag in tags(cell) if tag.startswith(("trap-", "caught-"))), "")


TRAPPED = [path for path in lessons() if any(pair_tag(cell) for cell in code_cells(path))]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=TRAPPED, ids=lambda path: path.stem)
def lesson(request):
    return request.param


def test_the_traps_are_in_the_lesson_on_qlora():
    assert [path.name[:2] for path in TRAPPED] == ["10"] * any(
        path.name.startswith("10-") for path in lessons()
    )


def test_every_trap_is_followed_by_what_catches_it(lesson):
    found = [pair_tag(cell) for cell in code_cells(lesson) if pair_tag(cell)]
    assert found == [f"{kind}-{name}" for name in TRAPS for kind in ("trap", "caught")]
    assert len(tagged(lesson, "traps")) == 1


def test_each_cell_says_what_happened_and_asserts_it(lesson):
    for cell in code_cells(lesson):
        if pair_tag(cell):
            asserts = [
                node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Assert)
            ]
            computed = [
                node
                for node in asserts
                if any(isinstance(part, ast.Name) for part in ast.walk(node.test))
            ]
            assert computed and len(computed) == len(asserts), (
                f"{pair_tag(cell)} asserts nothing that was computed"
            )
            assert output_text(cell).strip(), f"{pair_tag(cell)} prints nothing"


def run(cell, names: dict) -> str:
    """What the cell prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(cell.source, pair_tag(cell) or "setup", "exec"), names)
    return said.getvalue()


@pytest.fixture(scope="module")
def bench():
    """The names after setup and bench, per lesson: what every pair may rely on, and the pairs
    before it.
    """
    for name in ("transformers", "peft", "bitsandbytes"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"the traps are set with {name}, not installed")
    made: dict = {}

    def names_for(lesson) -> dict:
        if lesson not in made:
            made[lesson] = {}
            for cell in (*tagged(lesson, "setup"), *tagged(lesson, "traps")):
                run(cell, made[lesson])
        return made[lesson]

    return names_for


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAPS)
def test_it_fails_as_told_and_is_caught(lesson, bench, monkeypatch, name):
    names = bench(lesson)
    (trap,), (caught,) = tagged(lesson, f"trap-{name}"), tagged(lesson, f"caught-{name}")
    assert run(trap, names).strip() and run(caught, names).strip()
    if TRAPS[name] and (name != "after-evaluation" or names["concerned"]):
        room, function, blind = TRAPS[name]
        monkeypatch.setattr(room, function, blind(getattr(room, function)))
        with pytest.raises(AssertionError):
            run(caught, names)

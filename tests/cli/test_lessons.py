"""`minilora lessons`: what it lays out, what it never replaces, and how it opens."""

import json

import pytest

from minilora.cli import lessons
from minilora.cli.main import main
from minilora.system import files

FIRST = "00-start-here.ipynb"


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A course of two small lessons, as a wheel would carry it."""
    course = tmp_path / "course"
    (course / "notebooks").mkdir(parents=True)
    for name in (FIRST, "01-steps.ipynb"):
        (course / "notebooks" / name).write_text(f"shipped {name}")
    monkeypatch.setattr(lessons, "course_folder", lambda: course)
    return course / "notebooks"


def say(capsys, *arguments, code=0):
    assert main(["lessons", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    return out if code == 0 else err


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_lesson_is_laid_out_as_it_is_shipped(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = {p.name: p.read_bytes() for p in (files.course_folder() / "notebooks").glob("*.ipynb")}
    assert f"minilora-lessons: {len(source)} lessons laid out\n" in say(capsys, "--no-open")
    there = tmp_path / "minilora-lessons"
    assert names(there) == sorted([lessons.RECORD, *source])
    assert all((there / name).read_bytes() == content for name, content in source.items())


def test_a_second_time_nothing_is_written(tmp_path, shipped, capsys):
    there = tmp_path / "here"
    say(capsys, there, "--no-open")
    before = {path: path.stat().st_mtime_ns for path in there.iterdir()}
    assert "0 lessons laid out, 2 are there already" in say(capsys, there, "--no-open")
    assert {path: path.stat().st_mtime_ns for path in there.iterdir()} == before


def test_what_the_learner_changed_is_kept_and_said(tmp_path, shipped, capsys):
    there = tmp_path / "here"
    say(capsys, there, "--no-open")
    (there / FIRST).write_text("my answer")
    (there / "notes.txt").write_text("mine")
    for name in (FIRST, "01-steps.ipynb"):
        (shipped / name).write_text(f"newer {name}")
    said = say(capsys, there, "--no-open")
    assert f"kept as you left them: {FIRST}\n" in said and "--renew 00-start-here`" in said
    assert (there / FIRST).read_text() == "my answer"
    assert (there / "notes.txt").read_text() == "mine"
    assert (there / "01-steps.ipynb").read_text() == "newer 01-steps.ipynb"


@pytest.mark.parametrize("record", [None, "[]", "{"])
def test_without_a_record_every_other_file_counts_as_the_learners(
    tmp_path, shipped, capsys, record
):
    there = tmp_path / "here"
    say(capsys, there, "--no-open")
    (there / lessons.RECORD).unlink()
    if record is not None:
        (there / lessons.RECORD).write_text(record)
    (shipped / FIRST).write_text("newer")
    assert "kept as you left them" in say(capsys, there, "--no-open")
    assert (there / FIRST).read_text() == f"shipped {FIRST}"


@pytest.mark.parametrize("wanted", ["00", "00-start-here", FIRST])
def test_renew_sets_back_and_keeps_the_old_one_beside(tmp_path, shipped, capsys, wanted):
    there = tmp_path / "here"
    say(capsys, there, "--no-open")
    for number in (1, 2):
        (there / FIRST).write_text(f"try {number}")
        said = say(capsys, there, "--no-open", "--renew", wanted)
        assert f"yours is now {FIRST}.bak-{number}\n" in said
    assert (there / FIRST).read_text() == f"shipped {FIRST}"
    assert [(there / f"{FIRST}.bak-{n}").read_text() for n in (1, 2)] == ["try 1", "try 2"]
    say(capsys, there, "--no-open", "--renew", wanted)  # nothing to set back: no third copy
    assert names(there) == sorted(
        [lessons.RECORD, "01-steps.ipynb", FIRST, f"{FIRST}.bak-1", f"{FIRST}.bak-2"]
    )


def test_a_full_disk_leaves_everything_as_it_was(tmp_path, shipped, capsys, monkeypatch):
    there = tmp_path / "here"
    say(capsys, there, "--no-open")
    (there / FIRST).write_text("my answer")
    (shipped / "01-steps.ipynb").write_text("newer")
    before = {path.name: path.read_bytes() for path in there.iterdir()}

    def full(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "_sync", full)
    assert "No space left" in say(capsys, there, "--no-open", code=2)
    assert "No space left" in say(capsys, there, "--no-open", "--renew", "00", code=2)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == before


def test_the_learners_copy_is_on_the_disk_before_its_file_is_replaced(
    tmp_path, shipped, capsys, monkeypatch
):
    there = tmp_path / "here"
    say(capsys, there, "--no-open")
    (there / FIRST).write_text("my answer")
    monkeypatch.setattr(lessons, "atomic_folder", None)  # dies where the replacing begins
    with pytest.raises(TypeError):
        main(["lessons", str(there), "--no-open", "--renew", "00"])
    assert (there / FIRST).read_text() == (there / f"{FIRST}.bak-1").read_text() == "my answer"


def test_what_cannot_be_is_one_line(tmp_path, shipped, capsys):
    (tmp_path / "file").write_text("")
    assert "is a file" in say(capsys, tmp_path / "file", "--no-open", code=2)
    told = say(capsys, tmp_path / "here", "--no-open", "--renew", "77", code=2)
    assert "no such lesson" in told and FIRST in told and not (tmp_path / "here").exists()
    assert "the course's own notebooks" in say(
        capsys, shipped, "--no-open", "--renew", "00", code=2
    )
    assert names(shipped) == [FIRST, "01-steps.ipynb"]
    for path in shipped.iterdir():
        path.unlink()
    assert "the lessons are not at" in say(capsys, tmp_path / "here", code=2)


def test_it_opens_the_first_lesson_in_its_folder(tmp_path, shipped, capsys, monkeypatch):
    """With a stand-in for JupyterLab that writes down where and how it was called."""
    stand_in = tmp_path / "path" / "jupyterlab"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").write_text("")
    (stand_in / "__main__.py").write_text(
        "import json, os, sys; json.dump([os.getcwd(), sys.argv[1:]], open('called', 'w')); exit(3)"
    )
    monkeypatch.setenv("PYTHONPATH", str(stand_in.parent))
    code = main(["lessons", str(tmp_path / "here")])
    where, arguments = json.loads((tmp_path / "here" / "called").read_text())
    assert code == 3 and where == str(tmp_path / "here")
    assert arguments[-1] == FIRST and set(arguments[:-1]) <= {"--allow-root"}


def test_without_jupyterlab_the_lessons_are_there_and_one_line_helps(
    tmp_path, shipped, capsys, monkeypatch
):
    monkeypatch.setattr(lessons.importlib.util, "find_spec", lambda name: None)
    told = say(capsys, tmp_path / "here", code=2)
    assert "pip install jupyterlab" in told and told.count("\n") == 1
    assert FIRST in names(tmp_path / "here")

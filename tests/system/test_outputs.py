"""Where output may go: places by what they are, one writer at a time, and what a mark sees."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import MiniloraError
from minilora.system import outputs
from minilora.system.files import sweep
from minilora.system.outputs import alone, made_by, mark, require_file, require_folder, spelled

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and forks of POSIX")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A current folder and a home of their own."""
    (tmp_path / "home" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home" / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


# -- places


@pytest.mark.parametrize("path", ["", " ", "\t", "a\0b", "a\udcff", "x" * 201, "~nobody-at-all/x"])
def test_what_is_no_name_is_refused(path):
    with pytest.raises(MiniloraError, match="--out") as told:
        spelled(path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0/~"), min_size=1, max_size=40))
def test_any_other_name_is_taken_as_it_is(name):
    if name.strip() and name != "..":
        assert str(spelled(name)) == str(Path(name))


@pytest.mark.parametrize("path", [".", "..", "../work", "~", "/", "../..", "~/./work", "new/.."])
def test_the_folders_that_one_stands_in_are_none_for_a_run(path):
    with pytest.raises(MiniloraError, match="(current|home) folder; name a folder in it"):
        require_folder(path)


@posix
def test_a_place_is_what_it_is_not_how_it_is_spelled(elsewhere):
    model, data = elsewhere / "model", elsewhere / "rows" / "data.jsonl"
    model.mkdir(), data.parent.mkdir()
    data.write_text("x")
    link = elsewhere / "link"
    link.symlink_to(model)
    read = [("--model", model), ("--data", data), ("--adapter", elsewhere / "nowhere")]
    for path in (model, link, f"{model}/../model/", data.parent):
        with pytest.raises(MiniloraError, match="is the folder of --(model|data) .*stay as they"):
            require_folder(path, read=read)
    for path in (link / "new", model / "new", data.parent / "run"):
        assert require_folder(path, read=read) == path
    (model / "config.json").write_text("{}")
    os.link(data, elsewhere / "other.jsonl")
    for path in (data, elsewhere / "other.jsonl", link / "config.json", model / "new.jsonl"):
        with pytest.raises(MiniloraError, match="is of what --(model|data) reads"):
            require_file(path, "--out", read, overwrite=True)
    assert require_file(data.parent / "new.jsonl", "--out", read) == data.parent / "new.jsonl"


@posix
def test_a_file_goes_nowhere_but_to_a_regular_file(elsewhere):
    there = elsewhere / "there"
    there.mkdir()
    (there / "file").write_text("x")
    (there / "link").symlink_to(there / "file")
    (there / "away").symlink_to(there / "gone")
    os.mkfifo(there / "pipe")
    for name, kind in {
        "link": "a symbolic link",
        "away": "a symbolic link",
        "pipe": "a pipe",
    }.items():
        with pytest.raises(MiniloraError, match=f"{name}: {kind} is there"):
            require_file(there / name, "--out", overwrite=True)
    for path in (there, f"{there}/new/", "/"):
        with pytest.raises(MiniloraError, match="a folder"):
            require_file(path, "--out", overwrite=True)
    with pytest.raises(MiniloraError, match="is there already; choose another name, or add --over"):
        require_file(there / "file", "--out", overwrite=False)
    with pytest.raises(MiniloraError, match="is there already; choose another name$"):
        require_file(there / "file", "--out")
    assert require_file(there / "file", "--out", overwrite=True) == there / "file"
    for below in ("file/x", "file/x/y", "pipe/x", "away/x"):
        with pytest.raises(MiniloraError, match="cannot write .*; choose another --out"):
            require_file(there / below, "--out")
        with pytest.raises(MiniloraError, match="cannot write .*; choose another --out"):
            require_folder(there / below)


# -- marks


def test_a_mark_knows_a_file_again(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "ENDS", 8)
    path = tmp_path / "file"
    for content in (b"", b"x", b"12345678", b"123456789", bytes(range(200))):
        path.write_bytes(content)
        known = mark(path)
        assert made_by(path, [known, "other"]) and not made_by(path, ["other"])
        path.write_bytes(content + b"y")
        assert mark(path) != known
        if content:
            for place in {0, len(content) - 1}:
                changed = bytearray(content)
                changed[place] ^= 1
                path.write_bytes(changed)
                assert mark(path) != known
    assert not made_by(tmp_path / "nothing", [known])


# -- one at a time


def hold(path, held, done):
    with alone(path):
        held.set()
        done.wait(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@posix
def test_the_second_is_told_and_a_killed_one_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    path, held, done = tmp_path / "a" / "b" / "out", context.Event(), context.Event()
    process = context.Process(target=hold, args=(path, held, done))
    process.start()
    assert held.wait(60)
    (path.parent / "link").symlink_to(path)
    for spelling in (path, path.parent / "link", f"{path.parent}/../b/out"):
        with pytest.raises(MiniloraError, match="another command is writing .*choose another"):
            with alone(spelling):
                pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with alone(path):
        assert [each.name for each in path.parent.iterdir() if each.name != "link"] == [
            ".out.minilora.lock"
        ]
    assert [each.name for each in path.parent.iterdir()] == ["link"]


def test_what_was_made_for_the_lock_goes_again(tmp_path):
    with alone(tmp_path / "a" / "b" / "out"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with alone(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "b" / "out").mkdir()
    assert (tmp_path / "a" / "b" / "out").is_dir()
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "c" / "out"):
        1 / 0
    assert not (tmp_path / "c").exists()


def take_turns(path, file, seconds):
    import time

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with alone(path):
                number = int(file.read_text())
                time.sleep(0.001)
                file.write_text(str(number + 1))
                with open(file.with_suffix(".log"), "a") as log:
                    log.write("x")
        except MiniloraError:
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system starts processes otherwise")
def test_never_two_at_once(tmp_path):
    """The lock's file is made and removed again and again: no two ever hold different ones."""
    context = multiprocessing.get_context("fork")
    file = tmp_path / "count"
    file.write_text("0")
    workers = [
        context.Process(target=take_turns, args=(tmp_path / "out", file, 1.0)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert int(file.read_text()) == len(file.with_suffix(".log").read_text()) > 10
    assert not (tmp_path / ".out.minilora.lock").exists()


@posix
def test_a_lock_that_is_no_file_of_ours_stays(tmp_path):
    lock = tmp_path / ".out.minilora.lock"
    lock.write_text("mine")
    with alone(tmp_path / "out"):
        pass
    assert lock.read_text() == "mine"
    lock.unlink()
    lock.symlink_to(tmp_path / "precious")
    with pytest.raises(MiniloraError, match="cannot lock .* is a symbolic link"):
        with alone(tmp_path / "out"):
            pass
    assert not (tmp_path / "precious").exists()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_alone_on_a_disk_is_locked_in_itself(tmp_path):
    out = tmp_path / "closed" / "out"
    out.mkdir(parents=True)
    out.parent.chmod(0o555)
    try:
        with alone(out):
            assert (out / ".minilora.lock").exists()
        assert not list(out.iterdir())
    finally:
        out.parent.chmod(0o755)


def test_only_what_is_unfinished_is_swept(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ours = [tmp_path / ".out.minilora-abcdefgh.part", out / ".run.json.minilora-a1b2c3d4.part"]
    others = [
        tmp_path / ".out.backup.part",
        tmp_path / ".out.abcdefgh.part",
        tmp_path / ".other.minilora-abcdefgh.part",
        tmp_path / "out.minilora-abcdefgh.part",
        out / ".minilora-abcdefgh.part",
        out / ".x.minilora-abc.part",
    ]
    for path in (*ours, *others):
        path.write_text("x")
    folder = out / ".step.minilora-abcdefgh.part"
    (folder / "below").mkdir(parents=True)
    if os.name == "posix":
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "file").write_text("x")
        (out / ".link.minilora-abcdefgh.part").symlink_to(tmp_path / "precious")
    sweep(out)
    assert not any(path.exists() for path in (*ours, folder))
    assert all(path.exists() for path in others)
    if os.name == "posix":
        assert (tmp_path / "precious" / "file").exists()

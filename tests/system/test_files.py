"""Files and folders appear whole or not at all."""

import errno
import os
import stat

import pytest

from minilora.errors import MiniloraError
from minilora.system import files
from minilora.system.files import atomic_folder, atomic_write


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()  # what a kill at this moment would leave
        temporary.write_text("whole")
    assert path.read_text() == "whole" and names(path.parent) == ["file.txt"]
    with atomic_write(path) as temporary:
        temporary.write_text("newer")
        assert path.read_text() == "whole"
    assert path.read_text() == "newer" and names(path.parent) == ["file.txt"]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        1 / 0
    with (
        pytest.raises(MiniloraError, match="cannot write .*file.txt: No space left"),
        atomic_write(path) as temporary,
    ):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "state"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
        assert not path.exists()
        (temporary / "b").write_text("1")
    assert names(path) == ["a", "b"] and names(tmp_path) == ["state"]
    with atomic_folder(path) as temporary:
        (temporary / "b").write_text("2")
        assert (path / "b").read_text() == "1"
    assert [(path / name).read_text() for name in "ab"] == ["1", "2"] and names(tmp_path) == [
        "state"
    ]


def test_a_folder_whose_block_fails_leaves_no_trace(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "state") as temporary:
        (temporary / "a").write_text("1")
        1 / 0
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_others_may_read_what_is_written(tmp_path):
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("x")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("x")
        (temporary / "file").chmod(0o600)
    assert [
        p.stat().st_mode & 0o777
        for p in (tmp_path / "file", tmp_path / "folder", tmp_path / "folder" / "file")
    ] == [0o644, 0o755, 0o644]


def test_the_course_is_what_the_wheel_carries_or_the_repository(tmp_path, monkeypatch):
    """Beside an installed package another program may have a folder `data`; it is not ours."""
    monkeypatch.setattr(files, "__file__", str(tmp_path / "minilora" / "system" / "files.py"))
    with pytest.raises(MiniloraError, match="the shipped data is not at .*install minilora again"):
        files.data_folder()
    (tmp_path / "data").mkdir()
    assert files.data_folder() == tmp_path / "data"
    assert files.results_folder() == tmp_path / "benchmarks" / "results"
    carried = tmp_path / "minilora" / "shipped"
    (carried / "data").mkdir(parents=True)
    assert files.data_folder() == carried / "data"
    assert files.results_folder() == carried / "benchmarks" / "results"


# ------------------------------------------------------------------------------ what a disk is told


@pytest.fixture
def events(monkeypatch):
    """What is asked of the system, in order: ("fsync", inode) and ("replace", name)."""
    seen, fsync, replace = [], os.fsync, os.replace

    def on_fsync(descriptor):
        seen.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def on_replace(source, target):
        seen.append(("replace", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", on_fsync)
    monkeypatch.setattr(os, "replace", on_replace)
    return seen


def folder_flushed(path):
    """The folder's own flush, which Windows does not have."""
    return [("fsync", path.stat().st_ino)] if hasattr(os, "O_DIRECTORY") else []


def test_bytes_are_on_the_disk_before_the_rename_and_the_name_after_it(tmp_path, events):
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("x")
        written = temporary.stat().st_ino
    assert events == [("fsync", written), ("replace", "file"), *folder_flushed(tmp_path)]


def test_the_same_for_a_new_folder_and_for_one_that_is_there(tmp_path, events):
    path = tmp_path / "state"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
        written = (temporary / "a").stat().st_ino
    assert events == [
        ("fsync", written),
        *folder_flushed(path),  # its inode is that of the temporary one
        ("replace", "state"),
        *folder_flushed(tmp_path),
    ]
    events.clear()
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("2")
        written = (temporary / "a").stat().st_ino
    assert events == [("fsync", written), ("replace", "a"), *folder_flushed(path)]


@pytest.mark.skipif(not hasattr(os, "O_DIRECTORY"), reason="no folder is flushed here")
def test_a_file_system_that_flushes_no_folder_is_borne_and_a_broken_disk_is_not(
    tmp_path, monkeypatch
):
    fsync = os.fsync

    def refusing(number):
        def on_fsync(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        return on_fsync

    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "file").read_text() == "x"
    opened = os.open

    def unreadable(path, flags, *more, **named):
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *more, **named)

    with monkeypatch.context() as change:  # a folder that may be written and not read
        change.setattr(os, "open", unreadable)
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_text("z")
    assert (tmp_path / "file").read_text() == "z"
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with (
        pytest.raises(MiniloraError, match="cannot write .*file: "),
        atomic_write(tmp_path / "file") as temporary,
    ):
        temporary.write_text("y")


# ------------------------------------------------------------------------------- what is replaced


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("kind", ["link", "away", "pipe", "folder"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    """Not even where it comes to stand there while the block runs."""
    (tmp_path / "precious").write_text("mine")
    put = {
        "link": lambda path: path.symlink_to(tmp_path / "precious"),
        "away": lambda path: path.symlink_to(tmp_path / "gone"),
        "pipe": os.mkfifo,
        "folder": os.mkdir,
    }[kind]
    for early in (True, False):
        path = tmp_path / "out" / f"{early}"
        path.parent.mkdir(exist_ok=True)
        if early:
            put(path)
        with (
            pytest.raises(MiniloraError, match="is there, and only regular files are written"),
            atomic_write(path) as temporary,
        ):
            temporary.write_text("new")
            put(path)
        before = os.lstat(path)
        with (
            pytest.raises(MiniloraError, match="is there, and only regular files are written"),
            atomic_folder(path.parent) as temporary,
        ):
            (temporary / "first").write_text("new")
            (temporary / path.name).write_text("new")
        assert os.lstat(path)[:2] == before[:2] and "first" not in names(path.parent)
    assert (tmp_path / "precious").read_text() == "mine" and not (tmp_path / "gone").exists()


def test_a_config_comes_last(tmp_path, events):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "adapter_config.json"):
        events.clear()
        with atomic_folder(tmp_path / "model") as temporary:
            for each in ("a", name, "model.safetensors", "tokenizer.json"):
                (temporary / each).write_text("x")
        moved = [what for kind, what in events if kind == "replace"]
        assert moved == ["a", "model.safetensors", "tokenizer.json", name]


def test_what_is_raised_before_the_files_move_leaves_the_old_ones(tmp_path):
    (tmp_path / "a").write_text("old")

    def refuse(temporary):
        assert (temporary / "a").read_text() == "new"
        raise MiniloraError("not so")

    with (
        pytest.raises(MiniloraError, match="not so"),
        atomic_folder(tmp_path, before=refuse) as temporary,
    ):
        (temporary / "a").write_text("new")
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]

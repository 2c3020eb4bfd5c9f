"""The compiler of the machine: called, done without, and cleaned up after."""

import os
import shutil
import stat
import time

import pytest

from minilora.system import cpp

needed = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here")

ADDS = """
#include <cstdint>
extern "C" int64_t sum(int64_t count) {
    int64_t total = 0;
#pragma omp parallel for reduction(+ : total)
    for (int64_t i = 0; i < count; i++) total += i;
    return total;
}
extern "C" int threads() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}
"""


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "adds.cpp"
    path.write_text(ADDS)
    return path


def stand_in(tmp_path, monkeypatch, script):
    """A compiler that does as `script` says."""
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(path))


@needed
def test_a_function_is_built_and_nothing_stays(source, tmp_path, monkeypatch):
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(room))
    built = cpp.build(source)
    assert built.sum(1000) == 499500 and not os.listdir(room)


@needed
def test_a_compiler_without_openmp_builds_for_one_thread(source, tmp_path, monkeypatch):
    real = cpp.compiler()
    refuse = 'case "$*" in *-fopenmp*) exit 1;; esac'
    stand_in(tmp_path, monkeypatch, f'{refuse}\nexec {real} "$@"')
    built = cpp.build(source)
    assert built.sum(1000) == 499500 and built.threads() == 0


@needed
def test_a_source_that_does_not_compile(tmp_path):
    (tmp_path / "wrong.cpp").write_text("not C++")
    assert cpp.build(tmp_path / "wrong.cpp") is None


@pytest.mark.skipif(os.name == "nt", reason="a stand-in is a shell script")
@pytest.mark.parametrize(
    "script", ["exit 1", "exit 0", "sleep 20"], ids=["fails", "makes nothing", "never ends"]
)
def test_a_compiler_that_does_not_do_its_work(source, tmp_path, monkeypatch, script):
    monkeypatch.setattr(cpp, "PATIENCE", 0.2)
    stand_in(tmp_path, monkeypatch, script)
    began = time.monotonic()
    assert cpp.build(source) is None and time.monotonic() - began < 15


def test_no_compiler(source, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert cpp.compiler() is None and cpp.build(source) is None

"""What the C library keeps goes back, where there is a way to ask for it."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from minilora.system import heap, memory


def test_other_systems_have_no_way(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert heap.give_back() is False
    assert heap.without_holes() is False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_a_process_has_held_at_least_what_it_holds():
    import psutil

    assert memory.most_held() >= 0.9 * psutil.Process().memory_info().rss


# a block of 8 MiB that is let go tells glibc to cut such ones out of the heap from then on; of 48
# such blocks all but the last are let go, and the last stands at the heap's end
HOLES = """
import psutil, sys
from minilora.system import heap
if sys.argv[1] == "without":
    assert heap.without_holes()
del (large := [bytearray(8 << 20)])[:]
blocks = [bytearray(b"x") * (2 << 20) for _ in range(48)]
held = psutil.Process().memory_info().rss
del blocks[:-1]
print((held - psutil.Process().memory_info().rss) / (94 << 20))
"""
GLIBC = platform.libc_ver()[0] == "glibc"


def given_back(way, **more):
    """The share of 94 MiB let go that the process holds no more."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | more
    done = subprocess.run(
        [sys.executable, "-c", HOLES, way], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(not GLIBC, reason="asks glibc's heap")
def test_large_blocks_go_back_at_once_where_that_is_asked_for():
    assert given_back("with") < 0.1
    assert given_back("without") > 0.9


@pytest.mark.skipif(not GLIBC, reason="asks glibc's heap")
def test_what_the_user_has_told_the_c_library_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "4096")
    assert heap.without_holes() is False

"""Free memory is the least that the system, the container and the process's own limit leave."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from minilora.system import machine, memory, scratch


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with 8,192,000,000 bytes free, and the two files of a container, not there yet."""
    most, used = tmp_path / "max", tmp_path / "current"
    told = SimpleNamespace(available=8_192_000_000)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: told)
    monkeypatch.setattr(memory, "GROUPS", ((most, used),))
    monkeypatch.setattr(memory, "_addresses_left", lambda: None)
    return SimpleNamespace(most=most, used=used, told=told)


def test_what_is_free_is_asked_of_the_system(system):
    assert memory.available("cpu") == 8_192_000_000
    system.most.write_text("3000000000\n"), system.used.write_text("1000000000\n")
    assert memory.available("cpu") == 2_000_000_000
    system.most.write_text("max\n")
    assert memory.available("cpu") == 8_192_000_000
    system.most.write_text("1000\n")  # more is used than allowed
    assert memory.available("cpu") == 0


def test_a_limit_of_the_process_counts(system, monkeypatch):
    monkeypatch.setattr(memory, "_addresses_left", lambda: 5_000_000)
    assert memory.available("cpu") == 5_000_000


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, RuntimeError])
def test_a_system_that_does_not_say_is_no_error(system, monkeypatch, error):
    def silent():
        raise error

    monkeypatch.setattr(memory.psutil, "virtual_memory", silent)
    assert memory.available("cpu") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_it_is_the_figure_that_linux_gives():
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    told = int(fields["MemAvailable"].split()[0]) * 1024
    assert memory._system() == pytest.approx(told, rel=0.05)


LIMITED = """
import resource, sys
from minilora.system import memory
free = memory.available("cpu")
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 50_000_000, resource.RLIM_INFINITY))
print(memory._addresses_left() - 50_000_000, memory.available("cpu") <= 51_000_000 < free)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the test reads /proc")
def test_a_limit_on_addresses_is_counted_from_what_is_mapped():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    off, less = done.stdout.split()
    assert abs(int(off)) < 4_000_000 and less == "True", done.stderr


def test_no_limit_no_figure_and_none_on_windows(monkeypatch):
    resource = SimpleNamespace(RLIMIT_AS=9, RLIM_INFINITY=-1, getrlimit=lambda which: (-1, -1))
    monkeypatch.setitem(sys.modules, "resource", resource)
    assert memory._addresses_left() is None
    resource.getrlimit = lambda which: (10**13, 10**13)
    mapped = memory.psutil.Process().memory_info().vms
    assert 10**13 - memory._addresses_left() == pytest.approx(mapped, rel=0.05)
    monkeypatch.setitem(sys.modules, "resource", None)  # the import fails, as on Windows
    assert memory._addresses_left() is None


def test_a_full_memory_lets_go_of_scratch_memory():
    room = scratch.Scratch(most=1000)
    room.bytes("a", 1000)
    memory.release(MemoryError())
    assert room.held() == 0


def test_cores_without_affinity(monkeypatch):
    """Linux says which cores this process may use, Python 3.13 everywhere, macOS how many there
    are.
    """
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {0, 5, 6}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(machine.os, "sched_getaffinity")
    monkeypatch.setattr(machine.os, "process_cpu_count", lambda: 5, raising=False)
    assert machine.cores() == 5
    monkeypatch.delattr(machine.os, "process_cpu_count")
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 7)
    assert machine.cores() == 7
    monkeypatch.setattr(machine.os, "cpu_count", lambda: None)
    assert machine.cores() == 1

"""Quantizing, memory and files on macOS and on Windows, as far as Linux can pretend them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import minilora

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = ("darwin", "win32")

SCRIPT = """
import sys
from pathlib import Path
from pretended_system import pretend
pretend(sys.argv[1])
import numpy as np
from minilora.quantize import quantize
from minilora.quantize.kernels import cpu
from minilora.system import files, memory

assert "torch" not in sys.modules  # which would tell the number of threads by itself
x = np.random.default_rng(0).standard_normal((1024, 1025)).astype(np.float32)
assert x.size > cpu.PARALLEL_FROM and cpu.threads() >= 1
assert np.abs(quantize(x).dequantize() - x).max() < 1
assert memory.available("cpu") > 0
folder = Path(sys.argv[2])
with files.atomic_write(folder / "file") as temporary:
    temporary.write_text("x")
for text in "ab":
    with files.atomic_folder(folder / "state") as temporary:
        (temporary / "file").write_text(text)
assert sorted(p.name for p in folder.iterdir()) == ["file", "state"]
assert (folder / "state/file").read_text() == "b"
print(sys.platform, hasattr(__import__("os"), "sched_getaffinity"))
"""


def elsewhere(*command: str, **environment: str) -> subprocess.CompletedProcess:
    """Python in a process of its own, without what the caller says about threads."""
    package = Path(minilora.__file__).parents[1]
    path = os.pathsep.join([str(package), str(ROOT / "tests/helpers")])
    given = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "OMP_"))}
    return subprocess.run(
        [sys.executable, *command],
        env={**given, "PYTHONPATH": path, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is pretended")


@pytest.mark.parametrize("system", SYSTEMS)
def test_numbers_are_quantized_and_files_written(system, tmp_path):
    done = elsewhere("-P", "-c", SCRIPT, system, str(tmp_path))
    assert done.stdout.split() == [system, "False"], done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_tests_of_quantize_memory_and_files_pass(system):
    """All of them but this file, which pytest skips on the pretended system."""
    rooms = ("tests/quantize", "tests/system", "tests/recipes/test_breaks.py")
    options = ("-q", "-p", "pretended_system", "-m", "not slow and not browser", "--tb=short")
    done = elsewhere("-m", "pytest", *options, *rooms, PRETENDED_SYSTEM=system, OMP_NUM_THREADS="1")
    last = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0 and "passed" in last, done.stdout[-4000:]
    assert int(last.split(" passed")[0].split()[-1]) > 300, last

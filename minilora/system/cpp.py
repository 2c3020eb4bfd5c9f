"""C++ of this package, built by the machine's own compiler for the process that asks.

What it replaces: `torch.utils.cpp_extension.load`, which needs ninja, and inductor's code cache,
whose import alone takes longer than the compiler does here.
How it works: the source is compiled for the instructions that torch has found on this processor,
into a temporary folder, loaded, and the folder removed. So nothing stays on the disk that another
machine could load wrongly. The file includes no library but C++'s own, so a second is enough.
OpenMP's functions are not linked in: those that torch has loaded are found by their names, and with
them its threads.
What it leaves out: Windows' compiler; its users go without. MINILORA_COMPILE=never as well.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parent.parent  # what `#include` begins from

PATIENCE = 300  # seconds; a compiler that takes longer than that has gone astray

INSTRUCTIONS = {
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "AVX2": ["-mavx2", "-mfma"],
}


def wanted() -> str:
    """When a compiler may be called: "auto" (when it pays), "always" or "never"."""
    return os.environ.get("MINILORA_COMPILE", "auto")


def compiler() -> str | None:
    """The C++ compiler: CXX, or the first that is found."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, filter(None, names))), None)


def build(source: Path) -> ctypes.CDLL | None:
    """The functions of a C++ file, ready to be called; None where they cannot be had."""
    import torch

    found = compiler()
    if found is None or os.name == "nt":
        return None
    flags = ["-O3", "-std=c++17", "-fPIC", "-w", "-I", str(PACKAGE)]
    flags += INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), [])
    for threads in (["-fopenmp"], []):  # the second for a compiler or a torch without OpenMP
        try:
            return _built([found, *flags, *threads, "-x", "c++"], source, found)
        except subprocess.TimeoutExpired:
            break
        except (OSError, subprocess.SubprocessError):
            continue
    return None


def _built(command: list[str], source: Path, linker: str) -> ctypes.CDLL:
    """Raises OSError or SubprocessError where any of the three steps fails."""
    with tempfile.TemporaryDirectory(prefix="minilora-") as folder:
        made, library = f"{folder}/made.o", f"{folder}/made.so"
        for step in (
            [*command, "-c", str(source), "-o", made],
            [linker, "-shared", made, "-o", library],
        ):
            subprocess.run(step, check=True, capture_output=True, timeout=PATIENCE)
        return ctypes.CDLL(library)

"""What every results file says of where its numbers come from: the machine, the libraries, the
command; and where results stand.
"""

from __future__ import annotations

import os
import platform
import resource
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("torch", "numpy", "transformers", "peft", "bitsandbytes", "triton")


def command() -> str:
    """This program's call as one would type it in the repository."""
    script = Path(sys.argv[0]).resolve()
    if not script.is_relative_to(ROOT):
        return shlex.join(["python", *sys.argv])
    module = ".".join(script.relative_to(ROOT).with_suffix("").parts)
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def versions() -> dict:
    """Python and the libraries; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def load() -> float:
    """The machine's load average over the last minute: how many processes wanted a core."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0


def about() -> dict:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (
                text.split(":", 1)[1].strip()
                for text in info.read_text().splitlines()
                if text.startswith("model name")
            ),
            model,
        )
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    )
    return {
        "processor": model,
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "memory_GB": round(memory / 1e9, 1),
    }


def use_all_cores() -> None:
    """Undo a pinning that the shell may have handed down, where the system allows it."""
    if hasattr(os, "sched_setaffinity"):
        try:
            os.sched_setaffinity(0, range(os.cpu_count() or 1))
        except OSError:
            pass


def most_held() -> int:
    """The most bytes that this process ever held; rusage would name its parent's, too, which Linux
    hands down.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * next(
            int(text.split()[1])
            for text in status.read_text().splitlines()
            if text.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )

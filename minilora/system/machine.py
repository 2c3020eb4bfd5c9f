"""What this process may use of the machine: processor cores.

What it replaces: `os.cpu_count()`, which counts cores that a container or `taskset` withholds.
"""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may run on; macOS and Windows only tell how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1  # the former from Python 3.13

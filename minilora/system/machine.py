"""What this process may use of the machine, told without torch: cores, and what a card can do.

What it replaces: `os.cpu_count()`, which counts cores that a container or `taskset` withholds, and
`torch.cuda.is_bf16_supported()`, which says yes to a T4, where bf16 is emulated and slower than
fp32.
"""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may run on; macOS and Windows only tell how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1  # the former from Python 3.13


def card_has_bf16(major: int) -> bool:
    """Whether NVIDIA cards of this compute capability multiply in bf16: from Ampere (8.0) on."""
    return major >= 8

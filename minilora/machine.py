"""What a machine has free: the bytes that a model may still take on a device.

What it replaces: `psutil.virtual_memory` and `torch.cuda.mem_get_info`, asked in one way.
How it works: on a GPU CUDA's own figure counts; on Linux what /proc/meminfo calls available, or
less where a control group or a limit on the process (`ulimit -v`) allows less.
What it leaves out: other systems, which answer None; swap.
Where numerics differ: nowhere.
"""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available(device: str) -> int | None:
    """Bytes that are free on the device; None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        # the name "cuda" alone is refused by older torch
        return torch.cuda.mem_get_info(torch.device(device).index)[0]
    found = []
    if MEMINFO.is_file():
        fields = dict(
            line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line
        )
        if "MemAvailable" in fields:
            found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    for most, used in GROUPS:
        if most.is_file() and used.is_file() and most.read_text().strip().isdigit():
            found.append(int(most.read_text()) - int(used.read_text()))
    limit = _addresses_left()
    if found and limit is not None:
        found.append(limit)
    return max(0, min(found)) if found else None


def _addresses_left() -> int | None:
    """Bytes that this process may still map under its limit; None without one."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except ImportError:  # Windows
        return None
    if limit == resource.RLIM_INFINITY:
        return None
    return limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

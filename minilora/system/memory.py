"""A full memory as one line: what was being done, and what to change; and nothing of the broken
step left behind.

What it replaces: thirty lines of traceback that end in "CUDA out of memory", and the kernel
restarted because of what they hold on to.
How it works: `full` knows a full memory by torch's, CUDA's, NumPy's and the system's own words.
`named` turns it into `MemoryFull`, after it has emptied the frames of the traceback: an exception
keeps its frames, frames keep their variables, and in a notebook the last exception is kept for
long, so that without this the activations of the broken step would still be there when the cell is
run again.
What it leaves out: the process that the system kills; it is told nothing, and its run goes on from
the last saved state.
"""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from ..errors import MemoryFull, MiniloraError
from . import scratch

SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "alloc_failed",
)


def full(error: BaseException) -> bool:
    """Is `error`, raised by whichever library, the news that no memory was left?"""
    if isinstance(error, MiniloraError):
        return isinstance(error, MemoryFull)
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in SIGNS)


def asked(error: BaseException) -> str:
    """How much was asked for when it failed, in the error's own unit; "" if it does not say."""
    found = re.search(r"allocate ([\d.]+) ?(bytes|[KMG]iB)", str(error))
    if found is None:
        return ""
    number, unit = found.groups()
    if unit != "bytes":
        return f"{number} {unit}"
    return f"{int(number) / 1e9:.2f} GB" if int(number) >= 1e9 else f"{int(number) / 1e6:.1f} MB"


def release(error: BaseException) -> None:
    """Drop what the frames of `error` hold, what torch keeps of it on a GPU, and scratch memory."""
    # frames that still run, ours and the caller's, keep theirs
    traceback.clear_frames(error.__traceback__)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    scratch.free()


@contextlib.contextmanager
def named(
    doing: Callable[[], str] | str,
    remedy: Callable[[], str] | str,
    clean: Callable[[], object] = lambda: None,
) -> Iterator[None]:
    """Raise MemoryFull("the memory is full: DOING; REMEDY") in the place of a library's error;
    every other passes.

    clean: called before, to drop what the caller still holds.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryFull) or not full(error):
            raise
        release(error)
        clean()
        what, more = doing() if callable(doing) else doing, asked(error)
        told = f"the memory is full: {what}" + (f", as {more} more were asked for" if more else "")
        raise MemoryFull(f"{told}; {remedy() if callable(remedy) else remedy}", told) from None


# what the interpreter, torch, the tokenizer and the products' own buffers take on a processor,
# beside a step's tensors; measured with torch 2.13 on Linux: 393 MB with a vocabulary of 49,152
LIBRARIES = 400 * 10**6


def most_held() -> int | None:
    """The most bytes that this process ever held, its code's pages included; None where the system
    does not say. rusage would name the parent's, too, which Linux hands down.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        found = [line.split()[1] for line in lines if line.startswith("VmHWM")]
        return 1024 * int(found[0]) if found else None
    try:
        import resource
    except ImportError:  # Windows
        return None
    kept = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kept * (1 if sys.platform == "darwin" else 1024)


# a container's limit and what it uses of it, in the newer and in the older form
GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available(device: str) -> int | None:
    """Bytes that are free on the device: on a processor what the system, the container and the
    limit of this process leave. None where the system does not say.
    """
    if device.startswith("cuda"):
        import torch

        # the name "cuda" alone is refused by older torch
        return torch.cuda.mem_get_info(torch.device(device).index)[0]
    system = _system()
    if system is None:
        return None
    found = [system, _addresses_left()]
    for most, used in GROUPS:
        if most.is_file() and used.is_file() and most.read_text().strip().isdigit():
            found.append(int(most.read_text()) - int(used.read_text()))
    return max(0, min(each for each in found if each is not None))


def _system() -> int | None:
    """Bytes that programs can have without swapping, on Linux, macOS and Windows."""
    try:
        return psutil.virtual_memory().available
    except (OSError, RuntimeError, ValueError):  # a container without /proc, say
        return None


def _addresses_left() -> int | None:
    """Bytes that this process may still map under its limit; None without one."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except ImportError:  # Windows
        return None
    return None if limit == resource.RLIM_INFINITY else limit - psutil.Process().memory_info().vms

"""macOS or Windows where there is neither: what Python has on Linux alone is taken away, and what
Windows refuses is refused.

What it replaces: nothing that those systems show; but a call that only Linux has, a folder opened,
or a file flushed that was opened to be read are found on any machine.
How it works: `pretend` changes `os` and `sys.platform` of this process for good, so it is called in
one of its own: by a script, or by pytest as `-p pretended_system` with PRETENDED_SYSTEM=win32 in
the environment, before anything of minilora is imported. Libraries are imported before: they ask
for the system as they load, and are here what they are.
What it leaves out: paths with backslashes, open files that cannot be renamed, other libraries'
wheels, and what psutil says there.
"""

from __future__ import annotations

import asyncio  # noqa: F401  it loads other modules on Windows
import errno
import fcntl
import multiprocessing.connection  # noqa: F401  for the same reason
import os
import shutil
import stat
import sys

import numpy  # noqa: F401
import psutil  # noqa: F401

ONLY_LINUX = ("sched_getaffinity", "sched_setaffinity", "memfd_create", "posix_fadvise")
NOT_WINDOWS = ("O_DIRECTORY", "fork", "getuid", "geteuid", "uname", "getloadavg", "fchmod", "chown")


def pretend(system: str) -> None:
    """From now on this process runs on `system`, "darwin" or "win32"."""
    early = sorted(name for name in sys.modules if name.partition(".")[0] == "minilora")
    assert not early, f"imported before the system was pretended: {early}"
    assert system in ("darwin", "win32")
    away = ONLY_LINUX + (NOT_WINDOWS if system == "win32" else ())
    for name in away:
        if hasattr(os, name):
            delattr(os, name)
    if system == "win32":
        for name in ("resource", "pwd"):
            sys.modules[name] = None  # type: ignore[assignment]  its import fails
        os.open, os.fsync = _open, _fsync
        shutil._use_fd_functions = False  # type: ignore[attr-defined]  it opens folders elsewhere
    sys.platform = system


open_, fsync_ = os.open, os.fsync


def _open(path, flags, *rest, **named):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return open_(path, flags, *rest, **named)


def _fsync(descriptor: int) -> None:
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == os.O_RDONLY or stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise OSError(errno.EBADF, "Bad file descriptor")
    fsync_(descriptor)


def pytest_configure(config) -> None:
    """Called where this file is given as a plugin."""
    import bitsandbytes.functional  # noqa: F401
    import torch  # noqa: F401
    import torch._dynamo  # noqa: F401
    import transformers  # noqa: F401

    pretend(os.environ["PRETENDED_SYSTEM"])

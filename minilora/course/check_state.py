"""What an answer may have changed for everybody, put back as it was.

What it replaces: a kernel that has to be started again because `torch.matmul`, the default type or
the working folder is another since an exercise was checked.
How it works: `Snapshot()` remembers, `restore()` puts back: names of the modules that checks and
lessons use, methods of their classes, random states, default types, print options, warnings, the
environment, the working folder. Only what differs is touched, and only what people call: a cache
that a library filled meanwhile stays filled.
What it leaves out: lists and arrays changed in place, other modules, files, what runs in threads
that the answer began.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import os
import random
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

WATCHED = {
    "builtins",
    "contextlib",
    "copy",
    "dataclasses",
    "functools",
    "itertools",
    "json",
    "inspect",
    "math",
    "numpy",
    "numpy.linalg",
    "numpy.random",
    "operator",
    "os",
    "random",
    "statistics",
    "sys",
    "threading",
    "time",
    "torch",
    "torch._tensor",
    "torch.functional",
    "torch.linalg",
    "torch.random",
    "torch.utils.checkpoint",
    "torch.utils.data",
    "warnings",
}
ROOMS = "minilora"
ROOTS = {ROOMS, "torch.autograd", "torch.nn", "torch.optim"}  # with all that is under them
OF_CLASSES = ("numpy", "torch", ROOMS)  # whose methods are watched, too
NEVER = {"last_exc", "last_type", "last_value", "last_traceback"}  # of sys: not an answer's doing
MISSING = object()


class Snapshot:
    """All of it as it is now."""

    def __init__(self) -> None:
        self.modules = {module: dict(vars(module)) for module in _modules()}
        self.classes = {
            each: dict(vars(each))
            for kept in self.modules.values()
            for each in kept.values()
            if isinstance(each, type) and str(each.__module__).split(".")[0] in OF_CLASSES
        }
        self.loaded = dict(sys.modules)
        self.settings = [(put, value) for put, value in _settings()]

    def restore(self) -> None:
        """Put back what differs."""
        for module, kept in self.modules.items():
            _put_back(module, kept)
        for each, kept in self.classes.items():
            _put_back_class(each, kept)
        for name, module in self.loaded.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module
        for put, value in self.settings:
            with contextlib.suppress(Exception):  # a folder that is gone, a library too old
                put(value)


def _modules() -> list[ModuleType]:
    return [
        module
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType)
        and (name in WATCHED or any(f"{name}.".startswith(f"{root}.") for root in ROOTS))
    ]


def _put_back(module: ModuleType, kept: dict[str, Any]) -> None:
    now = vars(module)
    for name, value in kept.items():
        # private names that are no functions are a library's own notes
        mine = callable(value) or not name.startswith("_")
        if mine and now.get(name, MISSING) is not value and name not in NEVER:
            setattr(module, name, value)
    for name in now.keys() - kept.keys():
        if module is not builtins and hasattr(builtins, name):  # it would stand before the builtin
            delattr(module, name)


def _put_back_class(each: type, kept: dict[str, Any]) -> None:
    now = dict(vars(each))
    for name, value in kept.items():
        if now.get(name, MISSING) is not value:
            with contextlib.suppress(AttributeError, TypeError):  # what only C can set
                setattr(each, name, value)
    for name in now.keys() - kept.keys():
        if callable(now[name]) or name.startswith("__") or not name.startswith("_"):
            delattr(each, name)


def _settings() -> list[tuple[Callable[[Any], object], Any]]:
    """(how to set it, its value now)"""
    found: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (sys.setrecursionlimit, sys.getrecursionlimit()),
        (_set_list(sys.path), list(sys.path)),
        (_set_environment, dict(os.environ)),
        (_set_filters, list(warnings.filters)),
        (lambda on: gc.enable() if on else gc.disable(), gc.isenabled()),
    ]
    with contextlib.suppress(OSError):  # a working folder that is gone
        found.append((os.chdir, os.getcwd()))
    return found + _numpy_settings() + _torch_settings()


def _numpy_settings() -> list[tuple[Callable[[Any], object], Any]]:
    import numpy as np

    return [
        (np.random.set_state, np.random.get_state()),
        (lambda options: np.set_printoptions(**options), np.get_printoptions()),
    ]


def _torch_settings() -> list[tuple[Callable[[Any], object], Any]]:
    """Grad mode and the default device belong to a thread, and answers run in one of their own."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    options, threads = torch._tensor_str.PRINT_OPTS, torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled
    found = [
        (torch.set_rng_state, torch.get_rng_state()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (vars(options).update, dict(vars(options))),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        (  # setting it imports the compiler, which takes seconds
            lambda on: on == strict() or torch.use_deterministic_algorithms(on),
            strict(),
        ),
        (lambda n: n == torch.get_num_threads() or torch.set_num_threads(n), threads),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return found


def _set_list(live: list) -> Callable[[list], None]:
    def put(kept: list) -> None:
        live[:] = kept

    return put


def _set_environment(kept: dict[str, str]) -> None:
    for name in os.environ.keys() - kept.keys():
        del os.environ[name]
    for name, value in kept.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _set_filters(kept: list) -> None:
    if list(warnings.filters) != kept:
        warnings.filters[:] = kept  # type: ignore[index]
        warnings._filters_mutated()  # type: ignore[attr-defined]  # what `catch_warnings` calls

"""A module with one place of its source changed, executed beside the real one: for faults that a
test can try by itself.

The long list, whose faults reach through several modules, is tests/faults/faults.toml.
"""

import contextlib
import sys
import types
from pathlib import Path


@contextlib.contextmanager
def planted(module: types.ModuleType, old: str, new: str):
    """A copy of `module` in which `old`, which must stand there once, is `new`."""
    source = Path(module.__file__).read_text(encoding="utf-8")
    if source.count(old) != 1:  # no AssertionError: that is what a caught mutant raises
        raise ValueError("the mutant no longer fits the source")
    mutant = types.ModuleType(f"{module.__package__}.mutant")
    mutant.__package__ = module.__package__
    sys.modules[mutant.__name__] = mutant  # dataclasses look their module up
    try:
        exec(compile(source.replace(old, new), "mutant", "exec"), mutant.__dict__)
        yield mutant
    finally:
        del sys.modules[mutant.__name__]

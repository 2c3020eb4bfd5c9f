"""minilora: from one gradient step to QLoRA, every idea in a file short enough to read.

What it replaces: nothing; it opens the rooms. `minilora.lora.add_lora(...)` finds the module `lora`
when it is asked for.
How it works: a module-level `__getattr__` (PEP 562) imports a submodule at its first use, so that
`import minilora` takes milliseconds and loads neither torch nor transformers nor bitsandbytes.
What it leaves out: re-exported functions. Every name has one home, and its import says which.
"""

import importlib
import pkgutil

__version__ = "0.1.0"


def _modules() -> list[str]:
    """The submodules that there are, by looking into the folder, so that no list can go stale."""
    return sorted(
        found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")
    )


def __getattr__(name: str):
    if name.startswith("_") or name not in _modules():
        raise AttributeError(
            f"module 'minilora' has no attribute {name!r}; its modules are {', '.join(_modules())}"
        )
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(["__version__", *_modules()])

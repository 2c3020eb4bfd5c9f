"""Which modules an adapter sits on.

What it replaces: PEFT's target matching (`check_target_module_exists`, "all-linear").
How it works: "all" is every linear layer but the output head; a list names modules (equal, or the
end of the path after a dot); any other string is a regular expression that must match the whole
path.
What it leaves out: layers_to_transform and exclude_modules: a regular expression says both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from reprlib import repr as short
from typing import Any

from torch import nn

from ..errors import MiniloraError
from .layer import Adapted
from .patterns import fullmatch
from .tied import HEADS, table_head


def original_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> module as they were before adapters: an adapted one stands for its base, its insides
    are left out.
    """
    modules: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if inside and path.startswith(inside):
            continue
        if isinstance(module, Adapted):
            inside += (f"{path}.",)
            module = module.original
        modules[path] = module
    head = table_head(model)
    if head is not None:
        modules["lm_head"] = head
    modules.pop("", None)  # the model itself has no parent in which something could take its place
    return modules


def put(model: nn.Module, path: str, module: nn.Module | None) -> None:
    """Let `module` stand at `path` in the model; None: nothing."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def is_linear(module: nn.Module) -> bool:
    """nn.Linear and its kind, or a layer that offers in_features, out_features and
    dense_weight().
    """
    return isinstance(module, nn.Linear) or all(
        hasattr(module, n) for n in ("in_features", "out_features", "dense_weight")
    )


def is_head(model: Any, path: str, module: nn.Module) -> bool:
    """Whether `module`, which stands at `path`, is the output head: by the name that heads have, or
    because the model says so.
    """
    said = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    said = said.original if isinstance(said, Adapted) else said
    return module is said or path.rpartition(".")[2] in HEADS


def linear_paths(model: nn.Module) -> list[str]:
    """Every linear layer but the output head."""
    return [
        path
        for path, module in original_modules(model).items()
        if is_linear(module) and not is_head(model, path, module)
    ]


def ends(path: str) -> set[str]:
    """By PEFT's rule for a list, the names that mean `path`: itself, and each end of it after a
    dot.
    """
    parts = path.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


def match_targets(
    model: nn.Module,
    targets: str | Sequence[str],
    full_modules: Sequence[str] = (),
    strict: bool = True,
) -> list[str]:
    """The paths that `targets` means. Raises MiniloraError if it (or, when strict, one of its
    names) matches nothing usable.
    """
    if targets == "all":
        paths = linear_paths(model)
        if not paths:
            raise MiniloraError(
                'targets "all" found no linear layer in this model; name its modules in a list'
            )
    else:
        modules = original_modules(model)
        if isinstance(targets, str):
            paths = [path for path in modules if fullmatch(targets, path)]
        else:
            names = set(targets)
            paths = [path for path in modules if names & ends(path)]
        for name in targets if strict and not isinstance(targets, str) else ():
            if not any(name in ends(path) for path in paths):
                raise MiniloraError(
                    f"target {short(name)} matches no module; {_what_there_is(model)}"
                )
        if not paths:
            raise MiniloraError(
                f"targets {short(targets)} match no module; {_what_there_is(model, targets)}"
            )
        for path in paths:
            if not is_linear(modules[path]) and not isinstance(modules[path], nn.Embedding):
                kind = type(modules[path]).__name__
                raise MiniloraError(
                    f"target {path!r} is a {kind}, not a linear or embedding layer; "
                    f"{_what_there_is(model)}"
                )
    return [path for path in paths if not any(inside(path, name) for name in full_modules)]


def inside(path: str, name: str) -> bool:
    """Whether `path` is the module called `name` or lies in it."""
    return re.search(rf"(^|\.){re.escape(name)}($|\.)", path) is not None


def full_paths(model: nn.Module, full_modules: Sequence[str]) -> list[str]:
    """The modules that are trained whole. Raises MiniloraError for a name that matches none, or
    modules that cannot be copied whole.
    """
    paths: list[str] = []
    modules = original_modules(model)
    for name in full_modules:
        # PEFT's rule for modules_to_save
        found = [path for path in modules if path.endswith(name)]
        if not found:
            children = sorted({path.rpartition(".")[2] for path in modules} - {""})
            raise MiniloraError(
                f"full module {short(name)} matches no module; the names are {', '.join(children)}"
            )
        paths += [path for path in found if path not in paths]
    for path in paths:
        if isinstance(modules[path], (nn.ModuleList, nn.ModuleDict)) or not list(
            modules[path].parameters()
        ):
            raise MiniloraError(
                f"a {type(modules[path]).__name__} has no weights that could be trained whole, "
                f"and {path} is one; choose another module"
            )
        around = next((other for other in paths if path.startswith(f"{other}.")), None)
        if around:
            raise MiniloraError(
                f"full modules {around} and {path}: the second lies in the first; name one of them"
            )
    return paths


def shortest_names(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """Names that mean exactly `paths`: the last part of each if that catches nothing else, the
    whole paths otherwise.
    """
    last = sorted({path.rpartition(".")[2] for path in paths})
    caught = [path for path in original_modules(model) if ends(path) & set(last)]
    return last if sorted(caught) == sorted(paths) else sorted(paths)


def _what_there_is(model: nn.Module, targets: str | Sequence[str] | None = None) -> str:
    names = sorted(
        {
            path.rpartition(".")[2]
            for path, module in original_modules(model).items()
            if is_linear(module)
        }
    )
    advice = f"the linear layers are {', '.join(names) or 'none'}"
    if isinstance(targets, str):
        advice += "; a string is a regular expression on the whole path, names go in a list"
    return advice

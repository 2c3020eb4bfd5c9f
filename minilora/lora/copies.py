"""Weights of the base that an adapter's file brings along.

What it replaces: what PEFT's `load_state_dict(strict=False)` does to the base in silence.
How it works: PEFT saves the token table and the head beside an adapter when the vocabulary was
resized, when the table is a target, or when asked (`save_embedding_layers`). A copy that equals the
base's weight is let go. One that differs takes its place, as in PEFT: the adapter was trained with
it. The model then remembers which of its weights came so, and saves them with its adapters.
What it leaves out: copies of another shape. The base has to be resized first, and the error says
how.
Where numerics differ: nowhere; the copy is cast to the base's type, as by PEFT.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from ..errors import MiniloraError, MiniloraWarning
from .adapters import adapted_layers, adapters
from .config import PREFIX
from .layer import Adapted
from .state import check_finite
from .targets import original_modules
from .tied import ENDS

Copies = dict[tuple[str, str], Tensor]  # (module's path, parameter's name) -> what the file has


def split_copies(
    model: nn.Module,
    state: Mapping[str, Tensor],
    expected: Collection[str],
    targets: Collection[str],
    source: str,
) -> tuple[dict[str, Tensor], Copies]:
    """`state` without copies of base weights, and those that differ from the base's.

    `expected`: the adapter's own names, `targets` the paths of its layers. Raises MiniloraError for
    a copy of another shape or with NaN. A differing copy under a name that PEFT would not look at
    stays.
    """
    modules, rest = original_modules(model), {}
    found: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}  # -> the base's weight, the copy
    for key, tensor in state.items():
        place, _, name = key.removeprefix(PREFIX).rpartition(".")
        path = place.removesuffix(".base_layer")
        weight = None if key in expected else _weight(modules.get(path), name)
        if weight is None:
            rest[key] = tensor
            continue
        if weight.shape != tensor.shape:
            raise MiniloraError(f"{source}: {_wrong_shape(path, name, weight, tensor)}")
        check_finite(key, tensor, source)
        if (path in targets) == place.endswith(".base_layer"):
            found[path, name] = weight, tensor
        elif not _same(weight, tensor):
            rest[key] = tensor
    # in the model's order, in which PEFT copies: of a tied pair, one parameter, the head's is last
    order = {path: number for number, path in enumerate(modules)}
    last = {id(found[each][0]): each for each in sorted(found, key=lambda each: order[each[0]])}
    return rest, {each: found[each][1] for each in last.values() if not _same(*found[each])}


def _weight(module: nn.Module | None, name: str) -> Tensor | None:
    """A module's own parameter in floating point, or None."""
    weight = dict(module.named_parameters(recurse=False)).get(name) if module else None
    return weight if weight is not None and weight.is_floating_point() else None


def _same(weight: Tensor, copy: Tensor) -> bool:
    return torch.equal(weight.detach().cpu(), copy.to(weight.dtype))


def _wrong_shape(path: str, name: str, weight: Tensor, copy: Tensor) -> str:
    ours, theirs = tuple(weight.shape), tuple(copy.shape)
    told = f"it brings {path}.{name} of shape {theirs}, and the model's has {ours}; "
    if path.rpartition(".")[2] in ENDS and ours[1:] == theirs[1:]:
        return told + (
            "the vocabulary was resized before training, so resize the base likewise: in "
            f"transformers model.resize_token_embeddings({theirs[0]}), then save_pretrained, and "
            "give that folder"
        )
    return told + "load the adapter on the base it was made for"


def check_copies(model: nn.Module, copies: Copies, name: str, source: str) -> None:
    """Raise MiniloraError where copies would change the base under another adapter."""
    others = [other for other in adapters(model) if other != name]
    if copies and others:
        brought = ", ".join(".".join(each) for each in copies)
        raise MiniloraError(
            f"{source} brings its own {brought}, which would change the base under adapter "
            f"{others[0]!r}; load it on a model of its own"
        )


@torch.no_grad()
def put_copies(model: nn.Module, copies: Copies, source: str) -> None:
    """Let `copies` take the place of the base's weights. A tied head and its table are one
    parameter, and the head's copy is put last.
    """
    modules, far = original_modules(model), []
    for (path, name), tensor in copies.items():
        weight = modules[path].get_parameter(name)
        if not torch.allclose(weight.float().cpu(), tensor.float(), rtol=0.01, atol=1e-6):
            far.append(f"{path}.{name}")
        weight.copy_(tensor)
    if copies:
        model.__dict__.setdefault("lora_copies", []).extend(
            each for each in copies if each not in model.__dict__["lora_copies"]
        )
    if far:
        warnings.warn(
            f"{source} brings its own {', '.join(far)}, which took the place of the base's, as in "
            "PEFT; if the base is not the one it was made for, nothing fits",
            MiniloraWarning,
            stacklevel=3,
        )


def brought(model: nn.Module) -> list[tuple[str, str]]:
    """(module's path, parameter's name) of the base's weights that came with an adapter."""
    return model.__dict__.get("lora_copies", [])


def brought_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Those weights under the names that they have in the file of adapter `name`."""
    modules, layers = original_modules(model), adapted_layers(model)
    state = {}
    for path, parameter in brought(model):
        layer = layers.get(path)
        if isinstance(layer, Adapted) and layer.full and layer.has(name):
            continue  # the adapter's own copy of it is what counts
        inside = ".base_layer" if layer is not None and layer.has(name) else ""
        weight = modules[path].get_parameter(parameter).detach()
        state[f"{PREFIX}{path}{inside}.{parameter}"] = weight.cpu().clone()
    return state

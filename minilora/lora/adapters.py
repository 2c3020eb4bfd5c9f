"""Put adapters on a model, switch between them, silence them, merge them.

What it replaces: `peft.get_peft_model` and PeftModel's methods; the model stays the object it was,
no wrapper goes round it.
How it works: `add_lora` puts a LoRALinear where each targeted linear layer stood and freezes all
else. Everything after that sets a few attributes on those layers. A merge computes W + (B A)·s into
a new linear layer and keeps the old one, so that unmerge restores the very bits.
What it leaves out: PEFT's other methods; adapters on convolutions.
Where numerics differ: merge is bit-equal to PEFT's for one adapter (several in bf16 are rounded
once, not after each); PEFT's unmerge subtracts again and does not get the old bits back.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import MiniloraError
from .config import AdapterConfig
from .embedding import FullModule, LoRAEmbedding
from .layer import BASE, Adapted, AdaptedWeight, LoRALinear
from .starts import SPLITS, start_adapter
from .targets import full_paths, is_linear, match_targets, original_modules, put
from .tied import check_split, closed, open_head, untie


def add_lora(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "all",
    *,
    dropout: float = 0.0,
    init: str = "kaiming",
    variant: str = "lora",
    name: str = "default",
) -> nn.Module:
    """Give `model` an adapter, freeze all else and return the model. In place; the new adapter is
    the active one.

    targets: "all" (each linear layer but the head), a list of names, or a regular expression on
    whole paths. Raises MiniloraError for a rank that does not fit, targets that match nothing, a
    name that is taken.
    """
    config = AdapterConfig(rank, alpha, targets, dropout, init, variant)
    return add_adapter(model, config, name)


def add_adapter(
    model: nn.Module,
    config: AdapterConfig,
    name: str = "default",
    strict: bool = True,
    weights: dict[str, torch.Tensor] | None = None,
) -> nn.Module:
    """`add_lora` with every setting, patterns and full modules included. strict=False, for files of
    others, lets a target name match nothing, and a rank be larger than a layer.

    `weights`: for init "loftq" over a quantized base, its `linear_weights` as they were before.
    """
    check_name(model, name)
    refuse_merged(model, "add an adapter")
    modules = original_modules(model)
    paths = match_targets(model, config.targets, config.full_modules, strict)
    for path in paths if strict or config.init.startswith(SPLITS) else ():
        check_rank(config.rank_of(path), path, modules[path])
    for path in paths:
        config.scale_of(path)  # its pattern is asked before anything is touched
    if config.init.startswith(SPLITS):
        check_split(modules, paths, config.init)
    place(model, config, name, paths, full_paths(model, config.full_modules), weights)
    return use_adapter(model, name)


def place(
    model: nn.Module,
    config: AdapterConfig,
    name: str,
    paths: Sequence[str],
    full: Sequence[str] = (),
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Put adapter `name` on the modules at `paths` and copies on those at `full`; the first adapter
    freezes the model.
    """
    if not adapters(model):
        # kept on the model: what learned before, and name -> settings of each adapter
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.__dict__ |= {"lora_frozen": trained, "lora_adapters": {}}
        model.requires_grad_(False)
    if "lm_head" in (*paths, *full):
        open_head(model)
    for path in paths:
        layer = adapted_in_place(model, path)
        assert isinstance(layer, AdaptedWeight)
        layer.add(name, config.rank_of(path), config.scale_of(path), config.dropout)
        start_adapter(layer, name, config.init, (weights or {}).get(path))
        if config.dora:
            layer.add_magnitude(name)
    for path in full:
        whole = adapted_in_place(model, path, FullModule)
        assert isinstance(whole, FullModule)
        whole.add(name)
    adapters(model)[name] = config


def check_name(model: nn.Module, name: str) -> None:
    """A name becomes part of parameter names, so it is letters, digits, - and _, and taken only
    once.
    """
    if (
        not isinstance(name, str)
        or not re.fullmatch(r"[A-Za-z0-9_-]+", name)
        or name == BASE
        or hasattr(nn.ParameterDict, name)
    ):
        raise MiniloraError(
            f"adapter name {name!r} cannot be used; take letters, digits, - and _, such as "
            "'default'"
        )
    if name in adapters(model):
        raise MiniloraError(
            f"the model has an adapter {name!r} already; choose another name, or "
            f"remove_adapter(model, {name!r})"
        )


def check_rank(rank: int, path: str, module: Any) -> None:
    """Above min(in, out) a product of two matrices is no longer a low-rank one."""
    out_in = (
        (module.out_features, module.in_features)
        if is_linear(module)
        else (module.num_embeddings, module.embedding_dim)
    )
    if rank > min(out_in):
        raise MiniloraError(
            f"rank {rank} is above the smaller side of {path} {out_in}; choose at most "
            f"{min(out_in)}"
        )


def adapted_in_place(model: nn.Module, path: str, kind: type[Adapted] | None = None) -> Adapted:
    """The adapted layer at `path`; puts one there (of `kind`, or what suits the module) if the
    plain module still stands.
    """
    module = model.get_submodule(path)
    if not isinstance(module, Adapted):
        kind = kind or (LoRAEmbedding if isinstance(module, nn.Embedding) else LoRALinear)
        module = kind(module).train(module.training)
        put(model, path, module)
    elif module.full != (kind is FullModule):
        raise MiniloraError(
            f"{path} has an adapter and a full copy in different adapters; use one or the "
            "other for it"
        )
    return module


def adapters(model: nn.Module) -> dict[str, AdapterConfig]:
    """The adapters on the model, name -> settings."""
    return getattr(model, "lora_adapters", {})


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """Path -> layer for every layer that holds adapters."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}


def low_rank_layers(model: nn.Module, *names: str) -> dict[str, AdaptedWeight]:
    """Path -> layer where one of adapters `names` stands as A and B; whole modules are left out."""
    return {
        path: layer
        for path, layer in adapted_layers(model).items()
        if isinstance(layer, AdaptedWeight) and any(layer.has(name) for name in names)
    }


def need_adapter(model: nn.Module, name: str) -> AdapterConfig:
    """The settings of adapter `name`. Raises MiniloraError, saying which there are."""
    if name not in adapters(model):
        have = ", ".join(adapters(model)) or "none"
        raise MiniloraError(
            f"the model has no adapter {name!r} (it has: {have}); add it with add_lora or "
            "load_adapter"
        )
    return adapters(model)[name]


def refuse_merged(model: nn.Module, what: str) -> None:
    if any(layer.merged for layer in adapted_layers(model).values()):
        raise MiniloraError(f"cannot {what} while adapters are merged; call unmerge(model) first")


def use_adapter(model: nn.Module, name: str | Sequence[str], trainable: bool = True) -> nn.Module:
    """Let `name` (or each name of a list, their outputs added) speak, and learn if `trainable`. All
    others are frozen.
    """
    names = [name] if isinstance(name, str) else list(name)
    for each in names:
        need_adapter(model, each)
    refuse_merged(model, "switch adapters")
    speak = {
        layer: [each for each in names if layer.has(each)]
        for layer in adapted_layers(model).values()
    }
    for layer, here in speak.items():
        if layer.full and len(here) > 1:
            raise MiniloraError(
                f"adapters {', '.join(here)} each train one whole module; only one of them "
                "can speak"
            )
    for layer, here in speak.items():
        layer.active = here
        for key, parameter in layer.adapter_parameters():
            parameter.requires_grad_(trainable and key in names)
    return model


def active_adapters(model: nn.Module) -> list[str]:
    """The names that speak now, in the order in which they do."""
    return list(
        dict.fromkeys(name for layer in adapted_layers(model).values() for name in layer.active)
    )


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to hand to an optimizer: those that require a gradient."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) as counts of numbers; a packed 4-bit layer counts the weights it stands
    for.
    """
    modules: list[Any] = list(model.modules())
    packed = sum(
        m.in_features * m.out_features
        for m in modules
        if hasattr(m, "dense_weight") and "weight" not in dict(m.named_parameters(recurse=False))
    )
    return sum(p.numel() for p in trainable_parameters(model)), packed + sum(
        p.numel() for p in model.parameters()
    )


@contextlib.contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the base model answers as if it had no adapter: the reference logits of DPO or a KL
    penalty, no second copy.
    """
    before = {layer: layer.disabled for layer in adapted_layers(model).values()}
    refuse_merged(model, "silence adapters")
    try:
        for layer in before:
            layer.disabled = True
        yield model
    finally:
        for layer, was in before.items():
            layer.disabled = was


@contextlib.contextmanager
def mixed_batch(model: nn.Module, adapter_names: Sequence[str]) -> Iterator[nn.Module]:
    """Inside, row i of every batch is answered by adapter `adapter_names[i]`; "__base__" is no
    adapter.
    """
    for name in adapter_names:
        if name != BASE:
            need_adapter(model, name)
    refuse_merged(model, "mix adapters in a batch")
    before = {layer: layer.rows for layer in adapted_layers(model).values()}
    try:
        for layer in before:
            layer.rows = list(adapter_names)
        yield model
    finally:
        for layer, was in before.items():
            layer.rows = was


@torch.no_grad()
def merge(
    model: nn.Module, name: str | Sequence[str] | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Write the active adapters (or those named) into the weights: W + (B A)·s. In place; the old
    weights are kept for unmerge.

    A 4-bit base is decoded first and becomes an nn.Linear of its own type or `dtype`. Raises
    MiniloraError if already merged or a merged weight is not finite; the model is then as it was.
    """
    refuse_merged(model, "merge")
    names = (
        active_adapters(model) if name is None else [name] if isinstance(name, str) else list(name)
    )
    for each in names:
        need_adapter(model, each)
    merged = {}
    for path, layer in adapted_layers(model).items():
        here = [each for each in names if layer.has(each)]
        if here:
            merged[layer] = layer.merged_base(here, dtype)
            if not all(torch.isfinite(p).all() for p in merged[layer].parameters()):
                raise MiniloraError(
                    f"merging {', '.join(here)} gives NaN or infinity in {path}; the adapter "
                    "is broken, train it again"
                )
    for layer, base in merged.items():
        layer.base, layer.unmerged = base, (layer.base,)
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Put the weights back that merge set aside: the same bits, for they are the same tensors."""
    layers = [layer for layer in adapted_layers(model).values() if layer.merged]
    if not layers:
        raise MiniloraError("nothing is merged; call merge(model) first")
    for layer in layers:
        layer.base, layer.unmerged = layer.unmerged[0], ()
    return model


def unload(model: nn.Module) -> nn.Module:
    """Take the adapters off: plain modules stand again, with the adapters in their weights if merge
    was called, and learn again.
    """
    layers = adapted_layers(model)
    untie(model, layers)
    trained = model.__dict__.pop("lora_frozen", [])
    for path, layer in layers.items():
        put(model, path, closed(model, layer.base))
        for old, new in zip(layer.original.parameters(), layer.base.parameters()):
            new.requires_grad_(any(old is parameter for parameter in trained))
    for parameter in trained:
        parameter.requires_grad_(True)
    model.__dict__.pop("lora_adapters", None)
    return model


def remove_adapter(model: nn.Module, name: str) -> nn.Module:
    """Delete one adapter; the others stay."""
    need_adapter(model, name)
    refuse_merged(model, "remove an adapter")
    for layer in adapted_layers(model).values():
        layer.remove(name)
    del adapters(model)[name]
    return model

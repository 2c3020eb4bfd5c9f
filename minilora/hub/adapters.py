"""PEFT adapters on transformers' models, started as ours are."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MiniloraError
from .bnb_faults import BLOCK, four_bit_layers
from .loading import libraries

if TYPE_CHECKING:
    from torch import nn

    from ..lora.config import AdapterConfig


# ----------------------------------------------------------------------------------------- adapters


def prepare(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "all",
    *,
    dropout: float = 0.0,
    init: str = "kaiming",
    variant: str = "lora",
    checkpointing: bool = False,
) -> nn.Module:
    """Give transformers' model a PEFT adapter that means what `lora.add_lora` means; returns the
    PeftModel.

    Everything else is frozen as it is. The adapter starts from torch's generator exactly as ours
    would. checkpointing: activations are computed again, with gradients at the input, without which
    nothing would train. Raises MiniloraError as add_lora does.
    """
    from ..lora.adapters import check_rank
    from ..lora.config import AdapterConfig
    from ..lora.targets import match_targets, original_modules

    config = AdapterConfig(rank, alpha, targets, dropout, init, variant)
    if init not in ("kaiming", "gaussian"):
        raise MiniloraError(
            f"init {init!r} changes the base; with PEFT choose kaiming or gaussian, or the "
            "backend minilora"
        )
    if config.dora and any(hasattr(layer, "decoded_by_ours") for layer in four_bit_layers(model)):
        raise MiniloraError(
            f"variant {variant!r} needs decoded rows, which bitsandbytes gets wrong on a CPU "
            f"for rows that are no multiple of {BLOCK}; choose lora, or the backend minilora"
        )
    modules, paths = original_modules(model), match_targets(model, config.targets)
    for path in paths:
        check_rank(config.rank, path, modules[path])
    with libraries():
        from peft import get_peft_model

        settings = _peft_settings(config, paths)
        if targets == "all":
            settings.target_modules = "all-linear"
        model.requires_grad_(False)
        with _spare_generators(model):
            adapted = get_peft_model(model, settings)
    for path in paths:
        _start_like_ours(model.get_submodule(path), config)
    if checkpointing:
        recompute(adapted)
    return adapted


@contextlib.contextmanager
def _spare_generators(model: nn.Module) -> Iterator[None]:
    """torch's random generators go on afterwards as if nothing had been drawn inside."""
    import torch

    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _start_like_ours(layer: nn.Module, config: Any) -> None:
    """Overwrite A and B of PEFT's linear `layer` with what a layer of ours would draw now.
    Embeddings keep PEFT's start.
    """
    import torch

    from ..lora.layer import LoRALinear
    from ..lora.starts import start_adapter

    if "default" not in layer.lora_A:
        return
    ours = LoRALinear(layer.base_layer)
    ours.add("default", config.rank, 1.0)
    start_adapter(ours, "default", config.init)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(ours.lora_A["default"])
        layer.lora_B["default"].weight.copy_(ours.lora_B["default"])


def recompute(model: nn.Module) -> None:
    """Checkpointing for transformers' model, under an adapter or not."""
    from ..budget.measure.fake_run import checkpoint_layers

    with libraries():
        checkpoint_layers(model)
    if not next(model.parameters()).requires_grad:
        model.enable_input_require_grads()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) as counts of numbers; bitsandbytes packs two 4-bit weights into one byte."""
    packed = {id(layer.weight) for layer in four_bit_layers(model)}
    named = list(model.parameters())
    return sum(p.numel() for p in named if p.requires_grad), sum(
        p.numel() * (2 if id(p) in packed else 1) for p in named
    )


def load_adapter(model: nn.Module, path: str | Path, trainable: bool = False) -> nn.Module:
    """transformers' model with the adapter in folder `path`, ours, PEFT's or mlx-lm's; returns the
    PeftModel.

    Raises MiniloraError as lora.load_adapter does: for a folder that is none, for settings that
    minilora does not have, for tensors that are missing, left over or of another shape, of which
    PEFT only warns, and for a model that holds the adapter already, by a merge.
    """
    from ..lora.config import PREFIX
    from ..lora.folder import read_adapter
    from ..lora.merged_twice import MERGED_KEY, refuse_twice
    from ..lora.same_base import SAMPLE_KEY, compare_base
    from ..lora.state import check_state
    from ..lora.targets import match_targets

    stored = read_adapter(model, path)
    config, source = stored.config, stored.source
    compare_base(model, stored.metadata.get(SAMPLE_KEY), source)
    refuse_twice(dict(model.named_modules()), stored.metadata.get(MERGED_KEY), source)
    if config.init not in ("kaiming", "gaussian", "random"):
        raise MiniloraError(
            f"{source}: init {config.init!r} changes the base; save the adapter with "
            "as_lora=True first"
        )
    targets = match_targets(model, config.targets, config.full_modules, strict=False)
    state = dict(stored.state)
    for (place, name), tensor in stored.copies.items():  # PEFT puts them in place
        inside = ".base_layer" if place in targets else ""
        state[f"{PREFIX}{place}{inside}.{name}"] = tensor
    with libraries():
        from peft import (
            get_peft_model,
            get_peft_model_state_dict,
            set_peft_model_state_dict,
        )

        settings = _peft_settings(config, targets)
        settings.inference_mode = not trainable
        with _spare_generators(model):
            adapted = get_peft_model(model, settings)
        places = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        check_state(
            stored.state, {key: tuple(tensor.shape) for key, tensor in places.items()}, source
        )
        set_peft_model_state_dict(adapted, state)
    return adapted.train(model.training)


def _peft_settings(config: AdapterConfig, targets: list[str]) -> Any:
    """PEFT's LoraConfig that means what `config` means for the layers at `targets`. A regular
    expression is given as what it matches: PEFT's own matching has no end to its time.
    """
    from peft import LoraConfig

    def each(value_of: Callable[[str], Any], usual: Any) -> dict[str, Any]:
        named = {re.escape(path): value_of(path) for path in targets}
        return {path: value for path, value in named.items() if value != usual}

    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets if isinstance(config.targets, str) else list(config.targets),
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        modules_to_save=list(config.full_modules) or None,
        rank_pattern=each(config.rank_of, config.rank) if config.rank_pattern else {},
        alpha_pattern=each(config.alpha_of, config.alpha) if config.alpha_pattern else {},
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.base_model,
    )

"""PEFT adapters on transformers' models, started as ours are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MiniloraError
from .bnb_faults import BLOCK, four_bit_layers
from .loading import libraries

if TYPE_CHECKING:
    from torch import nn


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
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules="all-linear" if targets == "all" else config.targets,
            lora_dropout=dropout,
            use_rslora=config.rslora,
            use_dora=config.dora,
            bias="none",
            task_type="CAUSAL_LM",
        )
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
    """transformers' model with the adapter in folder `path`, ours or PEFT's; returns the PeftModel.

    Raises MiniloraError for a folder that is none, for tensors that are missing, left over or of
    another shape, of which PEFT only warns, and for a model that holds the adapter already, by a
    merge.
    """
    from ..lora.files import CONFIG, WEIGHTS, find_folder, read_json, read_tensors
    from ..lora.merged_twice import MERGED_KEY, refuse_twice
    from ..lora.peft_config import from_peft
    from ..lora.state import check_state

    folder = find_folder(path, "default")
    config = from_peft(read_json(folder / CONFIG), str(folder / CONFIG))
    state, metadata = read_tensors(folder / WEIGHTS)
    refuse_twice(dict(model.named_modules()), metadata.get(MERGED_KEY), str(folder / WEIGHTS))
    with libraries():
        from peft import (
            LoraConfig,
            get_peft_model,
            get_peft_model_state_dict,
            set_peft_model_state_dict,
        )

        settings = LoraConfig.from_pretrained(folder)
        settings.inference_mode = not trainable
        if config.init not in ("kaiming", "gaussian", "random"):
            raise MiniloraError(
                f"{folder}: init {config.init!r} changes the base; save the adapter with "
                "as_lora=True first"
            )
        settings.init_lora_weights = True
        with _spare_generators(model):
            adapted = get_peft_model(model, settings)
        places = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        check_state(
            state,
            {key: tuple(tensor.shape) for key, tensor in places.items()},
            str(folder / WEIGHTS),
        )
        set_peft_model_state_dict(adapted, state)
    return adapted.train(model.training)

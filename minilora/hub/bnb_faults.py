"""What bitsandbytes gets wrong on a processor, and what is put in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


# -------------------------------------------------------------------- bitsandbytes' faults on a CPU

BLOCK = 64  # weights that share a scale in bitsandbytes' Linear4bit


def cure(model: nn.Module) -> nn.Module:
    """Mend every Linear4bit of `model` on a CPU (see the top of this file); returns it."""
    for layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False
        if layer.weight.device.type == "cpu" and layer.in_features % BLOCK:
            _decode_by_ours(layer)
    return model


def four_bit_layers(model: nn.Module) -> list[nn.Module]:
    """bitsandbytes' 4-bit layers in `model`. Known by a name, so that a model without them needs no
    bitsandbytes.
    """
    return [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]


def _decode_by_ours(layer: nn.Module) -> None:
    """Let `layer` compute with the weight as our decoder reads it from the layer's own bytes."""
    from ..qlora.four_bit import QLinear
    from ..quantize import bnb_format

    # the same memory: nothing is kept twice
    ours = QLinear(bnb_format.from_tensors(layer.state_dict()), layer.bias)

    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.weight.device.type != "cpu":  # moved since: there its own kernels are right
            return type(layer).forward(layer, x)
        return ours(x.to(layer.compute_dtype)).to(x.dtype)

    layer.forward = forward  # on this object; PEFT's layer calls it as it calls any other
    layer.decoded_by_ours = True

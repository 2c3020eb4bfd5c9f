"""Llamas of real shapes with random weights in 4 bits, made and quantized layer by layer on the
device: ours, and the libraries'.

What it replaces: a download of 130 GB. Time and memory of a step do not depend on what the weights
are.
How it works: the model stands first without memory (torch's meta device). One layer after another
gets numbers in 16 bits on the device, and its linear layers are quantized before the next one gets
any: by `qlora.quantize_model` in ours, by `bitsandbytes.nn.Linear4bit` in transformers'. So at no
time more than one layer is there in full. A weight's numbers follow from the seed and its name,
which is Hugging Face's in both, so both get the same ones, and their losses can be compared.
What it leaves out: training that would mean something.
Where numerics differ: adapters start from the same numbers in both; see `hub.prepare`.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor, nn

from minilora import hub
from minilora.budget.measure.fake_run import OneBuffer, adapt, dense_model
from minilora.budget.setup import Setup
from minilora.lora.targets import linear_paths, put
from minilora.qlora import QLinear, quantize_model

SPREAD = 0.02  # standard deviation of matrices, as Llama begins


def skeleton(setup: Setup) -> nn.Module:
    """The Llama of `setup`, ours or transformers', in its shapes and types, without memory."""
    with torch.device("meta"):
        return dense_model(setup).requires_grad_(False)


def numbers(name: str, like: Tensor, device: str, seed: int) -> Tensor:
    """What the weight `name` holds: ones in a norm, else normal numbers that follow from name and
    seed.
    """
    if like.ndim == 1:
        return torch.ones(like.shape, dtype=like.dtype, device=device)
    source = torch.Generator(device).manual_seed(seed + zlib.crc32(name.encode()))
    return torch.empty(like.shape, dtype=like.dtype, device=device).normal_(
        0, SPREAD, generator=source
    )


def fill(module: nn.Module, prefix: str, device: str, seed: int) -> None:
    """Give numbers to every parameter below `module` that has no memory. prefix: the module's path
    in the model, with its dot.
    """
    for path, owner in module.named_modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.is_meta:
                full = prefix + (f"{path}." if path else "") + name
                setattr(
                    owner,
                    name,
                    nn.Parameter(numbers(full, parameter, device, seed), requires_grad=False),
                )


def _fill_and_pack(model: nn.Module, tied: bool, pack, device: str, seed: int) -> None:
    for index, layer in enumerate(model.model.layers):
        fill(layer, f"model.layers.{index}.", device, seed)
        pack(layer)
    fill(model.model, "model.", device, seed)
    if (
        tied and model.lm_head is not None
    ):  # transformers' head is the table itself; in ours there is none
        model.lm_head.weight = model.model.embed_tokens.weight
    fill(model, "", device, seed)


def ours(setup: Setup, device: str, seed: int, one_buffer: bool = True) -> nn.Module:
    """Our Llama over 4 bits with our adapters. one_buffer: decoded by one kernel into one buffer,
    where bitsandbytes has it.
    """
    model = skeleton(setup)
    _fill_and_pack(model, setup.shape.tied, quantize_model, device, seed)
    rotary = model.model.rotary
    rotary.build(rotary.cos.shape[0], device)
    for module in model.modules():
        if one_buffer and type(module) is QLinear:
            module.__class__ = OneBuffer
    torch.manual_seed(seed)
    return adapt(model, setup)


def theirs(setup: Setup, device: str, seed: int) -> nn.Module:
    """transformers' Llama over bitsandbytes' 4 bits with PEFT's adapters; what is not packed stays
    in 16 bits, the leaner of two habits.
    """
    model = skeleton(setup)
    _fill_and_pack(model, setup.shape.tied, lambda layer: _pack_theirs(layer, device), device, seed)
    with torch.device(device):  # its frequencies are buffers that no checkpoint holds
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)
    model.is_loaded_in_4bit = True  # what PEFT asks before it takes its layer for 4 bits
    hub.cure(model)
    torch.manual_seed(seed)
    adapted = hub.prepare(
        model, setup.rank, 2 * setup.rank, list(setup.targets), checkpointing=setup.checkpointing
    ).train()
    kinds = {type(module).__name__ for module in adapted.modules() if hasattr(module, "lora_A")}
    assert kinds == {"Linear4bit"}, f"PEFT took {kinds} for the 4-bit layers"
    return adapted


def _pack_theirs(layer: nn.Module, device: str) -> None:
    import bitsandbytes as bnb

    for path in linear_paths(layer):
        dense = layer.get_submodule(path)
        packed = bnb.nn.Linear4bit(
            dense.in_features,
            dense.out_features,
            bias=False,
            compute_dtype=dense.weight.dtype,
            quant_type="nf4",
            device="meta",
        )
        packed.weight = bnb.nn.Params4bit(
            dense.weight.data,
            requires_grad=False,
            quant_type="nf4",
            compress_statistics=True,
            module=packed,
        ).to(device)
        put(layer, path, packed)

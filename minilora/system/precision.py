"""Which device, and which precision there: the one place that decides it.

What it replaces: `torch.autocast` switched by hand, and the same question asked in each room anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from ..errors import MiniloraError
from .machine import card_has_bf16


def autocast_dtype(device: str) -> torch.dtype | None:
    """The type of the autocast region that we are in, for a device type such as "cpu"; None outside
    one.
    """
    known = torch.amp.is_autocast_available(device)
    return torch.get_autocast_dtype(device) if known and torch.is_autocast_enabled(device) else None


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def has_bf16(device: torch.device | str) -> bool:
    """Whether bf16 is the format to compute in on this device: on NVIDIA cards from Ampere on.

    False on a processor, where it works and is seldom faster than fp32, and on a Mac's GPU.
    """
    device = torch.device(device)
    return device.type == "cuda" and card_has_bf16(torch.cuda.get_device_capability(device)[0])


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def settle_precision(model: nn.Module, precision: str) -> str:
    """What "auto" means on the model's device: bf16 on a GPU that has it, fp16 on an older one such
    as the T4, else fp32.
    """
    device = device_of(model)
    if precision != "auto" or device.type != "cuda":
        return "fp32" if precision == "auto" else precision
    return "bf16" if has_bf16(device) else "fp16"


def autocast(model: nn.Module, precision: str):
    """Products in bf16 or fp16 where asked for, or where "auto" means that; else nothing."""
    half = HALVES.get(settle_precision(model, precision))
    return (
        contextlib.nullcontext()
        if half is None
        else torch.autocast(device_of(model).type, dtype=half)
    )


@contextlib.contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


# ------------------------------------------------------------------------------- device and weights


def pick_device(name: str | None) -> str:
    """`cuda` where there is one, unless the user says otherwise."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MiniloraError(f"there is no device {name!r}; give cpu or cuda") from error
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        raise MiniloraError(
            f"the device {name!r} is not there: torch sees {torch.cuda.device_count()} of its "
            "kind; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise MiniloraError(f"the device {name!r} is not supported; give cpu or cuda")
    return name

"""The graphics card of this machine, as the catalogue knows it.

What it replaces: reading `nvidia-smi` and looking the name up by hand.
How it works: CUDA's name ("NVIDIA A100-SXM4-40GB", "Tesla T4") is cut into words. A card of the
catalogue matches if all words of its name are among them and its memory agrees within a tenth, so
that an L40S is no L4 and a laptop's RTX 4090 no desktop's. A card that matches none is described by
what CUDA says of its memory; its rates and its price stay unknown.
What it leaves out: several cards; cards of other makers.
Where numerics differ: the usable bytes are CUDA's own figure for this very card.
"""

from __future__ import annotations

from dataclasses import replace

from ..system.machine import card_has_bf16
from .catalog import GPU, cards, words
from .measure.allocator import WORKSPACE, WORKSPACE_HOPPER


def match(name: str, total: int) -> GPU | None:
    """The card of the catalogue that CUDA calls `name`, with `total` bytes; None if there is
    none.
    """
    for card in cards().values():
        own = words(card.name.removesuffix(" 40").removesuffix(" 80"))  # the A100's two sizes
        if own <= words(name) and abs(total / card.usable - 1) < 0.1:
            return card
    return None


def card(device: str) -> GPU | None:
    """The card behind `device`, with the memory that CUDA reports; None where `device` is the
    processor.
    """
    if not device.startswith("cuda"):
        return None
    import torch

    told = torch.cuda.get_device_properties(device)
    found = match(told.name, told.total_memory)
    if found is None:
        halves = (
            {"bf16": float("nan"), "fp16": float("nan")}
            if card_has_bf16(told.major)
            else {"fp16": float("nan")}
        )
        return GPU(
            told.name,
            told.total_memory,
            told.total_memory,
            float("nan"),
            halves,
            None,
            "CUDA's own figures",
        )
    return replace(found, usable=told.total_memory)


def workspaces(device: str) -> int:
    """Bytes that cuBLAS takes through torch's allocator, for a forward and a backward thread.
    Hopper alone gets the large ones.
    """
    if not device.startswith("cuda"):
        return 0
    import torch

    return 2 * (
        WORKSPACE_HOPPER if torch.cuda.get_device_capability(device) == (9, 0) else WORKSPACE
    )

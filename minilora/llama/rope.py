"""Rotary positions: a query and a key are turned by their position, so that their product sees only
how far apart they are (Su et al., 2021, "RoFormer").

What it replaces: transformers' rotary embedding and the ways to stretch it to longer texts that
Llamas use: `linear` (Chen et al., 2023), `llama3` (Llama 3.1) and `yarn` (Peng et al., 2023).
What it leaves out: the rope types `dynamic` and `longrope`, which change with the text's length.
Where numerics differ: nowhere; the tables are transformers' to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import ROPE_ROWS, Config
from .fused_ops import turned


def rope_frequencies(config: Config) -> Tensor:
    """Angle per position of each pair of dimensions, (head_dim/2,): θ^(-2i/d), scaled for long
    contexts if asked.

    `llama3` leaves fast pairs alone, slows slow ones by `factor` and blends between (Llama 3.1's
    scheme).
    """
    dim = config.head_dim
    # (D/2,)
    inverse = 1.0 / (config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        inverse = inverse / scaling["factor"]
    elif kind == "llama3":
        factor, low, high = (
            scaling["factor"],
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
        )
        old_length = scaling["original_max_position_embeddings"]
        wavelength = 2 * math.pi / inverse  # (D/2,)
        slow = torch.where(wavelength > old_length / low, inverse / factor, inverse)
        blend = (old_length / wavelength - low) / (high - low)
        middle = (wavelength <= old_length / low) & (wavelength >= old_length / high)
        inverse = torch.where(middle, (1 - blend) * slow / factor + blend * slow, slow)
    elif kind == "yarn":
        inverse = _yarn(config, scaling)
    return inverse


def _yarn(config: Config, scaling: dict) -> Tensor:
    """Pairs that turn often within the old length stay, those that hardly turn are slowed by
    `factor`, and a ramp over the pairs blends between (YaRN, section 3.2).
    """
    dim, theta = config.head_dim, config.rope_theta
    old_length = scaling["original_max_position_embeddings"]

    def pair(turns: float) -> float:
        """The pair that turns so often within the old length."""
        return dim * math.log(old_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.get("beta_fast") or 32), pair(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    steps = torch.arange(dim // 2, dtype=torch.float32)
    fast = 1 - torch.clamp((steps - first) / (last - first), 0, 1)  # (D/2,)
    power = theta ** (torch.arange(0, dim, 2).float() / dim)
    return 1.0 / (scaling["factor"] * power) * (1 - fast) + 1.0 / power * fast


def rope_size(config: Config) -> float:
    """What cos and sin are multiplied by: 1, but for yarn, which sharpens attention over longer
    texts.
    """
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") != "yarn":
        return 1.0
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    factor = scaling["factor"]

    def size(scale: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    some, all_dims = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return size(some) / size(all_dims) if some and all_dims else size()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (a, b) = (x[i], x[i + D/2]) by its position's angle: (a·cos − b·sin, b·cos +
    a·sin).

    x (B, H, T, D); cos and sin broadcast to it, and the first half of sin carries the minus.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return turned(x, cos, sin)  # the same numbers, quicker backward
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin  # the roll swaps a and b


class RotaryTable(nn.Module):
    """Tables of cos and (−sin, sin), a row per position; kept in fp32 whatever the model is cast
    to, and never saved.
    """

    cos: Tensor  # (rows, D)
    sin: Tensor  # (rows, D)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.build(min(config.max_position_embeddings, ROPE_ROWS))

    def build(self, rows: int, device: torch.device | str | None = None) -> None:
        """Fill the tables for positions 0 … rows-1."""
        inverse = rope_frequencies(self.config).to(device)  # (D/2,)
        angles = torch.arange(rows, device=inverse.device).float()[:, None] * inverse  # (rows, D/2)
        cos, sin = angles.cos(), angles.sin()  # (rows, D/2)
        size = rope_size(self.config)
        if size != 1:
            cos, sin = cos * size, sin * size
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)

    # called by .to(), .half(), .cuda() …: follow the device, not the dtype
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryTable:
        device = fn(self.cos).device
        if device != self.cos.device:
            self.build(self.cos.shape[0], device)
        return self

    def forward(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """cos and sin for positions start … stop-1, (T, D) each."""
        if stop > self.cos.shape[0]:
            self.build(max(stop, 2 * self.cos.shape[0]), self.cos.device)
        return self.cos[start:stop], self.sin[start:stop]

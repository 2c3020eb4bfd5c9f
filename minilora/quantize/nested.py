"""Double quantization: the scales of the blocks stored in 8 bits, with a scale for each 256 of
them.

What it replaces: `quantize_blockwise` as bitsandbytes uses it on the absmax (QLoRA, section 3).
How it works: the mean is taken off, since scales are all positive and the code is not; what is left
is stored in the signed dynamic code (`codebooks`).
What it leaves out: other devices, see `kernels.torch_ops`.
Where numerics differ: nowhere from bitsandbytes on a CPU, whose table of 65,536 bins is kept: some
codes are not the nearest.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from . import codebooks
from .numpy_or_torch import Array

NESTED_BLOCK = 256  # scales that share one scale


@dataclass
class Nested:
    """How the absmax were quantized: `absmax` fp32 for each 256 of them, and the mean that was
    taken off before.

    `levels`: the 256 values of the 8-bit code; files made on a CPU by some versions of bitsandbytes
    hold -1 as the first.
    """

    absmax: Array
    offset: float
    block: int = NESTED_BLOCK
    levels: np.ndarray = field(default_factory=lambda: codebooks.named("dynamic8").levels)


def mean(absmax: np.ndarray) -> np.float32:
    """The mean as torch sums it, for the last bit to agree with the reference."""
    import torch

    return np.float32(torch.from_numpy(absmax).mean().item())


@functools.cache
def nearest_of_65536() -> np.ndarray:
    """The dynamic code of the centre of each of 65,536 even bins over [-1, 1]: bitsandbytes'
    shortcut on a CPU.
    """
    centres = (np.arange(65536) * (2 / 65535) - 1).astype(np.float32)
    levels = codebooks.named("dynamic8").levels
    return np.array([np.abs(c - levels).argmin() for c in centres], dtype=np.uint8)


def encode_dynamic(x: np.ndarray, block: int = NESTED_BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """8-bit dynamic codes of a flat fp32 array and the absmax of each block, as bitsandbytes
    computes them on a CPU.

    A number gets the code of its bin's centre, which is not always the nearest (0 decodes to 2e-5);
    a zero block gets 0.
    """
    padded = np.append(x, np.zeros(-x.size % block, dtype=np.float32)).reshape(-1, block)
    absmax = np.abs(padded).max(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = padded * (np.float32(1) / absmax)[:, None]
        bins = np.where(
            absmax[:, None] > 0, (scaled + np.float32(1)) * np.float32(32767.5) + np.float32(0.5), 0
        )
    codes = np.where(
        absmax[:, None] > 0, nearest_of_65536()[np.clip(bins, 0, 65535).astype(np.int64)], 0
    )
    return codes.reshape(-1)[: x.size].astype(np.uint8), absmax


def nest(absmax: np.ndarray) -> tuple[np.ndarray, Nested]:
    """The 8-bit codes of fp32 scales, and what says how to read them."""
    offset = mean(absmax)
    codes, outer = encode_dynamic(absmax - offset)
    return codes, Nested(outer, float(offset))


def unnest(codes: np.ndarray, outer: np.ndarray, nested: Nested) -> np.ndarray:
    """The fp32 scales that 8-bit codes stand for. outer: `nested.absmax` as an array."""
    block, full = nested.block, codes.size // nested.block
    scales = np.take(nested.levels, codes)
    body = scales[: full * block].reshape(full, block)
    np.multiply(body, outer[:full, None], out=body)
    scales[full * block :] *= outer[full:]  # of the last, shorter block: one number or none
    return np.add(scales, np.float32(nested.offset), out=scales)

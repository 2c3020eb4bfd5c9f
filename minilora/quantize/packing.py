"""Small integers side by side in bytes.

What it replaces: the packing inside bitsandbytes' kernels, which know 4 and 8 bits alone.
How it works: the indices form one stream of bits, each with its highest bit first, cut into bytes.
For 4 bits that means: two indices to a byte, the first one in the high half.
What it leaves out: other bit orders. Files made by bitsandbytes have this one.
"""

from __future__ import annotations

import math

import numpy as np


def pack(codes: np.ndarray, bits: int, filler: int = 0) -> np.ndarray:
    """Indices of `bits` bits side by side in bytes, the first one in the highest bits; `filler`
    completes the last byte.
    """
    codes = np.append(
        codes, np.full(-codes.size % (8 // math.gcd(8, bits)), filler, dtype=np.uint8)
    )
    if bits == 8:
        return codes
    if bits == 4:
        return codes[0::2] << 4 | codes[1::2]
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - bits :])


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse of `pack`: the first `count` indices."""
    packed = packed.reshape(-1)
    if bits == 8:
        return packed[:count]
    if bits == 4:
        return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
    ones = np.unpackbits(packed)[: count * bits].reshape(-1, bits)
    return np.packbits(ones, axis=1).reshape(-1) >> (8 - bits)

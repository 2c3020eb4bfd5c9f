"""A matrix in four bits: its bytes, and its way back into numbers."""

from __future__ import annotations

import math

import numpy as np

from ....quantize.blockwise import quantize
from .. import Exercise, Wrong

# -------------------------------------------------------------------------------------------- bytes


def _sizes(rng):
    out, inner = (2 * int(n) + 1 for n in rng.integers(20, 90, size=2))
    return out, inner, int(rng.choice([32, 64])), int(rng.choice([16, 24]))


def _bytes(out, inner, block, outer, *, scale=1, top=4, mean=4, up=True):
    """The reference, and by its switches the ways to get it wrong."""
    pieces = (lambda a, b: -(-a // b)) if up else (lambda a, b: a // b)
    n = out * inner
    blocks = pieces(n, block)
    return pieces(n, 2) + scale * blocks + top * pieces(blocks, outer) + mean


def _by_rows(out, inner, block, outer):
    blocks = out * -(-inner // block)
    return -(-out * inner // 2) + blocks + 4 * -(-blocks // outer) + 4


BYTES = Exercise(
    "10-bytes",
    "The bytes of a layer in four bits",
    _sizes,
    _bytes,
    [
        Wrong(
            "scales in fp32",
            lambda *a: _bytes(*a, scale=4, top=0, mean=0),
            "this is single quantization, 4 bytes for each block; with double quantization a "
            "scale takes 1 byte, and 4 bytes stand for each outer block",
        ),
        Wrong(
            "scales in fp32 and outer scales",
            lambda *a: _bytes(*a, scale=4),
            "a block's scale is itself quantized: 1 byte, not 4",
        ),
        Wrong(
            "outer scales forgotten",
            lambda *a: _bytes(*a, top=0),
            "the 8-bit scales have a scale, too: 4 bytes for each outer block of them",
        ),
        Wrong(
            "outer blocks of weights",
            lambda out, inner, block, outer: (
                _bytes(out, inner, block, outer, top=0) + 4 * -(-out * inner // outer)
            ),
            "an outer block holds `outer` scales, not weights: divide the number of scales by it",
        ),
        Wrong(
            "mean forgotten",
            lambda *a: _bytes(*a, mean=0),
            "4 bytes are missing: the mean that was taken off the scales, or the last outer "
            "block, which is seldom full and takes its 4 bytes all the same",
        ),
        Wrong(
            "rounded down",
            lambda *a: _bytes(*a, up=False),
            "the last block, and the last byte, may be half full but take their room: round up",
        ),
        Wrong(
            "never rounded",
            lambda out, inner, block, outer: (
                out * inner * (4 + 8 / block + 32 / (block * outer)) / 8 + 4
            ),
            "there is no part of a byte or of a scale: round up the bytes of codes, the "
            "blocks and the outer blocks, each by itself",
        ),
        Wrong(
            "blocks of each row",
            _by_rows,
            "the blocks run over the flattened matrix, from one row into the next: divide out "
            "· inner by block, not each row",
        ),
        Wrong(
            "a mean for each outer block",
            lambda *a: _bytes(*a, top=8, mean=0),
            "there is one mean for all scales of the layer, 4 bytes, however many outer "
            "blocks there are",
        ),
        Wrong(
            "a byte for each weight",
            lambda out, inner, block, outer: (
                _bytes(out, inner, block, outer) + out * inner - (out * inner + 1) // 2
            ),
            "two codes of four bits share a byte",
        ),
        Wrong(
            "bits", lambda *a: 8 * _bytes(*a), "that is the number of bits; a byte has 8 of them"
        ),
    ],
)


# ------------------------------------------------------------------------------------------- decode


def _four_bit(rng):
    # rows of unequal size, so that the outer scales differ
    uneven = np.exp(rng.normal(size=(97, 1)))
    return (
        quantize((rng.normal(size=(97, 95)) * uneven).astype(np.float32), "nf4", 32, double=True),
    )


def _decode(
    q,
    *,
    table=True,
    alternate=1,
    high_first=True,
    outer=lambda q: np.repeat(q.nested.absmax, q.nested.block)[: len(q.absmax)],
    mean=True,
    levels=True,
    spread=np.repeat,
):
    """The reference, and by its switches the ways to get it wrong."""
    scales = (q.nested.levels[q.absmax] if levels else q.absmax.astype(np.float32)) * outer(
        q
    ) + q.nested.offset * mean
    halves = (q.packed >> 4, q.packed & 15)
    codes = np.concatenate(halves if high_first else halves[::-1], axis=alternate).reshape(-1)[
        : math.prod(q.shape)
    ]
    return (
        (q.book.levels[codes] if table else codes.astype(np.float32))
        * spread(scales, q.block)[: codes.size]
    ).reshape(q.shape)


DECODE = Exercise(
    "10-decode",
    "Four bits back into numbers",
    _four_bit,
    _decode,
    [
        Wrong(
            "the low half first",
            lambda q: _decode(q, high_first=False),
            "the first weight stands in the high half of its byte: packed >> 4 first, then "
            "packed & 15",
        ),
        Wrong(
            "all high halves, then all low ones",
            lambda q: _decode(q, alternate=0),
            "the two halves of a byte are neighbours: put them side by side in columns "
            "(axis=1) before you flatten",
        ),
        Wrong(
            "codes taken as numbers",
            lambda q: _decode(q, table=False),
            "a code is an index from 0 to 15 into q.book.levels, not a number; look its level up",
        ),
        Wrong(
            "scales tiled",
            lambda q: _decode(q, spread=np.tile),
            "the first q.block weights share the first scale: np.repeat gives 0, 0, 1, 1, …; "
            "np.tile gives 0, 1, 0, 1, …",
        ),
        Wrong(
            "mean forgotten",
            lambda q: _decode(q, mean=False),
            "the mean was taken off the scales before they were quantized; add "
            "q.nested.offset back",
        ),
        Wrong(
            "mean added too early",
            lambda q: _decode(q, mean=np.repeat(q.nested.absmax, q.nested.block)[: len(q.absmax)]),
            "the mean is in the units of the scales: multiply the level by its outer scale "
            "first, then add q.nested.offset",
        ),
        Wrong(
            "outer scales forgotten",
            lambda q: _decode(q, outer=lambda q: 1.0),
            "the levels of the scales' codes lie between −1 and 1; multiply each by the outer "
            "scale of its block, q.nested.absmax",
        ),
        Wrong(
            "one outer scale for all",
            lambda q: _decode(q, outer=lambda q: q.nested.absmax[0]),
            "every q.nested.block scales have an outer scale of their own: "
            "np.repeat(q.nested.absmax, q.nested.block), cut to length",
        ),
        Wrong(
            "outer scales tiled",
            lambda q: _decode(
                q, outer=lambda q: np.tile(q.nested.absmax, q.nested.block)[: len(q.absmax)]
            ),
            "the first q.nested.block scales share the first outer scale: np.repeat, not np.tile",
        ),
        Wrong(
            "codes of scales taken as numbers",
            lambda q: _decode(q, levels=False),
            "q.absmax holds indices from 0 to 255; look their levels up in q.nested.levels",
        ),
        Wrong(
            "codes of scales without a way back",
            lambda q: _decode(q, levels=False, outer=lambda q: 1.0, mean=False),
            "q.absmax holds indices of scales, not scales: look up q.nested.levels, multiply "
            "by the outer scales, add the mean",
        ),
    ],
)

"""Encode and decode in blocks, once for each kind of machine, under the same names.

Each module here is a kernel, and offers four functions:

    encode(x, book, block) -> packed, absmax
        The packed indices (bytes,) of an array or tensor x of any shape, and the absmax of each
        block (blocks,). Whole blocks and a shorter one at the end.
    decode(packed, absmax, nested, book, block, out)
        level * absmax into `out`, contiguous and of any shape and type. absmax: fp32, or 8-bit
        codes if `nested` says how to read them.
    encode_scales(absmax) -> codes, nested
    decode_scales(absmax, nested) -> absmax in fp32

`plain` is what the others equal bit for bit; one test goes through all of them. To add a kernel,
write such a module, let `choose` take it, and name it in that test.
"""

from __future__ import annotations

from typing import Protocol

from ..codebooks import CodeBook
from ..nested import Nested
from ..numpy_or_torch import Array, on_cpu
from . import compiled, cpu


class Kernel(Protocol):
    """What `choose` returns: a module with these functions."""

    def encode(self, x: Array, book: CodeBook, block: int) -> tuple[Array, Array]: ...

    def decode(
        self,
        packed: Array,
        absmax: Array,
        nested: Nested | None,
        book: CodeBook,
        block: int,
        out: Array,
    ) -> None: ...

    def encode_scales(self, absmax: Array) -> tuple[Array, Nested]: ...

    def decode_scales(self, absmax: Array, nested: Nested | None) -> Array: ...


def choose(x: Array, book: CodeBook, block: int, out: Array | None = None) -> Kernel:
    """The fastest kernel for what is where x is: numbers to encode, or packed indices to decode
    into `out`.
    """
    if not on_cpu(x):
        from . import torch_ops  # which needs torch

        return torch_ops
    return compiled if out is not None and compiled.supports(book, block, out) else cpu

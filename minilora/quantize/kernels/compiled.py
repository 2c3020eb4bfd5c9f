"""Decoding 4-bit codes in one compiled pass over memory, from the moment at which compiling has
paid.

What it replaces: the AVX kernels in bitsandbytes' C++ library.
How it works: NumPy's way (`cpu`) passes over each piece four times and needs the interpreter
between passes, so a second thread gains nothing. `decode.h` says the same in C++: look a byte's two
levels up, multiply by the block's scale, write, on all threads. The compiler takes a second, about
the time in which NumPy decodes 10⁹ numbers. So it is called after that many were decoded: a short
run never waits for it, and a long one waits no longer than it has decoded already.
MINILORA_COMPILE=always calls it at once, =never not at all. What this process has compiled stands
in `state`; `forget` drops it.
What it leaves out: encoding, which happens once; codes of other widths, fp16, NumPy arrays, long
blocks, small matrices: `supports` says so, and `cpu` does them, and everything where there is no
C++ compiler or where the first result is not the plain one's, bit for bit.
Where numerics differ: nowhere. fp32 is rounded to bf16 in integers, half to even, as torch does it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from ctypes import c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...system import cpp
from ..codebooks import CodeBook
from ..nested import Nested
from ..numpy_or_torch import Array, is_torch, to_numpy
from . import cpu, plain
from .cpu import decode_scales as decode_scales
from .cpu import encode as encode
from .cpu import encode_scales as encode_scales

SOURCE = Path(__file__).with_name("decode.h")

PAYS_AFTER = 10**9  # numbers decoded the plain way

SMALLEST = 1 << 15  # numbers; below, finding the compiled function costs more than it saves

# the largest block of bitsandbytes; rows and whole tensors as blocks are too few to share among
# threads
LONGEST = 4096

PROBE = 1 << 18  # numbers that the first result is judged by

MOST_PASSES = 16  # compiled loops that are kept; the oldest goes first


@dataclass
class State:
    """What this process has learned about compiling."""

    # by block, type and number of threads; None: given up
    passes: dict[tuple, Callable | None] = field(default_factory=dict)

    library: ctypes.CDLL | None = None
    built: bool = False  # or tried in vain

    decoded: int = 0  # numbers left to the plain way that need not have been, up to PAYS_AFTER

    def keep(self, key: tuple, run: Callable | None) -> None:
        self.passes[key] = run
        while len(self.passes) > MOST_PASSES:
            del self.passes[next(iter(self.passes))]


state = State()

_lock = threading.Lock()


def forget() -> None:
    """Drop every compiled loop, and count anew."""
    with _lock:
        state.passes.clear()
        state.library, state.built, state.decoded = None, False, 0


def supports(book: CodeBook, block: int, out: Array) -> bool:
    """Whether `decode` into `out` may be compiled, sooner or later."""
    if (
        book.bits != 4
        or block % 2
        or block > LONGEST
        or not is_torch(out)
        or out.numel() < SMALLEST
        or sys.byteorder != "little"
    ):
        return False
    torch = sys.modules["torch"]
    return (
        out.dtype in (torch.float32, torch.bfloat16)
        and out.storage_offset() % 2 == 0
        and not torch.compiler.is_compiling()
        and cpp.wanted() != "never"
    )


def decode(
    packed: Array, absmax: Array, nested: Nested | None, book: CodeBook, block: int, out: Array
) -> None:
    """level * absmax into `out`, see `kernels`: compiled once that has paid, else as `cpu` does."""
    import torch

    key = (block, out.dtype, torch.get_num_threads())
    stored, scales = to_numpy(packed).reshape(-1), plain.host_scales(absmax, nested)
    flat, body = out.detach().view(-1), out.numel() // block * block
    run = _pass(book, key, out.numel())
    if run is not None:
        try:
            run(stored[: body // 2], scales[: body // block], book, block, flat[:body])
        except Exception:  # whatever it stumbles over, the plain way does not
            run = None
            state.keep(key, None)
    done = 0 if run is None else body
    if done < out.numel():
        rest = stored[done // 2 :], scales[done // block :]
        cpu.decode(*rest, None, book, block, flat[done:])


def _pass(book: CodeBook, key: tuple, size: int) -> Callable | None:
    """The compiled loop for this block, type and number of threads, made if its time has come."""
    if key not in state.passes and _due(size):
        with _lock:
            if key not in state.passes:
                state.keep(key, _compile(book, *key))
    return state.passes.get(key)


def _due(size: int) -> bool:
    """Whether it is time to call the compiler; counts what is decoded until then."""
    state.decoded = min(state.decoded + size, PAYS_AFTER + 1)
    return cpp.wanted() == "always" or state.decoded > PAYS_AFTER


def _compile(book: CodeBook, block: int, dtype, threads: int) -> Callable | None:
    """The compiled pass for any number of blocks, tried on random bytes; None if it cannot be had
    or is not exact.

    run(packed (bytes,), absmax (blocks,), book, block, out (numbers,)).
    """
    import torch

    if not state.built:
        state.built, state.library = True, cpp.build(SOURCE)
    if state.library is None:
        return None
    function = state.library.decode_fp32 if dtype == torch.float32 else state.library.decode_bf16

    def run(packed: np.ndarray, absmax: np.ndarray, book: CodeBook, block: int, out) -> None:
        levels = book.pairs.view(np.float32)[1:32:2].copy()  # of bytes 0 … 15 the lower halves
        stored, scales = np.ascontiguousarray(packed), np.ascontiguousarray(absmax)
        addresses = (c_void_p(each.ctypes.data) for each in (stored, levels, scales))
        sizes = c_int64(scales.size), c_int64(block)
        function(*addresses, *sizes, c_void_p(out.data_ptr()), c_int64(threads))

    dice, blocks = np.random.default_rng(0), max(64, PROBE // block)
    packed = dice.integers(0, 256, blocks * block // 2, dtype=np.uint8)
    absmax = dice.standard_normal(blocks, dtype=np.float32)
    absmax.view(np.int32)[::2] &= -0x10000
    # halfway between two numbers of bf16, and so is what a level of 1 decodes to
    absmax.view(np.int32)[::2] |= 0x8000
    expected, out = (
        np.empty(blocks * block, np.float32),
        torch.empty(blocks * block, dtype=dtype),
    )
    cpu.decode(packed, absmax, None, book, block, expected)
    run(packed, absmax, book, block, out)
    return run if torch.equal(out, torch.from_numpy(expected).to(dtype)) else None

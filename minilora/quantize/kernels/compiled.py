"""Decoding 4-bit codes in one compiled pass over memory, from the moment at which compiling has
paid.

What it replaces: the AVX kernels in bitsandbytes' C++ library.
How it works: NumPy's way (`cpu`) passes over each piece four times and needs the interpreter
between passes, so a second thread gains nothing. The two functions below say the same in torch, and
torch.compile makes of each a loop in C++ on all threads: look a byte's two levels up, multiply by
the block's scale, write. The compiler takes some ten seconds, about the time in which NumPy decodes
10¹⁰ numbers. So it is called after that many were decoded: a short run never waits for it, and a
long one waits no longer than it has decoded already. MINILORA_COMPILE=always calls it at once,
=never not at all. What this process has compiled stands in `state`; `forget` drops it.
What it leaves out: encoding, which happens once; codes of other widths, fp16, NumPy arrays, long
blocks, small matrices: `supports` says so, and `cpu` does them, and everything where there is no
C++ compiler or where the first result is not the plain one's, bit for bit.
Where numerics differ: nowhere. fp32 is rounded to bf16 in integers, half to even, as torch does it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..codebooks import CodeBook
from ..nested import Nested
from ..numpy_or_torch import Array, is_torch, to_numpy
from . import cpu, plain
from .cpu import decode_scales as decode_scales
from .cpu import encode as encode
from .cpu import encode_scales as encode_scales

PAYS_AFTER = 10**10  # numbers decoded the plain way

# numbers; below, finding the compiled function costs more than it saves
SMALLEST = cpu.WHOLE + 1

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
        state.decoded = 0


def fp32_pass(packed, table, absmax, out) -> None:
    """bytes (n, block/2), table (256, 2): the levels of a byte's halves, absmax (n,) -> out (n,
    block/2, 2) fp32.
    """
    out.copy_(table[packed.int()] * absmax[:, None, None])


def bf16_pass(packed, table, absmax, out) -> None:
    """The same in bf16. table (2, 256); out (n, block/2) int32, two numbers each, the first in the
    lower half as in memory.
    """
    import torch

    # the bits of fp32, so moved that their upper half is rounded to nearest, ties to even
    def rounded(value):
        bits = value.view(torch.int32)
        return bits + 0x7FFF + (bits >> 16 & 1)

    byte, scale = packed.int(), absmax[:, None]
    first, second = rounded(table[0][byte] * scale), rounded(table[1][byte] * scale)
    out.copy_(first >> 16 & 0xFFFF | second & -0x10000)


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
        and out.storage_offset() % 2 == 0  # two numbers of bf16 are written as one integer
        and not torch.compiler.is_compiling()
        and _wanted() != "never"
    )


def _wanted() -> str:
    return os.environ.get("MINILORA_COMPILE", "auto")


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
            run(*_arguments(stored[: body // 2], scales[: body // block], book, block, flat[:body]))
        except Exception:  # whatever the compiler stumbles over, the plain way does not
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
    return _wanted() == "always" or state.decoded > PAYS_AFTER


def _arguments(packed: np.ndarray, absmax: np.ndarray, book: CodeBook, block: int, out) -> tuple:
    """What `fp32_pass` and `bf16_pass` take, without a copy but of the small table."""
    import torch

    table = torch.from_numpy(book.pairs.view(np.float32).reshape(256, 2))
    shape = (-1, block // 2, 2) if out.dtype == torch.float32 else (-1, block // 2)
    if out.dtype != torch.float32:
        table, out = table.T.contiguous(), out.view(torch.int32)
    return (
        torch.from_numpy(packed).view(-1, block // 2),
        table,
        torch.from_numpy(absmax),
        out.view(shape),
    )


def _compile(book: CodeBook, block: int, dtype, threads: int) -> Callable | None:
    """The compiled pass for any number of blocks, tried on random bytes; None if it cannot be had
    or is not exact.
    """
    try:
        import torch

        loop = torch.compile(
            fp32_pass if dtype == torch.float32 else bf16_pass,
            fullgraph=True,
            options={"cpp.simdlen": 1},
        )

        def run(*arguments) -> None:
            with torch.no_grad():
                loop(*arguments)

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
        arguments = _arguments(packed, absmax, book, block, out)
        for each in (arguments[0], arguments[2], arguments[3]):
            torch._dynamo.mark_dynamic(each, 0)
        run(*arguments)
        return run if torch.equal(out, torch.from_numpy(expected).to(dtype)) else None
    except Exception:
        # no compiler, a torch that cannot, a full disk: the plain way needs none of it
        return None

"""Quantizing and dequantizing a large matrix, beside bitsandbytes and beside copying it.

What it replaces: nothing; `cpu.py` puts these rows into its table.
How it works: NF4 in blocks of 64 on a square matrix of Gaussian numbers; the floor is torch's copy
of as many fp32 numbers. Decoding is timed twice, each with the goal: into one buffer, as a large
4-bit layer calls it and as the floor copies; and into a new tensor, which is all that bitsandbytes
can do on a CPU, where the system's clearing of fresh pages takes much of the time. Both by the
compiled pass, as in any long run; the row "NumPy alone" shows the plain way, where there is no
compiler.
What it leaves out: other codes, double quantization (a hundredth of the work).
Where numerics differ: nowhere; the bytes are equal, which is asserted before anything is timed.
"""

from __future__ import annotations

import os
from unittest.mock import patch

import torch

from benchmarks.kit.measure import Row, Seconds, interleaved, median_ms, ratio


def code_rows(threads: int, side: int, rounds: int) -> list[Row]:
    """NF4 of a (side, side) matrix: quantize, dequantize to fp32 and to bf16."""
    import bitsandbytes.functional as bnb

    from minilora.quantize import quantize

    x = torch.randn(side, side)
    ours, copied = quantize(x), torch.empty_like(x)
    packed, state = bnb.quantize_4bit(x, quant_type="nf4")
    assert torch.equal(ours.packed, packed) and torch.equal(
        ours.dequantize(), bnb.dequantize_4bit(packed, state)
    )
    memcpy = {"floor": lambda: copied.copy_(x)}
    quantizing = memcpy | {
        "ours": lambda: quantize(x),
        "peer": lambda: bnb.quantize_4bit(x, quant_type="nf4"),
    }
    rows = [
        _row("NF4 quantize", threads, interleaved(quantizing, rounds), 5.0 if threads == 1 else 4.5)
    ]
    for name, dtype, goal in (("fp32", torch.float32, 1.7), ("bf16", torch.bfloat16, 1.2)):
        state.dtype = dtype
        buffer = torch.empty(x.shape, dtype=dtype)
        peer = memcpy | {"peer": lambda: bnb.dequantize_4bit(packed, state)}
        into, anew = (lambda: ours.dequantize(out=buffer)), (lambda: ours.dequantize(dtype))
        rows.append(
            _row(
                f"NF4 dequantize to {name}, one buffer",
                threads,
                interleaved(peer | {"ours": into}, 2 * rounds),
                goal,
            )
        )
        rows.append(
            _row(
                f"NF4 dequantize to {name}, new tensor",
                threads,
                interleaved(peer | {"ours": anew}, 2 * rounds),
                goal,
            )
        )
        with patch.dict(os.environ, MINILORA_COMPILE="never"):
            rows.append(
                _row(
                    f"NF4 dequantize to {name}, one buffer, NumPy alone",
                    threads,
                    interleaved(peer | {"ours": into}, rounds),
                    None,
                )
            )
    return rows


def _row(what: str, threads: int, seconds: Seconds, goal: float | None) -> Row:
    faster, spread = ratio(seconds, "peer", "ours")
    share = ratio(seconds, "floor", "ours")[0]
    return Row(
        what,
        threads,
        "ms",
        median_ms(seconds, "ours"),
        median_ms(seconds, "peer"),
        "bitsandbytes",
        faster,
        "{:.2f} × as fast",
        goal,
        f"{share:.0%} of memcpy's speed",
        spread,
    )

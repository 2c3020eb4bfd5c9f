"""Real steps on a card, or in small on a processor, beside the predicted peak."""

from __future__ import annotations

import sys

import torch

from benchmarks.kit.card import kernel_works, let_go, peak_of
from benchmarks.memory.configurations import SMALL, card_configurations, name_of
from benchmarks.memory.rows import about, line, read, summary, write
from minilora.budget.catalog import GIB
from minilora.budget.estimate import estimate
from minilora.budget.measure.fake_run import (
    Plan,
    batch_of,
    build,
    loss_of,
    optimizer_of,
    prepared,
    update,
)
from minilora.budget.setup import Setup, make
from minilora.budget.this_card import workspaces


def peak_on(device: str, setup: Setup) -> int:
    """The most bytes that a real step of `setup` takes on the device, its second step included."""
    plan = Plan(setup)
    with torch.device(device):
        model = build(plan)

        def two_steps() -> None:
            batch, optimizer = batch_of(setup), optimizer_of(model, setup)
            for _ in range(2):
                loss_of(model, setup, batch).backward()
                update(plan, optimizer)

        with prepared(model, setup):
            return peak_of(two_steps, model).allocated


def left_out(setup: Setup, needed: int, room: int | None, no_kernel: str | None) -> str:
    """Why a configuration is not tried here; "" if it is."""
    if room is not None and needed > 0.95 * room:
        return f"needs {needed / GIB:.1f} GiB"
    return (
        f"4 bits are decoded by bitsandbytes there, and {no_kernel}"
        if no_kernel and setup.base == "4bit"
        else ""
    )


def keep(card: str, rows: list[dict]) -> None:
    """Put a card's rows into the file, in the place of those of its rows that have the same
    names.
    """
    found, names = read(), {row["name"] for row in rows}
    found["gpu_rows"] = [
        row for row in found.get("gpu_rows", []) if row["card"] != card or row["name"] not in names
    ] + rows
    write(found)


def on_card(device: str) -> int:
    """Real steps beside the prediction; each row is added under the card's name as soon as it is
    there. Returns 1 if one broke off.
    """
    small = device == "cpu"
    if not small and not torch.cuda.is_available():
        print(
            "no CUDA GPU was found; run this where torch.cuda.is_available() is True, or try "
            "--gpu cpu",
            file=sys.stderr,
        )
        return 2
    card = "cpu" if small else torch.cuda.get_device_name()
    room = None if small else torch.cuda.get_device_properties(0).total_memory
    setups = (
        [
            make(SMALL, method=method, device="cpu", seq=64, checkpointing=False)
            for method in ("full-bf16", "lora", "qlora")
        ]
        if small
        else card_configurations()
    )
    rows, broken, no_kernel = [], 0, kernel_works(device)
    for setup in setups:
        budget = estimate(setup)
        # a 4-bit model is first made in 16 bits
        why = left_out(setup, max(budget.with_context, 3 * budget.parameters), room, no_kernel)
        if why:
            print(f"{name_of(setup):100} left out: {why}", flush=True)
            continue
        try:
            taken = peak_on(device, setup)
        except Exception as error:  # the others are measured all the same
            broken += 1
            print(
                f"{name_of(setup):100} broke off: {type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}",
                flush=True,
            )
            taken = 0
        let_go(device)
        if not taken:
            continue
        # cuBLAS takes them from torch's allocator, which counts them
        expected = budget.peak_allocated + workspaces(device)
        rows.append(
            {
                "name": name_of(setup),
                "card": card,
                "measured": taken,
                "estimate": expected,
                "error": expected / taken - 1,
            }
            | ({} if small else about())
        )
        print(line(rows[-1]), flush=True)
        if not small:
            keep(card, rows)
    if not rows:
        print(f"{card} has run none of the configurations", file=sys.stderr)
        return 2
    told = summary(rows)
    print(
        f"\n{card}: {told['rows']} configurations, mean {told['mean_error']:.2%}, worst "
        f"{told['worst_error']:.2%}"
    )
    return min(broken, 1)

"""The two kinds of parts of `gpu.py`: a step timed side by side, and training under a cap.

What it replaces: nothing; it is what each process of `gpu.py` does.
How it works: a step is `budget.measure.fake_run`'s: forward, loss, backward, clipping, fused AdamW.
Each contender is made, measured and let go before the next one is made, so none stands in another's
memory; the peak is that of its first two steps, in which the optimizer's memory is made and found
again. In fp16 the loss is multiplied by 1024 before the backward pass; clipping and AdamW take that
out again.
What it leaves out: the loop around a step (data, validation, saving).
Where numerics differ: all contenders have the same weights and the same start of their adapters;
their first losses are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
import traceback
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.gpu import random_llama
from benchmarks.gpu.plan import SEED, Part
from benchmarks.kit.card import Cap, card_cap, decimal_cap, hold_to, kernel_works, let_go, peak_of
from minilora import lora
from minilora.budget.catalog import GIB
from minilora.budget.estimate import estimate
from minilora.budget.measure.allocator import MIDDLE_SEGMENT
from minilora.budget.measure.fake_run import (
    Plan,
    adapt,
    batch_of,
    loss_of,
    optimizer_of,
    update,
)
from minilora.budget.setup import Setup, make
from minilora.budget.this_card import workspaces
from minilora.hub import compute_dtype
from minilora.lora import fused

# AdamW's: a few steps on one batch show, and the fifth does not overshoot, 80 layers deep
RATE = 5e-4
# steps before the clock counts, timed steps at most, seconds after which no further one begins
WARM, TIMED, ENOUGH = 3, 10, 15.0
STEPS = 5  # of a training under a cap
PRECISION = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
CAPS = {
    "24 GB card": lambda: card_cap(24),
    "48 GB card": lambda: card_cap(48),
    "48·10⁹ bytes": lambda: decimal_cap(48),
}


def setup_of(part: Part, rank: int, device: str, library: str = "minilora") -> Setup:
    """What is trained, in the words of the budget. PEFT's detour is the plain chain."""
    return make(
        part.shape,
        method="qlora",
        rank=rank,
        batch=part.batch,
        seq=part.seq,
        checkpointing=True,
        foreach=False,
        device=device,
        precision=PRECISION[compute_dtype(device)],
        library=library,
        detour="plain" if library == "transformers" else "fused",
    )


class Trainer:
    """A model, its optimizer and one batch, which every step sees again."""

    def __init__(self, model: nn.Module, setup: Setup, autocast: bool = False) -> None:
        self.model, self.setup, self.plan, self.device = (
            model,
            setup,
            Plan(setup),
            next(model.parameters()).device,
        )
        self.optimizer = optimizer_of(model, setup)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE
        torch.manual_seed(SEED)
        self.batch = tuple(tensor.to(self.device) for tensor in batch_of(setup))
        half = compute_dtype(self.device.type) if self.device.type == "cuda" else torch.bfloat16
        self.around = (
            (lambda: torch.autocast(self.device.type, dtype=half))
            if autocast
            else contextlib.nullcontext
        )
        self.losses: list[float] = []
        self.seconds: list[float] = []
        fused.adds_last(setup.rank, self.device.type)  # its trial is no part of a step's memory

    def step(self) -> None:
        began = time.perf_counter()
        with self.around():
            loss = loss_of(self.model, self.setup, self.batch)
        (loss * 1024 if self.setup.precision == "fp16" else loss).backward()
        update(self.plan, self.optimizer)
        self.losses.append(loss.item())  # waits for the device
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - began)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()


# -------------------------------------------------------------------------------------------- speed


def speed(part: Part, options: argparse.Namespace) -> dict:
    """The record of a part a1, a3 or a8: every contender's time and peak, and ours beside the best
    of theirs.
    """
    device, rank = options.device, part.runs[0][0]
    own, their = setup_of(part, rank, device), setup_of(part, rank, device, "transformers")
    reason = kernel_works(device)
    makers: dict[str, tuple[Setup, Callable[[], nn.Module], bool]] = {
        "ours": (own, lambda: random_llama.ours(own, device, SEED, not reason), False)
    }
    if device == "cuda" and not reason:
        makers["ours, plain decoder"] = (
            own,
            lambda: random_llama.ours(own, device, SEED, False),
            False,
        )
    makers["theirs"] = their, lambda: random_llama.theirs(their, device, SEED), False
    makers["theirs under autocast"] = their, lambda: random_llama.theirs(their, device, SEED), True
    contenders = {}
    for name, (setup, maker, autocast) in makers.items():
        contenders[name] = attempt(lambda: contender(setup, maker, autocast))
        let_go(device)
    contenders["ours"]["decoder"] = (
        f"plain torch operations, since {reason}" if reason else "one kernel, one buffer"
    )
    done = all(each["status"] == "done" for each in contenders.values())
    return {
        "status": "done" if done else "partial",
        "tokens": own.tokens,
        "precision": own.precision,
        "contenders": contenders,
        "beside": beside(contenders),
    }


def attempt(work: Callable[[], dict]) -> dict:
    """What `work` returns, or why it could not: no memory, no library, or anything else, with the
    place. What ran before it is kept.
    """
    try:
        return {"status": "done"} | work()
    except (torch.OutOfMemoryError, MemoryError) as error:
        return {"status": "out of memory", "error": " ".join(str(error).split())}
    except Exception as error:
        # ours say it in one line, theirs behind it
        absent = isinstance(error, ImportError) or isinstance(error.__cause__, ImportError)
        told = {
            "status": "not run" if absent else "failed",
            "error": f"{type(error).__name__}: {error}",
        }
        return told if absent else told | {"where": traceback.format_exc().splitlines()[-12:]}


def contender(setup: Setup, maker: Callable[[], nn.Module], autocast: bool) -> dict:
    """Make it, measure its peak in two steps, then time it."""
    trainer = Trainer(maker(), setup, autocast)
    peak = peak_of(lambda: trainer.steps(2), trainer.model)
    trainer.steps(max(0, WARM - 2))
    began, first = time.perf_counter(), len(trainer.seconds)
    while len(trainer.seconds) - first < 3 or (
        len(trainer.seconds) - first < TIMED and time.perf_counter() - began < ENOUGH
    ):
        trainer.step()
    timed = trainer.seconds[first:]
    predicted = estimate(setup).peak_allocated + workspaces(trainer.device.type)
    return {
        "tokens_per_second": setup.tokens / statistics.median(timed),
        "step_seconds": [round(each, 5) for each in timed],
        "losses": trainer.losses,
        **peak.told(),
        "predicted": predicted,
        "error_of_prediction": predicted / peak.allocated - 1,
    }


def beside(contenders: dict) -> dict:
    """Ours beside the best of theirs, in speed and in memory; empty where one side did not run."""
    their = [
        each
        for name, each in contenders.items()
        if name.startswith("theirs") and each["status"] == "done"
    ]
    own = contenders["ours"]
    if not their or own["status"] != "done":
        return {}
    plain = contenders["theirs"]
    differ = abs(own["losses"][0] - plain["losses"][0]) if plain["status"] == "done" else None
    return {
        "speed": own["tokens_per_second"] / max(each["tokens_per_second"] for each in their),
        "peak": own["allocated"] / min(each["allocated"] for each in their),
        "first_losses_differ_by": differ,
    }


# ------------------------------------------------------------------------------------------- memory


def memory(part: Part, options: argparse.Namespace) -> dict:
    """The record of a part b7, b20 or b65: its trainings under their caps, over one base that is
    made once.
    """
    device = options.device
    setups = [setup_of(part, rank, device) for rank, _ in part.runs]
    caps = [cap_of(name, setup, options) for (_, name), setup in zip(part.runs, setups)]
    reason = kernel_works(device)
    enforced = hold_to(max(cap.bytes for cap in caps), device)
    record: dict = {
        "decoder": f"plain torch operations, since {reason}"
        if reason
        else "one kernel, one buffer",
        "precision": setups[0].precision,
    }
    if device == "cuda" and not enforced:
        total = torch.cuda.get_device_properties(0).total_memory
        if max(estimate(setup).with_context for setup in setups) > total:
            return record | {
                "status": "left out",
                "error": f"the card has {total / GIB:.2f} GiB, less than this needs",
            }
    began = time.perf_counter()
    built: dict = {}

    def make_base() -> None:
        built["model"] = random_llama.ours(setups[0], device, SEED, not reason)

    outcome = attempt(lambda: make_base() or {})
    if outcome["status"] != "done":
        return record | outcome | {"while": "weights were made"}
    if device == "cuda":
        record |= {
            "making_allocated": torch.cuda.max_memory_allocated(),
            "making_reserved": torch.cuda.max_memory_reserved(),
        }
    record |= {"making_seconds": round(time.perf_counter() - began, 2), "trainings": []}
    for number, (setup, cap) in enumerate(zip(setups, caps)):
        let_go(device)
        enforced = hold_to(cap.bytes, device)
        if number:
            torch.manual_seed(SEED)
            adapt(lora.unload(built["model"]).requires_grad_(False), setup)
        told = {
            "rank": setup.rank,
            "cap": cap.told(enforced),
            "predicted": predicted_on(setup, device),
        }
        record["trainings"].append(told | attempt(lambda: training(built["model"], setup, cap)))
    done = all(each["status"] == "done" for each in record["trainings"])
    return record | {"status": "done" if done else "partial"}


def predicted_on(setup: Setup, device: str) -> int:
    return estimate(setup).peak_allocated + workspaces(device)


def cap_of(name: str, setup: Setup, options: argparse.Namespace) -> Cap:
    """The cap that a run is held to, or the one that was asked for instead."""
    if options.cap_gb:
        return Cap("asked for", int(options.cap_gb * 1e9), f"--cap-gb {options.cap_gb:g}")
    if name in CAPS:
        return CAPS[name]()
    # a card gives whole segments, each as large as the small model
    spare = 2 * MIDDLE_SEGMENT if options.device == "cuda" else 0
    return Cap(
        name,
        int(1.25 * predicted_on(setup, options.device)) + spare,
        "a small model's, so that the cap is at work here, too",
    )


def training(model: nn.Module, setup: Setup, cap: Cap) -> dict:
    """Five steps on one batch: losses, seconds and the peak, beside the prediction and the cap."""
    trainer = Trainer(model, setup)
    peak = peak_of(lambda: trainer.steps(STEPS), model, cap.bytes)
    predicted = predicted_on(setup, trainer.device.type)
    most = peak.reserved or peak.allocated
    return {
        **peak.told(),
        "error_of_prediction": predicted / peak.allocated - 1,
        "under_cap": most <= cap.bytes,
        "losses": trainer.losses,
        "falls": trainer.losses[-1] < trainer.losses[0],
        "step_seconds": [round(each, 4) for each in trainer.seconds],
    }

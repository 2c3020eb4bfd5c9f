"""The memory ladder: one training step of the shipped base, with one saving more on each rung,
measured and on paper.

What it replaces: a table of savings that nobody measured together.
How it works: `RUNGS` names each rung by the settings of `estimate`. `student` makes the shipped
base ready on a rung, `measured` lets it take two real steps under the ledger and keeps the peak,
what it was made of, and the most that each kind of memory ever took; `on_paper` asks the closed
forms for the same rung, of this model or of any other; `pace` times a step. "frozen" trains
nothing: its forward pass alone is measured, and on paper it is its weights alone; it is the floor
that LoRA starts from.
What it leaves out: other batches, paging (which needs a GPU).
Where numerics differ: bytes of real storages on a CPU, where 8-bit averages are updated by
`optim.AdamW8bit`, not by a kernel, and decoding a 4-bit weight takes a little memory of its own;
within 1 % of the closed forms for the shipped base.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import torch
from torch import nn

from ... import llama, lora, qlora
from ...qlora import int8
from ...system.files import data_folder
from ...train import loss, optim
from ..estimate import estimate
from ..setup import make
from .fake_run import Plan, batch_of
from .ledger import KINDS, Ledger, Watch, watch_steps

RUNGS = {  # name → what `estimate` is asked
    "fp32, all weights": {"method": "full"},
    "bf16, all weights": {"method": "full-bf16"},
    "frozen": {"method": "inference"},
    "LoRA": {"method": "lora"},
    "int8": {"method": "int8"},
    "NF4": {"method": "qlora", "double": False},
    "+ double quantization": {"method": "qlora"},
    "+ checkpointing": {"method": "qlora", "checkpointing": True},
    "+ 8-bit optimizer": {"method": "qlora", "checkpointing": True, "optimizer": "adamw8bit"},
}

SETTINGS = {"batch": 1, "seq": 512, "checkpointing": False, "foreach": False}


@dataclass(frozen=True)
class Rung:
    """What was measured. peak: bytes; kinds: the peak by what it is made of; most: the most that
    each kind took at any time.
    """

    name: str
    peak: int
    kinds: dict[str, int]
    most: dict[str, int]
    model: nn.Module
    optimizer: object | None
    batch: tuple


def student(name: str, rank: int = 16) -> tuple[nn.Module, object | None]:
    """(the shipped base on that rung, its optimizer, None where nothing trains)."""
    how = RUNGS[name]
    method = how["method"]
    model = llama.Llama.from_pretrained(
        data_folder() / "base", dtype=torch.float32 if method == "full" else torch.bfloat16
    )
    if method == "inference":
        return model.requires_grad_(False), None
    if method == "int8":
        int8.quantize_model_int8(model)
    elif method == "qlora":
        qlora.quantize_model(model, double=how.get("double", True))
    if not method.startswith("full"):
        lora.add_lora(model, rank, rank)
    model.gradient_checkpointing = how.get("checkpointing", False)
    trained = [p for p in model.parameters() if p.requires_grad]
    eight = how.get("optimizer") == "adamw8bit"
    return model.train(), optim.AdamW8bit(trained, lr=1e-4) if eight else torch.optim.AdamW(
        trained, lr=1e-4, fused=True
    )


def measured(name: str, rank: int = 16, seq: int = 512) -> Rung:
    """Two real steps of the shipped base on that rung, on one row of `seq` tokens."""
    model, optimizer = student(name, rank)
    plan = Plan(_setup(name, rank, seq), clip=0.0)
    batch = batch_of(plan.setup)
    if optimizer is None:
        kinds = _forward_alone(model, batch)
        return Rung(name, sum(kinds.values()), kinds, kinds, model, None, batch)
    book = watch_steps(model, plan, optimizer=optimizer)
    return Rung(name, book.peak, book.kinds, most_of(book), model, optimizer, batch)


def _setup(name: str, rank: int, seq: int):
    """The setup that the ledger's step needs: it decides the batch, and what runs around the
    step.
    """
    how = RUNGS[name]
    method = "lora" if how["method"] == "inference" else how["method"]
    settings = SETTINGS | {"seq": seq, "checkpointing": how.get("checkpointing", False)}
    return make("tiny", method=method, rank=rank, library="minilora", device="cpu", **settings)


def _forward_alone(model: nn.Module, batch: tuple) -> dict[str, int]:
    """Weights, constants, and the most that stands beside them while the loss is computed without
    gradients.
    """
    ids, labels = batch
    sizes = [
        sum({t.untyped_storage().data_ptr(): t.nbytes for t in held}.values())
        for held in (model.parameters(), model.buffers())
    ]
    with Watch() as watch:
        for tensor in (*model.parameters(), *model.buffers()):
            watch.number(tensor)
        with torch.no_grad():
            loss.loss_sum(model, (ids, labels, None))
    highest = max(itertools.accumulate(size for _, size in watch.events))
    return dict(zip(("weights", "constants", "temporaries"), (*sizes, highest - sum(sizes))))


def most_of(book: Ledger) -> dict[str, int]:
    """The most bytes that each kind of memory took at any time; they need not have stood
    together.
    """
    stands, most = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for number, size in book.events:
        kind = book.kind_of.get(number, "temporaries")
        stands[kind] += size
        most[kind] = max(most[kind], stands[kind])
    return most


def on_paper(model: str, name: str, rank: int = 16, **settings) -> int:
    """The peak by the closed forms, bytes; of "frozen" the weights alone."""
    told = estimate(model, rank=rank, **{**SETTINGS, **RUNGS[name], **settings})
    return told.parts["weights"].bytes if name == "frozen" else told.peak_allocated


def pace(rung: Rung, times: int = 2) -> float:
    """Seconds of the fastest of a few more steps on that rung, without the ledger, which slows
    them.
    """
    step(rung)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        step(rung)
        taken.append(time.perf_counter() - began)
    return min(taken)


def step(rung: Rung) -> None:
    """One more step of a rung that was measured."""
    ids, labels = rung.batch
    with torch.set_grad_enabled(rung.optimizer is not None):
        total, count = loss.loss_sum(rung.model, (ids, labels, None))
    if rung.optimizer is not None:
        (total / count).backward()
        rung.optimizer.step()
        rung.optimizer.zero_grad()

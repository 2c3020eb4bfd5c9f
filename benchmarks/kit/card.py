"""What a device says of a step: the most memory it took, the cap it was held to, and the device's
own name.

What it replaces: `torch.cuda.max_memory_allocated` by itself, which a processor does not have.
How it works: on a GPU torch's allocator is asked, its statistics reset before. On a processor the
ledger's counter books every storage of the step, and of what the model holds. A cap on a GPU is
`torch.cuda.set_per_process_memory_fraction`: the allocator refuses to take a segment from the
driver that would bring what it *reserves* above the cap, first hands back what it caches, and then
raises. On a processor the counter raises at the storage that goes above it.
What it leaves out: on a GPU the driver's context, which no cap sees (`Cap` takes it off
beforehand); on a processor what kernels take inside an operation.
Where numerics differ: bytes are exact on a processor. On a GPU cuBLAS' workspaces count, too, and
`allocated` counts whole blocks: up to a MiB of a block stays unused where less is asked for, which
at 20B is more than a hundredth of the peak; `requested` is without it.
"""

from __future__ import annotations

import gc
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.kit import machine
from minilora.budget.catalog import CONTEXT, GIB, GPUS
from minilora.budget.measure.fake_run import by_kernel
from minilora.budget.measure.ledger import Watch
from minilora.quantize import quantize


@dataclass(frozen=True)
class Peak:
    """The most bytes that stood at one time; on a GPU also what was taken from the driver, and what
    was asked for before blocks were rounded.
    """

    allocated: int
    reserved: int | None = None
    requested: int | None = None

    def told(self) -> dict:
        return {"allocated": self.allocated, "reserved": self.reserved, "requested": self.requested}


class Counter(Watch):
    """The ledger's counter, which raises MemoryError at the storage that would stand above `cap`
    bytes.
    """

    def __init__(self, cap: int | None = None) -> None:
        super().__init__()
        self.cap, self.now, self.read = cap, 0, 0

    def number(self, tensor: Tensor) -> int:
        found = super().number(tensor)
        self.now += sum(size for _, size in self.events[self.read :])
        self.read = len(self.events)
        if self.cap is not None and self.now > self.cap:
            raise MemoryError(
                f"{self.now:,} bytes stand, the cap is {self.cap:,}; the last tensor has "
                f"shape {list(tensor.shape)}"
            )
        return found

    @property
    def peak(self) -> int:
        return max(itertools.accumulate(size for _, size in self.events), default=0)


def held_by(model: nn.Module) -> Iterable[Tensor]:
    """Every tensor that the model keeps at rest, bitsandbytes' constants among them."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        for each in (state, getattr(state, "state2", None)):
            yield from (
                (value for value in vars(each).values() if isinstance(value, Tensor))
                if each is not None
                else ()
            )


def peak_of(work: Callable[[], object], model: nn.Module, cap: int | None = None) -> Peak:
    """The most memory while `work` runs, with what `model` holds. cap: bytes, for a processor; a
    GPU is capped by `hold_to`.
    """
    gc.collect()  # what earlier work left behind in circles
    if next(model.parameters()).is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        requested = torch.cuda.memory_stats().get("requested_bytes.all.peak")
        return Peak(torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), requested)
    was_on = gc.isenabled()
    gc.disable()  # as in the ledger: what only a collection would free stands
    try:
        with Counter(cap) as counter:
            for tensor in held_by(model):
                counter.number(tensor)
            work()
        return Peak(counter.peak)
    finally:
        if was_on:
            gc.enable()


# --------------------------------------------------------------------------------------------- caps


@dataclass(frozen=True)
class Cap:
    """So many bytes for torch's allocator. `means`: how they follow from what is printed on a
    card.
    """

    name: str
    bytes: int
    means: str

    def told(self, enforced: bool) -> dict:
        return {
            "name": self.name,
            "bytes": self.bytes,
            "GB": round(self.bytes / 1e9, 3),
            "GiB": round(self.bytes / GIB, 3),
            "means": self.means,
            "enforced": enforced,
        }


def card_cap(gigabytes: int) -> Cap:
    """What the smallest card of the catalogue that is sold with so many GB leaves for torch."""
    card = min(
        (each for each in GPUS.values() if each.memory == gigabytes * 10**9),
        key=lambda each: each.usable,
    )
    means = (
        f"a card sold as {gigabytes} GB: the {card.name} shows CUDA {card.usable / GIB:.2f} GiB, "
        f"less {card.context / 2**20:.0f} MiB for the driver's context"
    )
    return Cap(f"{gigabytes} GB card", card.usable - card.context, means)


def decimal_cap(gigabytes: int) -> Cap:
    """The whole process in so many times 10⁹ bytes, the driver's context included."""
    size = gigabytes * 10**9
    return Cap(
        f"{gigabytes}·10⁹ bytes",
        size - CONTEXT,
        f"{gigabytes}·10⁹ bytes ({size / GIB:.2f} GiB), less {CONTEXT / 2**20:.0f} MiB for "
        "the driver's context",
    )


def hold_to(cap: int, device: str) -> bool:
    """Let torch's allocator take at most `cap` bytes; whether it is held to that. A processor's
    counter does it by itself.
    """
    if not device.startswith("cuda"):
        return True
    total = torch.cuda.get_device_properties(device).total_memory
    # of the current device; the name "cuda" alone is refused here
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total))
    return cap <= total


def let_go(device: str) -> None:
    """Give back what the last contender held."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def kernel_works(device: str) -> str | None:
    """None if bitsandbytes' decoding kernel runs here and gives our numbers, else why it does
    not.
    """
    if device == "cpu":
        return None  # our own decoder fills the one buffer
    try:
        q = quantize(torch.randn(256, 128, device=device), double=True)
        return (
            None
            if torch.allclose(
                by_kernel(q, torch.float32), q.dequantize(torch.float32), rtol=1e-5, atol=0
            )
            else "bitsandbytes' kernel gives other numbers than ours"
        )
    except Exception as error:  # not installed, or without a library for this CUDA
        return f"{type(error).__name__}: {error}"


# -------------------------------------------------------------------------------------------- names


def device_told(device: str) -> dict:
    """The device in words and numbers, for a results file."""
    if not device.startswith("cuda"):
        return machine.about() | {"name": "cpu"}
    about = torch.cuda.get_device_properties(device)
    return {
        "name": about.name,
        "memory_bytes": about.total_memory,
        "memory_GiB": round(about.total_memory / GIB, 2),
        "capability": f"{about.major}.{about.minor}",
        "driver": driver(),
        "cuda": torch.version.cuda,
        "host": machine.about(),
    }


def driver() -> str | None:
    """The driver's version as nvidia-smi says it; None where that is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    said = subprocess.run(
        [program, "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return (
        said.stdout.strip().splitlines()[0]
        if said.returncode == 0 and said.stdout.strip()
        else None
    )

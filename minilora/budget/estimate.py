"""`estimate`: what a run needs, part by part, and at its worst moment.

What it replaces: accelerate's `estimate-memory` and calculators on the web, which guess activations
and temporaries.
How it works: the parts that stay (`memory`), what autograd keeps (`activations`) and the worst
moments (`step_peak`) are put together in a `Budget`. `total` adds all parts as if they stood at
once, an upper bound; `peak_allocated` is the largest moment, what `torch.cuda.max_memory_allocated`
reports; `with_context` adds what the driver and the allocator take.
What it leaves out: data loaders, fragmentation that depends on the order of sizes (the ledger's
allocator models it). The check against the ledger (within 1 %) is of AdamW alone: 8-bit and paged
averages run in kernels that need a GPU, and their bytes are counted by form only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from .catalog import CONTEXT, GIB, GPU, gpu
from .forms import activations, memory, step_peak
from .forms.memory import Part
from .forms.step_peak import Moment
from .setup import Setup, make
from .shapes import Shape

# two of 8.125 MiB, which cuBLAS takes for a forward and a backward thread
WORKSPACES = 2 * 8_519_680

SEGMENT = 2 * 2**20  # the caching allocator hands out whole segments of 2 MiB


@dataclass(frozen=True)
class Budget:
    """What a run needs. parts: name → Part, in order; moments: phase → Moment; all sizes in
    bytes.
    """

    setup: Setup
    parts: dict[str, Part]
    moments: dict[str, Moment]
    parameters: int
    trainable: int

    @property
    def total(self) -> int:
        """All parts on the card, added: more than ever stands at once."""
        return sum(part.bytes for part in self.parts.values() if not part.host)

    @property
    def host(self) -> int:
        """What may live in the host's memory: averages of a paged optimizer."""
        return sum(part.bytes for part in self.parts.values() if part.host)

    @property
    def moment(self) -> str:
        """The phase in which most bytes stand."""
        return max(self.moments, key=lambda name: self.moments[name].bytes)

    @property
    def peak_allocated(self) -> int:
        """The most bytes that stand at one time."""
        return self.moments[self.moment].bytes

    @property
    def with_context(self) -> int:
        """What a present-day card must have: see `needs`."""
        return self.needs()

    def needs(self, card: str | GPU | None = None) -> int:
        """The peak with library workspaces, whole segments of the allocator, and the context of the
        card's driver.
        """
        if self.setup.device != "cuda":
            return self.peak_allocated
        context = CONTEXT if card is None else gpu(card).context
        return memory.ceil(self.peak_allocated + WORKSPACES, SEGMENT) * SEGMENT + context

    def to_dict(self) -> dict:
        """Numbers and texts alone, for JSON."""
        setup = asdict(self.setup)
        return {
            "setup": {**setup, "shape": self.setup.shape.name},
            "shape": setup["shape"],
            "parameters": self.parameters,
            "trainable": self.trainable,
            "parts": {name: asdict(part) for name, part in self.parts.items()},
            "moments": {name: asdict(moment) for name, moment in self.moments.items()},
            "moment": self.moment,
            "total": self.total,
            "peak_allocated": self.peak_allocated,
            "with_context": self.with_context,
            "host": self.host,
        }


def estimate(model: str | Path | Shape | Setup = "llama-7b", **settings) -> Budget:
    """The budget of a run. Settings are the fields of `Setup`: method, rank, targets, batch, seq,
    checkpointing, precision, optimizer, foreach, attention, code, double, block, library, device.
    Raises MiniloraError for what cannot be.
    """
    setup = model.but(**settings) if isinstance(model, Setup) else make(model, **settings)
    return _estimate(setup)


@lru_cache(maxsize=512)
def _estimate(setup: Setup) -> Budget:
    parts = dict(memory.weights(setup))
    if not setup.trains:
        return _inference(setup, parts)
    if setup.adapters:
        parts["adapters"] = memory.adapters(setup)
    parts["tables and batch"] = memory.inputs(setup)
    held = sum(part.bytes for part in parts.values())
    parts["gradients"] = memory.gradients(setup)
    averages = memory.optimizer_states(setup)
    parts.update(averages)
    kept, copies = activations.kept(setup), activations.copies(setup)
    parts["activations"] = replace(kept, bytes=kept.bytes - copies.bytes)
    if copies.bytes:
        parts["16-bit weight copies"] = copies
        parts["activations"] = replace(
            parts["activations"],
            formula=f"{kept.formula}; less {copies.bytes:,} B of weight copies",
        )
    forward, backward = step_peak.step_peaks(setup)
    temporary = step_peak.optimizer_temporary(setup)
    passing = max(forward, backward) - kept.bytes
    parts["optimizer temporaries"] = temporary
    gone = parts["gradients"].bytes * setup.whole
    text = (
        f"{max(forward, backward):,} B at the worst instant of forward and backward − "
        f"{kept.bytes:,} B kept"
    )
    text += f" − {gone:,} B of gradients" if gone else ""
    parts["backward temporaries"] = Part(
        max(0, passing - gone), text, "gradients in flight, logits, decoded weights"
    )
    state = sum(part.bytes for part in averages.values() if not part.host)
    base = held + state
    update = base + parts["gradients"].bytes + temporary.bytes + step_peak.left_over(setup)
    found = {
        "forward": Moment(
            base + forward,
            f"{base:,} B held + {forward:,} B kept and passing",
            "weights, averages, activations so far",
        ),
        "backward": Moment(
            base + backward,
            f"{base:,} B held + {backward:,} B kept and passing",
            "activations, gradients so far, one node's temporaries",
        ),
        "optimizer step": Moment(
            update,
            f"{base:,} B held + {parts['gradients'].bytes:,} B gradients + {temporary.bytes:,} B",
            "gradients and √v̂",
        ),
    }
    return Budget(setup, parts, found, setup.shape.parameters, setup.trainable)


def _inference(setup: Setup, parts: dict[str, Part]) -> Budget:
    """Weights, the cache of keys and values, and one token's largest result: its logits."""
    parts["KV cache"] = memory.kv_cache(setup)
    parts["logits"] = memory.last_logits(setup)
    if setup.base == "4bit":
        parts["decode buffer"] = memory.decode_buffer(setup)
    total = sum(part.bytes for part in parts.values())
    formula = " + ".join(f"{part.bytes:,}" for part in parts.values())
    return Budget(
        setup,
        parts,
        {"generation": Moment(total, f"{formula} B", "every part at once")},
        setup.shape.parameters,
        0,
    )


def gib(size: float) -> str:
    """Bytes as text in GiB."""
    return f"{size / GIB:.2f} GiB"

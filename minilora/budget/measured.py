"""Peaks that others measured on real cards, beside what this package predicts for the same runs.

What it replaces: a promise that the estimate is good.
How it works: every `Measurement` has the figure, where it was published, what was said about the run (`stated`), what we had to assume
(`assumed`), and the settings that follow. `compared()` computes the prediction and its error anew each time; `why` says what a remaining
difference comes from. Where an explanation can be computed, `extra` gives its bytes, and the error is shown with them as well.
What it leaves out: figures without a model, a method or a length; multi-GPU runs; our own runs (`benchmarks/memory.py --gpu` adds those).
Where numerics differ: GB is 10⁹ bytes and GiB 2³⁰, as each source has it. Prints of `nvidia-smi` include the driver's context,
`max_memory_allocated` does not: `counts` says which of the two is compared. Some sources round to whole GB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable

from .catalog import GIB, Shape
from .estimate import Budget, estimate
from .setup import Setup

UNITS = {"GB": 10**9, "GiB": GIB}
QV = "q_proj,v_proj"
CODELLAMA_34B = Shape("codellama-34b", 8192, 22016, 48, 64, 8, 32016, source="Rozière et al. 2023, arXiv:2308.12950; config.json of the checkpoint")

TORCHTUNE = "torchtune README (pytorch/torchtune, September 2024), 'Memory and training speed'"
LITGPT = "LitGPT tutorials/resource-tables.md (2023-10-20, PyTorch 2.1, bitsandbytes 0.41.1, A100 40 GB)"
FACTORY = "LLaMA-Factory wiki, 'Performance comparison' (2024-04-15, A100 40 GB), row FlashAttention2"
QLORA = "Dettmers et al. 2023, arXiv:2305.14314, abstract and figure 6"


@dataclass(frozen=True)
class Measurement:
    """A published peak and the run it belongs to. bound: an upper limit, not a measurement; it counts in no mean error."""

    what: str
    model: str | Shape
    settings: dict = field(hash=False)
    peak: float
    unit: str
    source: str
    stated: str
    assumed: str
    why: str
    counts: str = "allocated"  # or "card": with workspaces, whole segments and the driver's context
    bound: bool = False
    extra: Callable[[Setup], int] | None = None  # bytes that `why` explains


@dataclass(frozen=True)
class Comparison:
    """A measurement beside the prediction; bytes."""

    measurement: Measurement
    measured: int
    predicted: int
    explained: int  # the prediction with what `why` can compute

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def error_explained(self) -> float:
        return self.explained / self.measured - 1


# ------------------------------------------------------------------------------------------ what can be computed of the whys


def inputs_kept(setup: Setup) -> int:
    """bitsandbytes 0.41 kept the input of every 4-bit layer; those of MLP and down projection are kept by nobody else."""
    return 2 * setup.tokens * (setup.shape.hidden + setup.shape.ffn) * setup.shape.layers


def gradients_let_go(setup: Setup) -> int:
    """A step inside the backward pass: of all gradients only the largest stands, that of a token table."""
    return 2 * (setup.shape.table - setup.shape.parameters)


def adapters_in_16_bits(setup: Setup) -> int:
    """Adapters, gradients and averages in bf16 instead of fp32."""
    return -2 * 4 * setup.trainable


def shifted_logits(setup: Setup) -> int:
    """transformers before 4.46 copied the fp32 logits once more, shifted by a token, for the loss."""
    return 4 * setup.tokens * setup.shape.vocab


# -------------------------------------------------------------------------------------------------------- the figures


def _torchtune() -> list[Measurement]:
    run = dict(batch=2, seq=2048, checkpointing=True, foreach=False, library="minilora")
    stated = "batch 2, packed to 2048 tokens, torch.compile on"
    config = "rank 8 on all linear layers, checkpointing, fused AdamW, as in the recipe's config; its loss works in 8 chunks, as ours does in more"
    full = run | dict(method="full-bf16", library="transformers", optimizer="paged_adamw8bit", foreach=True)
    return [
        Measurement("Llama 3.1 8B LoRA, RTX 4090", "llama-3.1-8b", run | dict(method="lora"), 16.2, "GiB", TORCHTUNE, stated, config,
                    "adapters, gradients and averages are bf16 there, and the compiler fuses element-wise steps", extra=adapters_in_16_bits),
        Measurement("Llama 3.1 8B QLoRA, RTX 4090", "llama-3.1-8b", run | dict(method="qlora"), 7.4, "GiB", TORCHTUNE, stated, config,
                    "bf16 adapters take less; their chunks of the loss, 4 times as long as ours, take more", extra=adapters_in_16_bits),
        Measurement("Llama 3.1 8B LoRA, A6000", "llama-3.1-8b", run | dict(method="lora", checkpointing=False), 30.3, "GiB", TORCHTUNE, stated,
                    "as above, without checkpointing: the only setting that comes near", "compiled code keeps fewer results for backward",
                    extra=adapters_in_16_bits),
        Measurement("Llama 3.1 8B full, RTX 4090", "llama-3.1-8b", full, 18.9, "GiB", TORCHTUNE, stated,
                    "paged 8-bit AdamW, stepped inside the backward pass, as in the recipe's config",
                    "the step inside the backward pass lets go of each gradient at once; averages that are paged stay on the card while there is room",
                    extra=gradients_let_go),
    ]  # fmt: skip


def _litgpt() -> list[Measurement]:
    found = []
    stated = "micro-batch {b}, bf16-true, longest example 1304 tokens, trainable parameters given: rank 8 on queries and values"
    assumed = "peak at the longest example, no checkpointing, a LoRA path as PEFT's"
    old = "bitsandbytes 0.41 kept the input of every 4-bit layer (`ctx.tensors = (A, B)`), later versions do not"
    for model, rows in (("llama-2-7b", ((1, 21.30), (2, 29.07))), ("llama-2-13b", ((1, 38.12),))):
        for batch, peak in rows:
            run = dict(method="lora", targets=QV, batch=batch, seq=1304, checkpointing=False, detour="plain")
            found.append(Measurement(f"{model} LoRA, micro-batch {batch}", model, run, peak, "GB", LITGPT, stated.format(b=batch), assumed,
                                     "its adapter pads its output to queries, keys and values, and drops out 5 % of x, which keeps a mask"))
    for model, peaks in (("llama-2-7b", (14.14, 13.84)), ("llama-2-13b", (23.14, 22.55))):
        for double, peak in zip((False, True), peaks):
            run = dict(method="qlora", targets=QV, seq=1304, checkpointing=False, detour="plain", double=double)
            name = f"{model} QLoRA, NF4{' with double quantization' if double else ''}"
            found.append(Measurement(name, model, run, peak, "GB", LITGPT, stated.format(b=1), assumed,
                                     f"{old}; what is left, about as much again, we cannot explain", extra=inputs_kept))
    inference = (("llama-2-7b", (13.52, 4.57, 4.26)), ("llama-2-13b", (26.21, 8.32, 7.72)),
                 (CODELLAMA_34B, (None, 20.52, 18.95)), ("llama-2-70b", (None, None, 37.21)))  # fmt: skip
    for model, peaks in inference:
        for kept, peak in zip(({}, dict(base="4bit", double=False), dict(base="4bit")), peaks):
            if peak is not None:
                words = "bf16" if not kept else "NF4" + ("" if "double" in kept else " with double quantization")
                name = model if isinstance(model, str) else model.name
                found.append(Measurement(f"{name} inference, {words}", model, dict(method="inference", seq=256) | kept, peak, "GB", LITGPT,
                                         "one A100, bf16-true", "256 tokens in the cache",
                                         "reserved memory is printed there: with the pieces between blocks, and without the driver's context"))
    return found


def _factory() -> list[Measurement]:
    stated = "LLaMA-2-7B, batch 1, 4 bits, LoRA rank 8 on all linear layers; whole GB"
    assumed = "every row as long as the limit, checkpointing and double quantization, which are its defaults; read from the card"
    why = "transformers of that time copied the logits once more for the loss; figures are rounded to whole GB"
    return [
        Measurement(f"llama-2-7b QLoRA, {seq} tokens", "llama-2-7b",
                    dict(method="qlora", seq=seq, checkpointing=True), peak, "GB", FACTORY, stated, assumed, why,
                    counts="card", extra=shifted_logits)
        for seq, peak in ((1024, 6), (2048, 7), (4096, 9), (8192, 12), (16384, 19), (32768, 32))
    ]  # fmt: skip


def _qlora() -> list[Measurement]:
    stated = "rank 64 on all linear layers, 512 tokens, checkpointing, double quantization, paged optimizer"
    run = dict(method="qlora", rank=64, seq=512, checkpointing=True, foreach=False)
    return [
        Measurement("LLaMA 65B QLoRA on one card of 48 GB", "llama-65b", run, 48, "GB", QLORA, stated, "micro-batch 1, one fused AdamW step",
                    "a limit, not a reading; 48 GB cards hold 51.5·10⁹ bytes", bound=True),
        Measurement("LLaMA 33B QLoRA on 24 GB: needs paging", "llama-33b", run, 24, "GB", QLORA, stated, "micro-batch 1, averages on the card",
                    "figure 6 says that it does not fit without paging: ours is above the limit, too", bound=True),
    ]  # fmt: skip


def measurements() -> list[Measurement]:
    """All published figures, by source."""
    return [*_torchtune(), *_litgpt(), *_factory(), *_qlora()]


# --------------------------------------------------------------------------------------------------------- comparing


def compare(measurement: Measurement) -> Comparison:
    """The prediction for one measurement."""
    budget: Budget = estimate(measurement.model, **measurement.settings)
    predicted = budget.with_context if measurement.counts == "card" else budget.peak_allocated
    extra = measurement.extra(budget.setup) if measurement.extra else 0
    return Comparison(measurement, round(measurement.peak * UNITS[measurement.unit]), predicted, predicted + extra)


def compared() -> list[Comparison]:
    """All figures with their predictions."""
    return [compare(each) for each in measurements()]


def mean_error(rows: list[Comparison], explained: bool = False) -> float:
    """Mean absolute error over measurements; bounds are left out."""
    errors = [abs(row.error_explained if explained else row.error) for row in rows if not row.measurement.bound]
    return sum(errors) / len(errors)


def table(rows: list[Comparison] | None = None) -> str:
    """Measured beside predicted, as text."""
    lines = [f"{'':52} {'measured':>11} {'predicted':>11} {'error':>7} {'explained':>10}"]
    for row in rows or compared():
        m, unit = row.measurement, UNITS[row.measurement.unit]
        known = f"{row.error_explained:+10.1%}" if m.extra else ""
        sign = "≤" if m.bound else " "
        lines.append(f"{m.what:52} {sign}{m.peak:7.2f} {m.unit:3} {row.predicted / unit:7.2f} {m.unit:3} {row.error:+7.1%} {known:>10}  {m.why}")
    return "\n".join(lines)

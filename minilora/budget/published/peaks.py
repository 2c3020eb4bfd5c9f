"""Peaks that others measured on real cards, beside what this package predicts for the same runs.

What it replaces: a promise that the estimate is good.
How it works: every `Measurement` has the figure, where it was published, what was said about the
run (`stated`), what we had to assume (`assumed`), and the settings that follow. `compared()`
computes the prediction and its error anew each time; `why` says what the difference comes from. The
program that was measured is not the one that `estimate` counts; `program` (see `programs`) goes
through its own source and gives the bytes that it should have shown, part by part, and the error is
shown with them as well.
What it leaves out: figures without a model, a method or a length; multi-GPU runs; our own runs
(`benchmarks/memory/memory.py --gpu` adds those).
Where numerics differ: GB is 10⁹ bytes and GiB 2³⁰, as each source has it. Prints of `nvidia-smi`
include the driver's context, `max_memory_allocated` does not: `counts` says which of the two is
compared. Some sources round to whole GB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..catalog import GIB, Shape
from ..estimate import Budget, estimate
from ..published import programs
from ..setup import Setup

UNITS = {"GB": 10**9, "GiB": GIB}

QV = "q_proj,v_proj"

CODELLAMA_34B = Shape(
    "codellama-34b",
    8192,
    22016,
    48,
    64,
    8,
    32016,
    source="Rozière et al. 2023, arXiv:2308.12950; config.json of the checkpoint",
)


TORCHTUNE = "torchtune README (pytorch/torchtune, 0.3.1, October 2024), 'Memory and training speed'"

LITGPT = (
    "LitGPT tutorials/resource-tables.md (2023-10-20, PyTorch 2.1, bitsandbytes 0.41.1, A100 40 GB)"
)

FACTORY = (
    "LLaMA-Factory wiki, 'Performance comparison' (2024-04-15, A100 40 GB), row FlashAttention2"
)

QLORA = "Dettmers et al. 2023, arXiv:2305.14314, abstract and figure 6"


@dataclass(frozen=True)
class Measurement:
    """A published peak and the run it belongs to. bound: an upper limit, not a measurement; it
    counts in no mean error.
    """

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
    # (setup, prediction) → what the measured program held, by part
    program: Callable[[Setup, int], programs.Parts] | None = None


@dataclass(frozen=True)
class Comparison:
    """A measurement beside the prediction; bytes."""

    measurement: Measurement
    measured: int
    predicted: int
    explained: int  # the sum of what the measured program held, by its own source

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def error_explained(self) -> float:
        return self.explained / self.measured - 1


# -------------------------------------------------------------------------------------- the figures


def _torchtune() -> list[Measurement]:
    run = dict(batch=2, seq=2048, checkpointing=True, foreach=False, library="minilora")
    stated = "batch 2, packed to 2048 tokens, torch.compile on"
    config = "rank 8 on {}, {}, fused AdamW, as in the recipe's config"
    full = run | dict(
        method="full-bf16", library="transformers", optimizer="paged_adamw8bit", foreach=True
    )
    lora, low = (
        dict(method="lora", targets=QV),
        "adapters and averages are bf16 there, and 16-bit logits of the whole batch stand "
        "where our head makes a portion at a time",
    )
    return [
        Measurement(
            "Llama 3.1 8B LoRA, RTX 4090",
            "llama-3.1-8b",
            run | lora,
            16.2,
            "GiB",
            TORCHTUNE,
            stated,
            config.format("queries and values", "checkpointing and activation offloading"),
            f"{low}; of its switches only offloading, new in this recipe that month, comes "
            "near: layers' inputs, 1.0 GiB, wait on the host (on the card: +5.9 %)",
            program=programs.torchtune_offloaded,
        ),
        Measurement(
            "Llama 3.1 8B QLoRA, RTX 4090",
            "llama-3.1-8b",
            run | dict(method="qlora"),
            7.4,
            "GiB",
            TORCHTUNE,
            stated,
            config.format("all linear layers", "checkpointing"),
            f"{low}; 0.2 GiB too much, of which 0.12 would go if the loss's gradient took the "
            "place of its logits, which a compiled loss rehearsed on a CPU does not do",
            program=programs.torchtune,
        ),
        Measurement(
            "Llama 3.1 8B LoRA, A6000",
            "llama-3.1-8b",
            run | lora | dict(checkpointing=False),
            30.3,
            "GiB",
            TORCHTUNE,
            stated,
            config.format(
                "queries and values", "no checkpointing: the only setting that comes near"
            ),
            "compiled layers keep no fp32 copies and make silu(gate) again; keys and values "
            "are kept once for each query head, as its code "
            "writes them out (torch 2.13's compiler would make them again: 1.5 GiB less, −5.4 %)",
            program=programs.torchtune,
        ),
        Measurement(
            "Llama 3.1 8B full, RTX 4090",
            "llama-3.1-8b",
            full,
            18.9,
            "GiB",
            TORCHTUNE,
            stated,
            "paged 8-bit AdamW, stepped inside the backward pass, as in the recipe's config",
            "the step inside the backward pass lets go of each gradient at once; only the "
            "head's, summed over 8 chunks, stands twice; codes of paged "
            "averages are no memory of torch's",
            program=programs.torchtune,
        ),
    ]


def _litgpt() -> list[Measurement]:
    found = []
    stated = (
        "micro-batch {b}, bf16-true, longest example 1304 tokens, trainable parameters given: "
        "rank 8 on queries and values"
    )
    assumed = "peak at the longest example, no checkpointing, a LoRA path as PEFT's"
    lora = (
        "all adapters and logits are bf16 there and no averages exist yet; but norms keep fp32, "
        "and the padded adapter keeps x, a mask, and its result"
    )
    qlora = (
        f"{lora}; bitsandbytes 0.41 kept the input of every 4-bit layer, and decodes the head, "
        "which is in 4 bits, too, in fp16 and again in bf16"
    )
    for model, rows in (("llama-2-7b", ((1, 21.30), (2, 29.07))), ("llama-2-13b", ((1, 38.12),))):
        for batch, peak in rows:
            run = dict(
                method="lora",
                targets=QV,
                batch=batch,
                seq=1304,
                checkpointing=False,
                detour="plain",
            )
            found.append(
                Measurement(
                    f"{model} LoRA, micro-batch {batch}",
                    model,
                    run,
                    peak,
                    "GB",
                    LITGPT,
                    stated.format(b=batch),
                    assumed,
                    lora,
                    program=programs.litgpt,
                )
            )
    for model, peaks in (("llama-2-7b", (14.14, 13.84)), ("llama-2-13b", (23.14, 22.55))):
        for double, peak in zip((False, True), peaks):
            run = dict(
                method="qlora",
                targets=QV,
                seq=1304,
                checkpointing=False,
                detour="plain",
                double=double,
            )
            name = f"{model} QLoRA, NF4{' with double quantization' if double else ''}"
            found.append(
                Measurement(
                    name,
                    model,
                    run,
                    peak,
                    "GB",
                    LITGPT,
                    stated.format(b=1),
                    assumed,
                    qlora,
                    program=programs.litgpt,
                )
            )
    inference = (
        ("llama-2-7b", (13.52, 4.57, 4.26)),
        ("llama-2-13b", (26.21, 8.32, 7.72)),
        (CODELLAMA_34B, (None, 20.52, 18.95)),
        ("llama-2-70b", (None, None, 37.21)),
    )
    for model, peaks in inference:
        for kept, peak in zip(({}, dict(base="4bit", double=False), dict(base="4bit")), peaks):
            if peak is not None:
                words = (
                    "bf16"
                    if not kept
                    else "NF4" + ("" if "double" in kept else " with double quantization")
                )
                name = model if isinstance(model, str) else model.name
                found.append(
                    Measurement(
                        f"{name} inference, {words}",
                        model,
                        dict(method="inference", seq=58) | kept,
                        peak,
                        "GB",
                        LITGPT,
                        "one A100, bf16-true",
                        "its default prompt of 8 tokens, 50 new ones",
                        "the head is in 4 bits, too, and the prompt decodes it in fp16 and "
                        "again in bf16; every query head has keys and values in the cache",
                        program=programs.litgpt_generates,
                    )
                )
    return found


def _factory() -> list[Measurement]:
    stated = "LLaMA-2-7B, batch 1, 4 bits, LoRA rank 8 on all linear layers; whole GB"
    assumed = (
        "every row as long as the limit, checkpointing and double quantization, which are its "
        "defaults; read from the card"
    )
    why = (
        "the card shows segments, not tensors: blocks freed earlier in the step that no later "
        "request fits, and the ends of 4-bit weights' segments; whole GB are read, ±0.5"
    )
    order = (
        f"{why}; 2.0 GB too many are half of one block of fp32 logits, 4.2 GB: whether freed "
        "room holds the next such block hangs on the order "
        "of requests, and ours is of later versions; or the card's GiB were written as GB "
        "(ours: 31.7 GiB), which shorter rows do not bear out"
    )
    return [
        Measurement(
            f"llama-2-7b QLoRA, {seq} tokens",
            "llama-2-7b",
            dict(method="qlora", seq=seq, checkpointing=True),
            peak,
            "GB",
            FACTORY,
            stated,
            assumed,
            order if seq == 32768 else why,
            counts="card",
            program=programs.factory,
        )
        for seq, peak in ((1024, 6), (2048, 7), (4096, 9), (8192, 12), (16384, 19), (32768, 32))
    ]


def _qlora() -> list[Measurement]:
    stated = (
        "rank 64 on all linear layers, 512 tokens, checkpointing, double quantization, paged "
        "optimizer"
    )
    run = dict(method="qlora", rank=64, seq=512, checkpointing=True, foreach=False)
    return [
        Measurement(
            "LLaMA 65B QLoRA on one card of 48 GB",
            "llama-65b",
            run,
            48,
            "GB",
            QLORA,
            stated,
            "micro-batch 1, one fused AdamW step",
            "a limit, not a reading; 48 GB cards hold 51.5·10⁹ bytes",
            bound=True,
        ),
        Measurement(
            "LLaMA 33B QLoRA on 24 GB: needs paging",
            "llama-33b",
            run,
            24,
            "GB",
            QLORA,
            stated,
            "micro-batch 1, averages on the card",
            "figure 6 says that it does not fit without paging: ours is above the limit, too",
            bound=True,
        ),
    ]


def measurements() -> list[Measurement]:
    """All published figures, by source."""
    return [*_torchtune(), *_litgpt(), *_factory(), *_qlora()]


# ---------------------------------------------------------------------------------------- comparing


def compare(measurement: Measurement) -> Comparison:
    """The prediction for one measurement."""
    budget: Budget = estimate(measurement.model, **measurement.settings)
    predicted = budget.with_context if measurement.counts == "card" else budget.peak_allocated
    held = (
        sum(measurement.program(budget.setup, predicted).values())
        if measurement.program
        else predicted
    )
    return Comparison(
        measurement, round(measurement.peak * UNITS[measurement.unit]), predicted, held
    )


def compared() -> list[Comparison]:
    """All figures with their predictions."""
    return [compare(each) for each in measurements()]


def mean_error(rows: list[Comparison], explained: bool = False) -> float:
    """Mean absolute error over measurements; bounds are left out."""
    errors = [
        abs(row.error_explained if explained else row.error)
        for row in rows
        if not row.measurement.bound
    ]
    return sum(errors) / len(errors)


def table(rows: list[Comparison] | None = None) -> str:
    """Measured beside predicted, as text."""
    lines = [f"{'':52} {'measured':>11} {'predicted':>11} {'error':>7} {'explained':>10}"]
    for row in rows or compared():
        m, unit = row.measurement, UNITS[row.measurement.unit]
        known = f"{row.error_explained:+10.1%}" if m.program else ""
        sign = "≤" if m.bound else " "
        lines.append(
            f"{m.what:52} {sign}{m.peak:7.2f} {m.unit:3} {row.predicted / unit:7.2f} "
            f"{m.unit:3} {row.error:+7.1%} {known:>10}  {m.why}"
        )
    return "\n".join(lines)

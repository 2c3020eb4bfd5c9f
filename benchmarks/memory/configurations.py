"""The setups whose memory is compared: on paper and by the ledger, and those a card measures."""

from __future__ import annotations

from collections.abc import Iterator

from minilora.budget.catalog import Shape
from minilora.budget.setup import Setup, make

SMALL = Shape("22m", hidden=384, ffn=1024, layers=6, heads=6, kv_heads=2, vocab=16000)
METHODS = [
    ("full", "fp32"),
    ("full-bf16", "bf16"),
    ("mixed", "autocast"),
    ("lora", "fp32"),
    ("lora", "bf16"),
    ("lora", "autocast"),
    ("int8", "bf16"),
    ("qlora", "fp32"),
    ("qlora", "bf16"),
    ("qlora", "autocast"),
]
QV = "q_proj,v_proj"


def configurations() -> list[Setup]:
    """Every setup that is compared, the small ones first."""
    settings = [*_every_method(), *_small_models(), *_models_of_7b(), *_larger_models()]
    return [make(**each, device="cpu") for each in settings]


def _every_method() -> Iterator[dict]:
    """Each method at each precision, on two small models."""
    for method, precision in METHODS:
        asked = dict(model=SMALL, method=method, precision=precision)
        usual = asked | dict(batch=4, seq=256)
        yield usual | dict(checkpointing=False, library="minilora")
        yield usual | dict(checkpointing=True, attention="eager", foreach=False)
        few = dict(targets=QV, rank=32, detour="plain")
        yield asked | few | dict(checkpointing=False, batch=2, seq=512)
    for method, precision in METHODS:
        asked = dict(model="smollm2-135m", method=method, precision=precision)
        yield asked | dict(checkpointing=False, batch=2, seq=512)


def _small_models() -> Iterator[dict]:
    """Up to 3 billion parameters."""
    for model in ("smollm2-135m", "smollm2-360m", "qwen2.5-0.5b"):
        for method in ("lora", "qlora"):
            asked = dict(model=model, method=method)
            yield asked | dict(checkpointing=True, batch=8, seq=1024)
            yield asked | dict(checkpointing=False, batch=1, seq=512, rank=64, detour="plain")
    for model in ("tinyllama-1.1b", "llama-3.2-1b"):
        for method in ("full-bf16", "lora", "int8", "qlora"):
            asked, full = dict(model=model, method=method), method == "full-bf16"
            yield asked | dict(checkpointing=True, batch=4, seq=1024, foreach=not full)
            targets = "all" if method == "lora" else QV
            long = dict(checkpointing=False, batch=1, seq=2048)
            yield asked | long | dict(library="minilora", targets=targets)
        yield dict(model=model, method="full", checkpointing=True, batch=1, seq=512)
        yield dict(model=model, method="mixed", checkpointing=False, batch=1, seq=512)
    for method in ("lora", "int8", "qlora"):
        for on in (False, True):
            asked = dict(model="llama-3.2-3b", method=method, checkpointing=on)
            yield asked | dict(batch=2, seq=1024, rank=16)


def _models_of_7b() -> Iterator[dict]:
    """The two that most people run."""
    for method in ("lora", "qlora"):
        for on in (False, True):
            asked = dict(model="llama-7b", method=method, checkpointing=on)
            yield asked | dict(targets=QV)
            yield asked | dict(rank=64, batch=2, seq=1024, detour="plain")
            yield asked | dict(model="llama-3.1-8b", rank=16, seq=2048)
    for method in ("full-bf16", "mixed", "int8"):
        yield dict(model="llama-7b", method=method, checkpointing=True)
    yield dict(model="llama-7b", method="full-bf16", checkpointing=True, foreach=False)


def _larger_models() -> Iterator[dict]:
    """Of 7 billion parameters and more."""
    for model in ("mistral-7b", "qwen2.5-7b", "llama-2-13b", "llama-33b"):
        for method in ("lora", "qlora"):
            asked = dict(model=model, method=method, checkpointing=True)
            yield asked | dict(rank=16, batch=2, seq=1024)
    for foreach in (True, False):
        asked = dict(model="llama-65b", method="qlora", checkpointing=True)
        yield asked | dict(rank=64, foreach=foreach)
    for model in ("llama-2-70b", "llama-3.1-70b"):
        asked = dict(model=model, method="qlora", checkpointing=True)
        yield asked | dict(rank=16, batch=2, seq=2048)


def card_configurations() -> list[Setup]:
    """What a GPU measures: up to 3 billion parameters, so that a card of 8 GB has rows of its
    own.
    """
    rows = []
    for model, batch, seq in (
        ("smollm2-135m", 4, 512),
        ("smollm2-360m", 2, 1024),
        ("tinyllama-1.1b", 1, 1024),
        ("llama-3.2-1b", 2, 512),
    ):
        for method in ("full-bf16", "lora", "qlora"):
            rows.append(
                make(
                    model, method=method, checkpointing=method == "full-bf16", batch=batch, seq=seq
                )
            )
        rows.append(
            make(model, method="qlora", checkpointing=True, rank=64, batch=4 * batch, seq=seq)
        )
    rows += [
        make("llama-3.2-3b", method=method, checkpointing=True, seq=2048)
        for method in ("lora", "qlora")
    ]
    return rows


def name_of(setup: Setup) -> str:
    """One setup as one line; equal setups have equal lines."""
    words = [
        setup.shape.name,
        setup.method,
        setup.precision,
        setup.library,
        f"B={setup.batch}",
        f"S={setup.seq}",
        setup.attention,
    ]
    if setup.adapters:
        targets = (
            "all" if len(setup.targets) == len(setup.shape.linears()) else "+".join(setup.targets)
        )
        words += [f"r={setup.rank}", targets, setup.detour]
    return " ".join(
        [*words, *["checkpointed"] * setup.checkpointing, "foreach" if setup.foreach else "fused"]
    )

"""The setups whose memory is compared: on paper and by the ledger, and those a card measures."""

from __future__ import annotations

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
    rows = []

    def add(model, method, precision=None, **settings) -> None:
        rows.append(make(model, method=method, precision=precision, device="cpu", **settings))

    for method, precision in METHODS:
        add(SMALL, method, precision, checkpointing=False, batch=4, seq=256, library="minilora")
        add(
            SMALL,
            method,
            precision,
            checkpointing=True,
            batch=4,
            seq=256,
            attention="eager",
            foreach=False,
        )
        add(
            SMALL,
            method,
            precision,
            checkpointing=False,
            batch=2,
            seq=512,
            targets=QV,
            rank=32,
            detour="plain",
        )
    for method, precision in METHODS:
        add("smollm2-135m", method, precision, checkpointing=False, batch=2, seq=512)
    for model in ("smollm2-135m", "smollm2-360m", "qwen2.5-0.5b"):
        for method in ("lora", "qlora"):
            add(model, method, checkpointing=True, batch=8, seq=1024)
            add(model, method, checkpointing=False, batch=1, seq=512, rank=64, detour="plain")
    for model in ("tinyllama-1.1b", "llama-3.2-1b"):
        for method in ("full-bf16", "lora", "int8", "qlora"):
            add(model, method, checkpointing=True, batch=4, seq=1024, foreach=method != "full-bf16")
            add(
                model,
                method,
                checkpointing=False,
                batch=1,
                seq=2048,
                library="minilora",
                targets="all" if method == "lora" else QV,
            )
        add(model, "full", checkpointing=True, batch=1, seq=512)
        add(model, "mixed", checkpointing=False, batch=1, seq=512)
    for method in ("lora", "int8", "qlora"):
        for checkpointing in (False, True):
            add("llama-3.2-3b", method, checkpointing=checkpointing, batch=2, seq=1024, rank=16)
    for method in ("lora", "qlora"):
        for checkpointing in (False, True):
            add("llama-7b", method, checkpointing=checkpointing, targets=QV)
            add(
                "llama-7b",
                method,
                checkpointing=checkpointing,
                rank=64,
                batch=2,
                seq=1024,
                detour="plain",
            )
            add("llama-3.1-8b", method, checkpointing=checkpointing, rank=16, seq=2048)
    for method in ("full-bf16", "mixed", "int8"):
        add("llama-7b", method, checkpointing=True)
    add("llama-7b", "full-bf16", checkpointing=True, foreach=False)
    for model in ("mistral-7b", "qwen2.5-7b", "llama-2-13b", "llama-33b"):
        for method in ("lora", "qlora"):
            add(model, method, checkpointing=True, rank=16, batch=2, seq=1024)
    for foreach in (True, False):
        add("llama-65b", "qlora", checkpointing=True, rank=64, foreach=foreach)
    for model in ("llama-2-70b", "llama-3.1-70b"):
        add(model, "qlora", checkpointing=True, rank=16, batch=2, seq=2048)
    return rows


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

"""What others say that a training step needs: the rules and tables that people meet first, as
functions of the same setup.

What it replaces: arguing about calculators.
How it works: each `Peer` has a name, its source, and a rule from a `Setup` to bytes, or None where
it has no answer. The rules are as published, with the setup's own numbers put in; where a rule
knows no adapters or no quantization, it is read as its users read it, and `reading` says how.
`benchmarks/memory/peers.py` runs them on ten setups beside `estimate` and the ledger.
What it leaves out: calculators on the web whose formula is not published.
Where numerics differ: these are estimates in GB or GiB; GB is taken as 10⁹ where the source does
not say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..setup import Setup

GB = 10**9

BASE_BYTES = {"dense": None, "int8": 1.0, "4bit": 0.5}  # None: as wide as the setup's weights


@dataclass(frozen=True)
class Peer:
    """One estimator: `rule` gives bytes, or None where it has no answer; `reading` says how the
    rule was read.
    """

    name: str
    source: str
    reading: str
    rule: Callable[[Setup], float | None]


def base_width(setup: Setup) -> float:
    """Bytes of a weight of the base: 4, 2, 1 or ½."""
    return BASE_BYTES[setup.base] or setup.width


def accelerate(setup: Setup) -> float:
    """Float32 size P·4: trained in fp32 4 × that, in 16 bits its largest stage, 2 × that; of a
    quantized base the size alone.
    """
    fp32 = 4 * setup.shape.parameters
    if setup.base != "dense":
        return setup.shape.parameters * base_width(setup)
    return 4 * fp32 if setup.precision == "fp32" else 2 * fp32


def four_times(setup: Setup) -> float:
    """Weights, gradients and two averages, all of the base's width."""
    return 4 * setup.shape.parameters * base_width(setup)


def transformer_math(setup: Setup) -> float:
    """Model, gradients, optimizer and Megatron's activations; what is frozen is model only."""
    shape, trained = setup.shape, setup.trainable
    weights = shape.parameters * base_width(setup)
    states = trained * (12 + (4 if setup.precision == "fp32" else 2))
    sbhl = setup.tokens * shape.hidden * shape.layers
    activations = (
        2 * sbhl
        if setup.checkpointing
        else sbhl * (10 + 24 + 5 * shape.heads * setup.seq / shape.hidden)
    )
    return weights + states + activations


def fifth_more(setup: Setup) -> float:
    """1.2 × the weights; meant for inference, quoted for adapters."""
    return 1.2 * setup.shape.parameters * base_width(setup)


def _row(table: dict[float, float], setup: Setup) -> float | None:
    """The row of the nearest size, if it is within 15 %."""
    billions = setup.shape.parameters / 1e9
    near = min(table, key=lambda size: abs(size / billions - 1))
    return table[near] * GB if abs(near / billions - 1) <= 0.15 else None


FACTORY = {  # GB by billions of parameters, and the column "xB"
    "full": ({7: 120, 14: 240, 30: 600, 70: 1200}, 18),
    "half": ({7: 60, 14: 120, 30: 300, 70: 600}, 8),
    "dense": ({7: 16, 14: 32, 30: 64, 70: 160}, 2),
    "int8": ({7: 10, 14: 20, 30: 40, 70: 80}, 1),
    "4bit": ({7: 6, 14: 12, 30: 24, 70: 48}, 0.5),
}

UNSLOTH = {
    "4bit": {
        3: 3.5,
        7: 5,
        8: 6,
        9: 6.5,
        11: 7.5,
        14: 8.5,
        27: 22,
        32: 26,
        40: 30,
        70: 41,
        81: 48,
        90: 53,
        405: 237,
    },
    "dense": {
        3: 8,
        7: 19,
        8: 22,
        9: 24,
        11: 29,
        14: 33,
        27: 64,
        32: 76,
        40: 96,
        70: 164,
        81: 192,
        90: 212,
        405: 950,
    },
}


def llama_factory(setup: Setup) -> float:
    """The table's row, or its column for other sizes."""
    kind = setup.base if setup.adapters else "half" if setup.method == "full-bf16" else "full"
    rows, per_billion = FACTORY[kind]
    return _row(rows, setup) or per_billion * setup.shape.parameters


def unsloth(setup: Setup) -> float | None:
    """The table's row; it has none for full training, for 8 bits and for models below 3B."""
    return _row(UNSLOTH[setup.base], setup) if setup.adapters and setup.base in UNSLOTH else None


PEERS = [
    Peer(
        "accelerate",
        'accelerate 1.15, `accelerate estimate-memory`: "Training using Adam", of int4 its '
        "total size",
        "knows no adapters and no batch",
        accelerate,
    ),
    Peer(
        "weights × 4",
        "folk rule: weights, gradients and Adam's two averages",
        "of the base's width; no batch",
        four_times,
    ),
    Peer(
        "Transformer Math",
        "Anthony, Biderman, Schoelkopf 2023, blog.eleuther.ai/transformer-math",
        "12 + 2 or 4 B for each trained parameter, as for mixed precision; activations after "
        "Korthikanti et al. 2022",
        transformer_math,
    ),
    Peer("weights × 1.2", "the same page, for inference", "quoted for adapters, too", fifth_more),
    Peer(
        "LLaMA-Factory",
        'README of LLaMA-Factory, "Hardware Requirement", 2025, marked as estimated',
        "row within 15 % of the size, else its column xB",
        llama_factory,
    ),
    Peer(
        "Unsloth",
        'docs.unsloth.ai, "Requirements", 2025, "absolute minimum"',
        "row within 15 % of the size, no answer elsewhere",
        unsloth,
    ),
]

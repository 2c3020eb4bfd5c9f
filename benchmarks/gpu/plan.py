"""What `gpu.py` runs: six parts in real shapes, and the same six in small.

What it replaces: nothing; it is data.
How it works: a `Part` is one process's work: a shape, a batch, and the ranks that are trained, each
under its cap. The real shapes come from the budget's catalogue.
What it leaves out: everything that follows from these (`parts.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from minilora.budget.catalog import MODELS, Shape

SEED = 0
TWENTY = Shape(
    "llama-20b",
    hidden=6144,
    ffn=16384,
    layers=44,
    heads=64,
    kv_heads=64,
    vocab=50432,
    source="GPT-NeoX-20B's width, depth, heads and vocabulary (arXiv:2204.06745) as a Llama: three "
    "MLP matrices of 8/3 h for two of 4 h, as many numbers",
)
SMALL = Shape("small", hidden=128, ffn=352, layers=4, heads=4, kv_heads=2, vocab=2048)


@dataclass(frozen=True)
class Part:
    """One process's work. kind: "speed" or "memory"; runs: (rank, cap) of each training; the cap of
    a small part follows from its prediction.
    """

    kind: str
    shape: Shape
    batch: int
    seq: int
    runs: tuple[tuple[int, str], ...]


PARTS = {
    "a1": Part("speed", MODELS["llama-3.2-1b"], 2, 1024, ((16, ""),)),
    "a3": Part("speed", MODELS["llama-3.2-3b"], 2, 1024, ((16, ""),)),
    "a8": Part("speed", MODELS["llama-3.1-8b"], 2, 1024, ((16, ""),)),
    "b7": Part("memory", MODELS["llama-7b"], 1, 512, ((64, "24 GB card"),)),
    "b20": Part("memory", TWENTY, 1, 512, ((64, "24 GB card"),)),
    "b65": Part("memory", MODELS["llama-65b"], 1, 512, ((64, "48 GB card"), (16, "48·10⁹ bytes"))),
}
_TIED = Shape(
    "small-tied", hidden=128, ffn=352, layers=3, heads=4, kv_heads=4, vocab=2048, tied=True
)
TINY = {
    "a1": Part("speed", _TIED, 2, 32, ((4, ""),)),
    "a3": Part("speed", SMALL, 2, 32, ((4, ""),)),
    "a8": Part("speed", SMALL, 1, 48, ((8, ""),)),
    "b7": Part("memory", SMALL, 1, 64, ((8, "1.25 of the prediction"),)),
    "b20": Part("memory", SMALL, 2, 32, ((16, "1.25 of the prediction"),)),
    "b65": Part(
        "memory", _TIED, 1, 64, ((16, "1.25 of the prediction"), (4, "1.25 of the prediction"))
    ),
}

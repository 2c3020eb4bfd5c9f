"""What autograd keeps between forward and backward, operation by operation.

What it replaces: Megatron's s·b·h·(34 + 5·a·s/h) (Korthikanti et al. 2022), which counts a GPT with
dropout, not a Llama.
How it works: a tape goes through the Llama on paper (`record`). With the letters of `tape`, one
layer of transformers' Llama trained in 16 bits with SDPA keeps, in bytes,

    20·N·h + 4·N·q + 4·N·k + 8·N·f + 4·N·a + 8·N
    (24·N·h + 4·N·k + … where queries are as wide as the hidden vector)

`kept(setup)` gives this sum for any setup, with a formula. The same tape, read backward, gives the
peak (`step_peak`).
What it leaves out: families other than Llama (`megatron` answers for them, roughly); dropout;
padded batches.
"""

from __future__ import annotations

from ..setup import Setup
from .memory import Part
from .record import Record, record
from .tape import Value


def _counted(found: Record, layers: int) -> list[tuple[str, int, list[Value]]]:
    """(label, how often, what is kept): layers after the second keep what the second keeps."""
    labelled = []
    for number, (name, _, values) in enumerate(found.sections()):
        times = layers - 2 if name == "layer" and number == 3 else 1
        label = name if name != "layer" else f"layer {number}" if times == 1 else f"{times} × layer"
        labelled += [(label, times, values)] if values else []
    return labelled


def kept(setup: Setup) -> Part:
    """The bytes that autograd keeps from forward to backward, with the sum by sizes in the formula.

    16-bit copies of weights under autocast are among them (`copies` counts them alone).
    """
    if setup.shape.family != "llama":
        return megatron(setup)
    found = record(setup, min(setup.shape.layers, 3))
    counted = _counted(found, setup.shape.layers)
    total = sum(times * value.bytes for _, times, values in counted for value in values)
    letters = {
        letter for _, _, values in counted for value in values for letter in value.dims.split()
    }
    sizes = ", ".join(
        f"{letter} = {size}" for letter, size in found.tape.sizes.items() if letter in letters
    )
    terms = "; ".join(f"{label}: {formula(values)}" for label, _, values in counted)
    return Part(total, f"{terms}, where {sizes}", "what backward needs from forward")


def copies(setup: Setup) -> Part:
    """Of what is kept: weights in 16 bits, which autocast casts anew for every step."""
    c = setup.product
    if not setup.autocast or setup.shape.family != "llama":
        return Part(0, "none", "no autocast, no copies")
    counted = _counted(record(setup, min(setup.shape.layers, 3)), setup.shape.layers)
    size = sum(
        times * value.bytes
        for _, times, values in counted
        for value in values
        if not set(value.dims.split()) & {"N", "M", "S", "1"}
    )
    return Part(
        size,
        f"{c} B × {size // c:,} weights in products",
        "weights in 16 bits, from forward to backward",
    )


def megatron(setup: Setup) -> Part:
    """A rule of thumb for other families: 34·h bytes a token and layer in 16 bits, and 5·a·S where
    scores are written out.

    Korthikanti et al. 2022, arXiv:2205.05198, equation 1: a GPT with dropout. Checkpointed: 2·h a
    token and layer, and one whole layer.
    """
    shape, n = setup.shape, setup.tokens
    layers = shape.layers * (2 if shape.family == "mt5" else 1)
    layer = (
        n
        * (34 * shape.hidden + (5 * shape.heads * setup.seq if setup.attention == "eager" else 0))
        * setup.product
        // 2
    )
    total = layers * 2 * n * shape.hidden + layer if setup.checkpointing else layers * layer
    scores = 4 * n * shape.vocab
    return Part(
        total + scores,
        f"{total:,} B in {layers} layers by s·b·h·(34 + 5·a·s/h), + 4 B × {n} × {shape.vocab} "
        "log-softmax",
        "a rule of thumb",
    )


def formula(values: list[Value]) -> str:
    """Coefficient by sizes: "24·N·h + 8·N·f"; integers are spelled out as they are."""
    sums: dict[str, int] = {}
    for value in values:
        sums[value.dims] = sums.get(value.dims, 0) + value.width
    return " + ".join(f"{width}·{dims.replace(' ', '·')}" for dims, width in sums.items())

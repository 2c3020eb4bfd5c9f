"""Operations, time and money: what a step computes, how long a card takes at least, what a run
costs.

What it replaces: 6·N·D (Kaplan et al. 2020), which knows neither adapters nor checkpointing nor
attention.
How it works: a product of (n × k) and (k × m) is 2·n·k·m operations. With T tokens, a linear layer
of P weights costs

    forward                    2·P·T
    backward                   2·P·T for ∂L/∂x, and 2·P·T more for ∂L/∂W where W trains
    adapter of rank r          2·r·(in + out)·T forward, and for its A, B and h = x Aᵀ twice that
                               backward
    attention                  4·T·S·q forward (scores and sums, the hidden half included),
                               8·T·S·q backward
    checkpointing              each layer's forward once more, up to the last product that backward
                               needs

The first layer's input of an adapted model needs no gradient, so ∂L/∂x is not computed there. Time
is a bound: operations by the card's rate, or bytes by its bandwidth, whichever is longer, divided
by a utilisation that the caller states.
What it leaves out: what is not a product (norms, softmax, decoding of weights), communication.
Where numerics differ: operations are exact for torch's FlopCounterMode on meta tensors; that
counter does not see addmm_, in which our fused adapter adds its small products, and counts flash
attention's backward as 10·T·S·q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import MiniloraError
from ..catalog import GPU, gpu
from ..setup import LARGEST, Setup, make
from ..shapes import Linear
from . import memory

# of the bandwidth; what well-made kernels reach when they generate one token at a time
DECODING = 0.6


@dataclass(frozen=True)
class Flops:
    """Operations of one training step (or one forward pass), by phase."""

    forward: int
    backward: int
    recomputed: int
    formula: str

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.recomputed

    @property
    def ratio(self) -> float:
        """All operations over those of the forward pass: 3 for full training, about 2 for an
        adapter.
        """
        return self.total / self.forward


def _adapter(setup: Setup, each: Linear, sides: int) -> int:
    """Products of width r on one or both sides of the detour."""
    return 2 * setup.tokens * setup.rank * sides


def _forward(setup: Setup, each: Linear) -> int:
    """One linear layer, its adapter included."""
    detour = _adapter(setup, each, each.inputs + each.outputs) if _adapted(setup, each) else 0
    return 2 * setup.tokens * each.size + detour


def _backward(setup: Setup, each: Linear, flows: bool) -> int:
    """flows: whether a gradient goes on into the layer's input."""
    base = 2 * setup.tokens * each.size
    total = base * (flows + setup.whole)
    if _adapted(setup, each):  # dB and dh, dA, and dh's way on into x
        total += _adapter(setup, each, 2 * each.outputs + each.inputs * (1 + flows))
    return total


def _adapted(setup: Setup, each: Linear) -> bool:
    return setup.adapters and each.name in setup.targets


def _attention(setup: Setup) -> int:
    """One of the two products of attention, forward: scores, or their sum of values."""
    return 2 * setup.tokens * setup.seq * setup.shape.query


def _layer(setup: Setup, first: bool) -> tuple[int, int]:
    """(forward, backward) of one block."""
    named = {each.name: each for each in setup.shape.linears()}
    forward = sum(_forward(setup, each) for each in named.values()) + 2 * _attention(setup)
    if not setup.trains:
        return forward, 0
    flows = setup.input_grads or not first
    sides = [named[f"{side}_proj"] for side in "qkv"]
    query, key, value = (flows or _adapted(setup, each) for each in sides)
    backward = sum(_backward(setup, each, flows) for each in sides)
    # Gradients: of scores and values from the sum, of queries and keys from the scores.
    scores = query or key
    backward += _attention(setup) * (scores + value + query + key)
    for group in (("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)):
        arrives = flows or scores or value
        backward += sum(_backward(setup, named[name], arrives) for name in group)
        value = value or any(_adapted(setup, named[name]) for name in group)
    return forward, backward


def _recomputed(setup: Setup) -> int:
    """One layer's forward, without what follows the last tensor that backward needs: the last
    product, or its half of width r.
    """
    last = setup.shape.linears()[-1]
    forward = _layer(setup, first=False)[0]
    if _adapted(setup, last):
        plain = setup.detour == "plain" or setup.base == "int8" or setup.autocast
        return forward - (_adapter(setup, last, last.outputs) if plain else 0)
    return forward if setup.base == "int8" else forward - 2 * setup.tokens * last.size


def flops(model: str | Setup = "llama-7b", **settings) -> Flops:
    """Operations of one step. Settings as `estimate`. Raises MiniloraError for what cannot be, and
    for other families.
    """
    setup = model.but(**settings) if isinstance(model, Setup) else make(model, **settings)
    shape = setup.shape
    if shape.family != "llama":
        return _rough(setup)
    first, rest = _layer(setup, True), _layer(setup, False)
    others = shape.layers - 1
    rows = (
        setup.tokens
        if setup.library == "transformers" or not setup.trains
        else setup.learned or setup.batch * (setup.seq - 1)
    )
    head = 2 * rows * shape.table
    forward = first[0] + others * rest[0] + head
    backward = first[1] + others * rest[1] + head * (setup.trains + setup.whole)
    again = shape.layers * _recomputed(setup) if setup.checkpointing and setup.trains else 0
    text = (
        f"forward 2·{setup.tokens}·({shape.linear_parameters:,} + {shape.table:,} head) + "
        f"4·{setup.tokens}·{setup.seq}·{shape.query}·{shape.layers} attention"
        f" + adapters; backward {backward / forward:.2f} × that; computed again "
        f"{again / forward:.2f} ×"
    )
    return Flops(forward, backward, again, text)


def _rough(setup: Setup) -> Flops:
    """Other families: 2 operations for each parameter and token forward, 4 backward (2 where the
    base is frozen).
    """
    shape = setup.shape
    forward = (
        2 * setup.tokens * (shape.linear_parameters + shape.table)
        + 4 * setup.tokens * setup.seq * shape.hidden * shape.layers
    )
    backward = forward * (2 if setup.whole else 1) * setup.trains
    return Flops(
        forward,
        backward,
        forward * (setup.checkpointing and setup.trains),
        "2 × tokens × parameters + attention, by rule of thumb",
    )


# ----------------------------------------------------------------------------------- time and money


@dataclass(frozen=True)
class Plan:
    """How long a run takes and what it costs. seconds: of the whole run; cost: (lowest, highest) in
    $, or None.
    """

    updates: int
    step_seconds: float
    seconds: float
    bound: str  # "compute" or "memory": which of the two sets the pace
    cost: tuple[float, float] | None
    formula: str

    @property
    def days(self) -> float:
        return self.seconds / 86400


def updates(
    examples: int, epochs: float = 1, batch: int = 1, accumulate: int = 1, devices: int = 1
) -> int:
    """Optimizer steps for so many examples: ⌈examples / rows of one update⌉ for each epoch. Raises
    MiniloraError for numbers that cannot be.
    """
    for name, value in {
        "examples": examples,
        "batch": batch,
        "accumulate": accumulate,
        "devices": devices,
    }.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MiniloraError(f"{name} is {value!r}; give a whole number of at least 1")
    if not (isinstance(epochs, (int, float)) and 0 < epochs <= LARGEST):
        raise MiniloraError(f"epochs is {epochs!r}; give a number above 0 and at most {LARGEST:,}")
    return math.ceil(math.ceil(examples / (batch * accumulate * devices)) * epochs)


def _utilised(utilisation: float) -> float:
    if not (isinstance(utilisation, (int, float)) and 0 < utilisation <= 1):
        raise MiniloraError(
            f"utilisation is {utilisation!r}; give a share above 0 and at most 1, such as 0.4"
        )
    return utilisation


def rate_name(setup: Setup, card: GPU) -> str:
    """The type in which this card multiplies: 16 bits where products are, bf16 or, without it,
    fp16.
    """
    if setup.product == 4:
        return "fp32"
    return "fp16" if setup.precision == "fp16" or "bf16" not in card.rates else "bf16"


def step_seconds(setup: Setup, card: str | GPU, utilisation: float = 0.4) -> tuple[float, str]:
    """(seconds, what bounds them) of one step: the roofline, divided by the utilisation that the
    caller believes in.

    Bytes: the weights are read once for each pass over them, gradients and averages once and
    written once.
    """
    card = gpu(card)
    work = flops(setup).total / card.rate(rate_name(setup, card))
    held = sum(part.bytes for part in memory.weights(setup).values())
    passes = 1 + setup.trains + (setup.trains and setup.checkpointing)
    state = (
        memory.gradients(setup).bytes
        + sum(part.bytes for part in memory.optimizer_states(setup).values())
        if setup.trains
        else 0
    )
    moved = (passes * held + 2 * state) / card.bandwidth
    return max(work, moved) / _utilised(utilisation), "compute" if work >= moved else "memory"


def plan(
    setup: Setup,
    card: str | GPU,
    examples: int,
    epochs: float = 1,
    accumulate: int = 1,
    devices: int = 1,
    utilisation: float = 0.4,
) -> Plan:
    """The time and the cost of `examples` rows for `epochs` epochs on `devices` cards, perfectly
    parallel.
    """
    card = gpu(card)
    steps = updates(examples, epochs, setup.batch, accumulate, devices)
    once, bound = step_seconds(setup, card, utilisation)
    seconds = steps * accumulate * once
    hours = seconds / 3600 * devices
    cost = (hours * card.price.low, hours * card.price.high) if card.price else None
    text = (
        f"{steps:,} updates × {accumulate} × {once:.3g} s at {100 * utilisation:.0f} % of the "
        f"{bound} bound of {devices} × {card.name}"
    )
    return Plan(steps, once * accumulate, seconds, bound, cost, text)


def decode_rate(setup: Setup, card: str | GPU, utilisation: float = DECODING) -> float:
    """Tokens a second when generating one token at a time for each row: weights and cache are read
    once for each token.

    A quantized base is read packed. The bound is bandwidth / bytes, and the batch's rows share the
    weights.
    """
    card = gpu(card)
    weights = sum(part.bytes for part in memory.weights(setup).values())
    if not setup.shape.tied:
        weights -= setup.width * setup.shape.table  # of the token table only a row is read
    once = weights + memory.kv_cache(setup).bytes
    return setup.batch * card.bandwidth / once * _utilised(utilisation)

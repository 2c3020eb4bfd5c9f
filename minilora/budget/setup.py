"""What is asked: one frozen record of every setting that decides memory and compute, checked once.

What it replaces: the keyword arguments that would otherwise pass through every function of this
room.
How it works: `make(model, **settings)` looks the model up, fills in what follows from the method,
and refuses what cannot be with one line. The methods: `full` keeps fp32 weights, gradients and
averages (16 bytes a parameter); `mixed` the same with products in 16 bits under autocast, whose
16-bit copies of the weights live from forward to backward (18 bytes); `full-bf16` everything in 16
bits (8 bytes); `lora`, `int8`, `qlora` a frozen base in 16, 8 or 4 bits with an fp32 adapter;
`inference` neither gradients nor optimizer.
What it leaves out: more than one card; dropout in the adapter, DoRA, adapters on token tables and
heads.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from ..errors import MiniloraError
from .catalog import model
from .shapes import Linear, Shape, nearest

# method → (what the linear layers of the base are kept as, precision if none is asked for)
METHODS = {
    "full": ("dense", "fp32"),
    "mixed": ("dense", "autocast"),
    "full-bf16": ("dense", "bf16"),
    "lora": ("dense", "bf16"),
    "int8": ("int8", "bf16"),
    "qlora": ("4bit", "bf16"),
    "inference": ("dense", "bf16"),
}

# bytes of a weight, bytes in a product
PRECISIONS = {"fp32": (4, 4), "bf16": (2, 2), "fp16": (2, 2), "autocast": (4, 2)}

OPTIMIZERS = ("adamw", "adamw8bit", "paged_adamw8bit", "sgd")

LARGEST = 10**9  # of batch, seq, rank and block: beyond it no run is meant

CODES = {"nf4": 4, "fp4": 4, "int4": 4, "int8": 8}  # bits of one index

CHOICES = {
    "method": tuple(METHODS),
    "precision": tuple(PRECISIONS),
    "optimizer": OPTIMIZERS,
    "attention": ("sdpa", "eager"),
    "base": ("dense", "int8", "4bit"),
    "code": tuple(CODES),
    "library": ("transformers", "minilora"),
    "device": ("cuda", "cpu"),
    "detour": ("fused", "plain"),
}


@dataclass(frozen=True)
class Setup:
    """Everything that decides a budget. Made by `make`, which checks it."""

    shape: Shape
    method: str = "qlora"
    rank: int = 8
    targets: tuple[str, ...] = ()  # names of linear layers that get an adapter
    batch: int = 1
    seq: int = 512
    checkpointing: bool = True
    precision: str = "bf16"
    optimizer: str = "adamw"
    # AdamW over all tensors at once, the default on a GPU: one more parameter-sized temporary
    foreach: bool = True
    attention: str = "sdpa"
    base: str = "4bit"  # how the linear layers of the base are kept
    code: str = "nf4"
    block: int = 64
    double: bool = True
    library: str = "transformers"  # whose Llama runs; LoRA layers are ours in both
    # this package's LoRA step, or "plain": the chain that autograd keeps, as for PEFT's
    detour: str = "fused"
    device: str = "cuda"  # whose kernels save what
    learned: int = 0  # tokens that the loss counts; 0: all that have a next token

    @property
    def adapters(self) -> bool:
        return self.method in ("lora", "int8", "qlora")

    @property
    def trains(self) -> bool:
        return self.method != "inference"

    @property
    def whole(self) -> bool:
        """Whether every parameter trains."""
        return self.trains and not self.adapters

    @property
    def width(self) -> int:
        """Bytes of a number in weights and in the running vector."""
        return PRECISIONS[self.precision][0]

    @property
    def product(self) -> int:
        """Bytes of a number that enters a matrix product."""
        return PRECISIONS[self.precision][1]

    @property
    def autocast(self) -> bool:
        return self.width != self.product

    @property
    def input_grads(self) -> bool:
        """Whether gradients flow into the token vectors: transformers asks for that where it
        checkpoints.
        """
        return self.whole or (self.checkpointing and self.library == "transformers")

    @property
    def tokens(self) -> int:
        return self.batch * self.seq

    @property
    def targeted(self) -> list[Linear]:
        """The linear layers that get an adapter."""
        return (
            [each for each in self.shape.linears() if each.name in self.targets]
            if self.adapters
            else []
        )

    @property
    def trainable(self) -> int:
        """How many numbers train."""
        if self.whole:
            return self.shape.parameters
        return sum(self.rank * (each.inputs + each.outputs) * each.count for each in self.targeted)

    def tensors(self) -> list[tuple[str, int, int]]:
        """(name, size, count) of every tensor that trains: 8-bit optimizers treat each by its
        size.
        """
        if not self.whole:
            pairs = [
                (each.name, side, each.count)
                for each in self.targeted
                for side in (each.inputs, each.outputs)
            ]
            return [
                (f"{name}.lora_{'AB'[i % 2]}", self.rank * side, count)
                for i, (name, side, count) in enumerate(pairs)
            ]
        shape = self.shape
        weights = [(each.name, each.size, each.count) for each in shape.linears()]
        biases = [
            (f"{each.name}.bias", each.outputs, each.count) for each in shape.linears() if each.bias
        ]
        return [
            ("embed_tokens", shape.table, 1 if shape.tied else 2),
            *weights,
            *biases,
            *shape.vectors(),
        ]

    def but(self, **changes) -> Setup:
        """The same with some settings changed, checked anew. A changed method brings its own base
        and precision.
        """
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        if "method" in changes:
            fields.update(base=None, precision=None)
        fields["model"] = fields.pop("shape")
        return make(**{**fields, **changes})


def make(model_name: str | Path | Shape | None = None, **settings) -> Setup:
    """A checked Setup. Raises MiniloraError with one line for what is unknown or cannot be."""
    shape = model(settings.pop("model", model_name) or "llama-7b")
    known = [each.name for each in dataclasses.fields(Setup) if each.name != "shape"]
    for name in settings:
        if name not in known:
            raise nearest("setting", name, known)
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if name in CHOICES and value not in CHOICES[name]:
            raise nearest(name, value, CHOICES[name])
    method = given.setdefault("method", "qlora")
    base, precision = METHODS[method]
    given["base"], given["precision"] = given.get("base", base), given.get("precision", precision)
    given["targets"] = _targets(shape, given.get("targets", "all"))
    setup = Setup(shape, **given)
    _check(setup)
    return setup


def _targets(shape: Shape, asked: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Names of linear layers: "all", one or several with commas, or a list."""
    names = [each.name for each in shape.linears()]
    if asked == "all":
        return tuple(names)
    wanted = [name.strip() for name in asked.split(",")] if isinstance(asked, str) else list(asked)
    if not wanted:
        raise MiniloraError(
            f'targets are empty; give "all" or names of linear layers: {", ".join(names)}'
        )
    for name in wanted:
        if name not in names:
            raise nearest("target", name, names, f" (the linear layers of {shape.name})")
    return tuple(name for name in names if name in wanted)


def _check(setup: Setup) -> None:
    """Raise MiniloraError for numbers and combinations that cannot be."""
    for name in ("batch", "seq", "rank", "block"):
        value = getattr(setup, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MiniloraError(f"{name} is {value!r}; give a whole number of at least 1")
        if value > LARGEST:
            raise MiniloraError(f"{name} is {value:,}; give at most {LARGEST:,}")
    # the tightest: its limit holds for all
    for each in sorted(setup.targeted, key=lambda each: min(each.inputs, each.outputs))[:1]:
        if setup.rank > min(each.inputs, each.outputs):
            raise MiniloraError(
                f"rank {setup.rank} is above the smaller side of {each.name} ({each.outputs} "
                f"× {each.inputs}); "
                f"give at most {min(each.inputs, each.outputs)}, where an adapter is as free "
                "as the matrix itself"
            )
    method, kept = setup.method, METHODS[setup.method][0]
    if method != "inference" and setup.base != kept:
        raise MiniloraError(
            f"method {method} keeps its base {kept}, not {setup.base}; choose the method that "
            "names that base"
        )
    if (
        method in ("full", "mixed", "full-bf16")
        and setup.precision != METHODS[method][1]
        and (method, setup.precision) != ("full-bf16", "fp16")
    ):
        raise MiniloraError(
            f"method {method} means precision {METHODS[method][1]}, not {setup.precision}; "
            "choose full, mixed or full-bf16"
        )
    if not (isinstance(setup.learned, int) and 0 <= setup.learned <= setup.tokens):
        raise MiniloraError(
            f"learned is {setup.learned!r}; give 0 (all) to {setup.tokens}, the tokens of the batch"
        )
    if setup.shape.family != "llama" and setup.library == "minilora":
        raise MiniloraError(
            f"{setup.shape.name} is no Llama, which is all that minilora runs; give "
            'library="transformers"'
        )

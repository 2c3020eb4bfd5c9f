"""A training step that can run without its numbers: the model, the batch and the step that the
ledger watches.

What it replaces: renting the machine to see whether a run fits.
How it works: a `Plan` says which model is trained and how. `build` makes it from this package's own
parts, around our Llama or around transformers', and `step` is what `finetune` does for one update:
forward, loss, backward, clipping, AdamW. Both run on real tensors and, inside `FakeTensorMode`, on
tensors that have a shape, a type and a storage, but no memory.
What it leaves out: dropout, accumulation over micro-batches, more than one device, 8-bit and paged
optimizers, padding (every row is full, every token learned).
Where numerics differ: a 4-bit weight is decoded into one new buffer of the compute type, as a
kernel on a GPU does it; on a CPU ours takes a buffer that stays. In fp32 our LoRA step adds its
detour as on a GPU, with one temporary more than where a CPU's product adds in the same bits. In
fake mode no number exists at all, so nothing here may depend on one.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import MiniloraError
from ...llama.decoder import Attention
from ...llama.model import Llama
from ...qlora.four_bit import QLinear
from ...qlora.int8 import Int8Linear, quantize_model_int8
from ...qlora.replace import replace_linears
from ...quantize.blockwise import NESTED_BLOCK, Nested, Quantized
from ...train.loss import loss_sum
from ..catalog import config_of
from ..setup import Setup

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "autocast": torch.float32,
}


@dataclass(frozen=True)
class Plan:
    """A setup, and what it leaves open. Raises MiniloraError for what cannot be rehearsed."""

    setup: Setup
    clip: float = 1.0  # largest gradient norm; 0: no clipping

    def __post_init__(self) -> None:
        setup, shape = self.setup, self.setup.shape
        if not setup.trains:
            raise MiniloraError(
                "method 'inference' has no training step to measure; choose full, mixed, "
                "full-bf16, lora, int8 or qlora"
            )
        if setup.optimizer != "adamw":
            raise MiniloraError(
                f"optimizer {setup.optimizer!r} runs in kernels that need a GPU; only adamw "
                "can be measured here"
            )
        if shape.family != "llama":
            raise MiniloraError(f"{shape.name} is no Llama; the step that is measured is a Llama's")
        if setup.base == "4bit" and (setup.code, setup.block, setup.double) != ("nf4", 64, True):
            raise MiniloraError(
                "only nf4 in blocks of 64 with double quantization is measured; the closed "
                "forms know the others"
            )
        if setup.learned not in (0, setup.tokens - setup.batch):
            raise MiniloraError(
                f"learned is {setup.learned}; here every token that has a next one is "
                "learned, so give 0"
            )


# ---------------------------------------------------------------------------------------- the model


class OneBuffer(QLinear):
    """A QLinear that decodes into a new buffer each time, whatever its size; on fake tensors the
    buffer stays empty.
    """

    def decode(self, dtype: torch.dtype) -> Tensor:
        from torch._subclasses.fake_tensor import FakeTensor
        from torch.utils._python_dispatch import _disable_current_modes

        if self.weight.is_cuda:
            return by_kernel(self.quantized, dtype)
        W = torch.empty(self.quantized.shape, dtype=dtype, device=self.weight.device)  # (out, in)
        if not isinstance(W, FakeTensor):
            with _disable_current_modes():  # the one buffer is all that a kernel would ask for
                self.quantized.dequantize(out=W)
        return W


def by_kernel(q: Quantized, dtype: torch.dtype) -> Tensor:
    """W (out, in) as bitsandbytes' kernels decode it: what a GPU runs in earnest, and one buffer
    but for the scales.
    """
    import bitsandbytes  # noqa: F401  registers the operations

    from ...quantize.kernels.torch_ops import constant

    absmax = q.absmax
    if q.nested is not None:
        levels = constant(q.nested.levels, absmax)
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(
            absmax, q.nested.absmax, levels, q.nested.block, torch.float32
        ).add_(q.nested.offset)
    return torch.ops.bitsandbytes.dequantize_4bit(
        q.packed, absmax, q.block, q.book.name, list(q.shape), dtype
    )


def _is_fake(model: nn.Module) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(next(model.parameters()), FakeTensor)


def _unquantized(linear: nn.Linear) -> Quantized:
    """What `quantize(weight, "nf4", 64, double=True)` returns, in shape and type, for a weight
    without numbers.
    """
    from ...quantize import codebooks

    out, inner = linear.weight.shape
    blocks = math.ceil(out * inner / 64)
    nested = Nested(torch.empty(math.ceil(blocks / NESTED_BLOCK)), 0.0)
    packed = torch.empty((out * inner + 1) // 2, 1, dtype=torch.uint8)
    absmax = torch.empty(blocks, dtype=torch.uint8)
    return Quantized(
        packed, absmax, codebooks.named("nf4"), 64, (out, inner), linear.weight.dtype, nested
    )


def _without_numbers(linear: nn.Linear) -> Int8Linear:
    """What `Int8Linear.from_linear` makes of a weight without numbers."""
    codes = torch.empty(linear.weight.shape, dtype=torch.int8)
    return Int8Linear(
        codes, torch.empty(linear.out_features), linear.bias, dtype=linear.weight.dtype
    )


def _quantize(model: nn.Module, base: str) -> None:
    """4 or 8 bits in place of the linear layers' weights; by the quantizers themselves where there
    are numbers.
    """
    if base == "4bit" and _is_fake(model):
        replace_linears(model, lambda linear, _: OneBuffer(_unquantized(linear), linear.bias))
    elif base == "4bit":
        replace_linears(model, lambda linear, _: OneBuffer.from_linear(linear))
    elif _is_fake(model):
        replace_linears(model, lambda linear, _: _without_numbers(linear))
    else:
        quantize_model_int8(model)
    model.requires_grad_(False)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _transformers_model(setup: Setup) -> nn.Module:
    import transformers

    fields = config_of(setup.shape).to_hf() | {
        "use_cache": False,
        "attn_implementation": setup.attention,
    }
    (architecture,) = fields.pop("architectures")
    model = getattr(transformers, architecture)
    del fields["model_type"]
    return model(model.config_class(**fields))


def dense_model(setup: Setup) -> nn.Module:
    """The Llama of `setup`, ours or transformers', with weights in its own type: nothing quantized,
    no adapter.
    """
    with _default_dtype(PRECISIONS[setup.precision]):
        return (
            Llama(config_of(setup.shape))
            if setup.library == "minilora"
            else _transformers_model(setup)
        )


def adapt(model: nn.Module, setup: Setup) -> nn.Module:
    """Our adapters and checkpointing on a model that is quantized as `setup` wants it; ready to
    train.
    """
    from ... import lora

    if setup.adapters:
        lora.add_lora(model, setup.rank, 2 * setup.rank, list(setup.targets))
        if setup.detour == "plain":
            for layer in lora.adapted_layers(model).values():
                layer.adds_only = lambda name: False  # the fused step is for what only adds
    if setup.checkpointing and setup.library == "minilora":
        model.gradient_checkpointing = True
    elif setup.checkpointing:
        checkpoint_layers(model)
    return model.train()


def checkpoint_layers(model: nn.Module) -> None:
    """Let transformers' model compute each layer again in the backward pass. Its method has another
    name from one 5.x on, the old one goes in 6.
    """
    enable = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})


def build(plan: Plan) -> nn.Module:
    """The model of `plan`, ready to train. Inside FakeTensorMode it takes no memory, whatever its
    size.
    """
    model = dense_model(plan.setup)
    if plan.setup.base != "dense":
        _quantize(model, plan.setup.base)
    return adapt(model, plan.setup)


def layers_of(model: nn.Module) -> nn.ModuleList:
    return model.model.layers


# ----------------------------------------------------------------------------------------- the step


def batch_of(setup: Setup) -> tuple[Tensor, Tensor]:
    """ids and labels (B, T), int64."""
    ids = torch.randint(0, setup.shape.vocab, (setup.batch, setup.seq))
    return ids, ids.clone()


def loss_of(model: nn.Module, setup: Setup, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy, as `finetune` computes it for our Llama, as transformers does for its
    own.
    """
    ids, labels = batch
    mixed = (
        torch.autocast(ids.device.type, dtype=torch.bfloat16)
        if setup.autocast
        else contextlib.nullcontext()
    )
    with mixed:
        if setup.library == "transformers":
            return model(input_ids=ids, labels=labels).loss
        total, count = loss_sum(model, (ids, labels, None))
    return total / count


def optimizer_of(model: nn.Module, setup: Setup) -> torch.optim.AdamW:
    """AdamW on whatever trains: over all tensors at once (foreach), or in one kernel (fused)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        trained, lr=1e-4, **({"foreach": True} if setup.foreach else {"fused": True})
    )


def update(plan: Plan, optimizer: torch.optim.AdamW) -> None:
    """Clip, step, and let the gradients go."""
    if plan.clip:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, plan.clip, foreach=True)
    optimizer.step()
    optimizer.zero_grad()  # sets them to None, torch's as ours


def remember(optimizer: torch.optim.AdamW) -> None:
    """Make the optimizer's memory by a step with gradients of zero."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def eager_attention(q, k, v, attn_mask=None, is_causal=True, enable_gqa=False) -> Tensor:
    """softmax(q kᵀ / √d) v, every matrix written out, the softmax in fp32. q (B, H, T, D), k and v
    (B, G, T, D).
    """
    T, D = q.shape[-2:]
    if enable_gqa:
        # (B, H, T, D)
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * D**-0.5  # (B, H, T, T)
    later = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, float("-inf")).float().softmax(-1).to(v.dtype) @ v


@contextlib.contextmanager
def prepared(model: nn.Module, setup: Setup) -> Iterator[None]:
    """What a run needs around it: eager attention in our Llama; in transformers' no causal mask for
    SDPA, which it makes in fake mode only.
    """
    if setup.library == "minilora":
        target, name, stand_in = Attention, "attend", staticmethod(eager_attention)
        wanted = setup.attention == "eager"
    else:
        target, name, stand_in = (
            sys.modules[type(model).__module__],
            "create_causal_mask",
            lambda *args, **kwargs: None,
        )
        wanted = setup.attention == "sdpa"
    if not wanted:
        yield
        return
    before = target.__dict__[name]
    setattr(target, name, stand_in)
    try:
        yield
    finally:
        setattr(target, name, before)

"""A training step with LoRA and with QLoRA: time, bytes kept for backward, peak memory, beside
PEFT's.

What it replaces: nothing; `cpu.py` puts these rows into its table.
How it works: a step is forward, loss and backward; the optimizer is left out, since both sides
would use the same. Three contenders: PEFT over transformers' Llama (with bitsandbytes' NF4
underneath for QLoRA); our Llama with our adapters, as `minilora finetune` trains, which has the
goal; and our adapters over the same transformers' Llama, so that nothing but the adapter differs.
The floor is the forward pass of the frozen model, ours or theirs, without gradients: a step takes
two of them at the least, one forward and one for the inputs' gradients.
What it leaves out: dropout, gradient checkpointing, accumulation.
Where numerics differ: in bf16 our detour is computed in bf16, PEFT's in fp32. All three start from
the same weights, and their losses are compared before anything is timed; that also calls the
compiler for the decoder of our 4-bit layers.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.kit.measure import (
    Row,
    Seconds,
    interleaved,
    median_ms,
    peak_bytes,
    ratio,
    saved_bytes,
)

GOALS = {
    ("LoRA", "fp32"): 0.90,
    ("LoRA", "bf16"): 0.80,
    ("QLoRA", "fp32"): 0.80,
    ("QLoRA", "bf16"): 0.80,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Shape:
    """The model and batch that are timed."""

    hidden: int = 256
    layers: int = 4
    inner: int = 704
    vocab: int = 4096
    length: int = 128
    batch: int = 8


def dense_model(shape: Shape, dtype: torch.dtype):
    """Transformers' Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).requires_grad_(False)


def reload(dense, four_bit: bool):
    """The same model through its folder, transformers' and ours; with `four_bit` each quantized by
    its own library.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from minilora.llama import Llama

    options = {}
    if four_bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dense.dtype,
        )
    with tempfile.TemporaryDirectory() as folder:
        dense.save_pretrained(folder)
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dense.dtype, **options)
        ours = Llama.from_pretrained(folder, dtype=dense.dtype)
    # else an evaluation repacks the weights, and the next training step loses gradients
    for module in theirs.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return theirs, ours.requires_grad_(False)


def contenders(
    method: str, dtype: torch.dtype, shape: Shape
) -> dict[str, tuple[torch.nn.Module, Callable]]:
    """Name → (model, step that returns the loss). "floor" and "our floor" are frozen forwards
    without gradients.
    """
    import peft

    from minilora import lora
    from minilora.qlora import four_bit
    from minilora.train.loss import loss_sum

    dense = dense_model(shape, dtype)
    theirs, ours = reload(dense, method == "QLoRA")
    frozen = copy.deepcopy(ours)
    under = copy.deepcopy(dense)
    if method == "QLoRA":
        four_bit.quantize_model(under)
        four_bit.quantize_model(ours)
    for model in (under, ours):
        lora.add_lora(model, rank=8, alpha=16)
    theirs = peft.get_peft_model(
        theirs, peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    )
    ids = torch.randint(
        0, shape.vocab, (shape.batch, shape.length), generator=torch.Generator().manual_seed(1)
    )

    def hugging_face(model):
        return model(input_ids=ids, labels=ids).loss

    def own(model):
        total, count = loss_sum(model, (ids, ids, None))
        return total / count

    return {
        "floor": (dense, lambda: hugging_face(dense)),
        "our floor": (frozen, lambda: own(frozen)),
        "peer": (theirs.train(), lambda: hugging_face(theirs)),
        "same": (under.train(), lambda: hugging_face(under)),
        "ours": (ours.train(), lambda: own(ours)),
    }


def step_rows(method: str, name: str, threads: int, shape: Shape, rounds: int) -> list[Row]:
    """Time, saved bytes and peak memory of `method` ("LoRA" or "QLoRA") in `name` ("fp32" or
    "bf16").
    """
    models = contenders(method, DTYPES[name], shape)
    losses = {who: forward().item() for who, (_, forward) in models.items()}
    assert max(losses.values()) - min(losses.values()) < 0.05, losses
    steps = {
        who: _without_gradients(forward) if "floor" in who else _step(model, forward)
        for who, (model, forward) in models.items()
    }
    seconds = interleaved(steps, rounds)
    peer_name = "PEFT" if method == "LoRA" else "PEFT + bitsandbytes"
    goal, title = GOALS[method, name], f"{method} step {name}"
    rows = [
        _time_row(f"{title}, our Llama", threads, seconds, ("ours", "our floor"), peer_name, goal),
        _time_row(
            f"{title}, same Llama under both", threads, seconds, ("same", "floor"), peer_name, goal
        ),
    ]
    for what, measure in (("kept for backward", _saved), ("peak memory", _peak)):
        used = {who: measure(*models[who]) for who in ("peer", "ours", "same")}
        for who, under in (("ours", "our Llama"), ("same", "same Llama under both")):
            rows.append(
                Row(
                    f"{title}, {under}: {what}",
                    threads,
                    "MB",
                    used[who] / 1e6,
                    used["peer"] / 1e6,
                    peer_name,
                    used[who] / used["peer"],
                    "{:.2f} of its bytes",
                    1.0,
                )
            )
    return rows


def _step(model: torch.nn.Module, forward: Callable) -> Callable:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        forward().backward()

    return step


def _without_gradients(forward: Callable) -> Callable:
    return torch.no_grad()(forward)


def _saved(model: torch.nn.Module, forward: Callable) -> int:
    return saved_bytes(forward, model)


def _peak(model: torch.nn.Module, forward: Callable) -> int:
    """Peak of a step, the buffer in which 4-bit weights are decoded, usually kept from step to
    step, counted in.
    """
    from minilora.system import scratch

    model.zero_grad(set_to_none=True)

    def step() -> None:
        forward().backward()
        model.zero_grad(set_to_none=True)

    scratch.free()
    return peak_bytes(step)


def _time_row(
    what: str,
    threads: int,
    seconds: Seconds,
    names: tuple[str, str],
    peer_name: str,
    goal: float | None,
) -> Row:
    """`names`: who is measured, and its frozen forward."""
    who, floor = names
    share, spread = ratio(seconds, who, "peer")
    beside = (
        f"{ratio(seconds, who, floor)[0]:.2f} frozen forwards (peer "
        f"{ratio(seconds, 'peer', 'floor')[0]:.2f}, floor 2)"
    )
    return Row(
        what,
        threads,
        "ms",
        median_ms(seconds, who),
        median_ms(seconds, "peer"),
        peer_name,
        share,
        "{:.2f} of its time",
        goal,
        beside,
        spread,
    )

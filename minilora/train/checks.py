"""What would train nothing, or the wrong thing, caught before step 1.

What it replaces: hours of a run whose loss looks plausible. Each check stands for a mistake that
users of the large libraries report again and again; each message names the cause and the remedy.
How it works: first the batch is looked at (see row_checks.py), then the layers and parameters
(bitsandbytes' faults on a CPU, frozen, trainable, finite, dtypes), then one forward and backward
pass shows whether a gradient arrives at every adapter. Gradients and random state are left as they
were. `train.fit` looks at every row of the data, too.
What it leaves out: whether the learning rate is sensible, whether the data is any good.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..text.ends import model_ends
from ..text.rows import IGNORE, Row
from .loss import loss_sum
from .row_checks import CheckFailed, require_borders, require_fit

BLOCK = 64  # weights that share a scale in bitsandbytes' Linear4bit


@dataclass
class Report:
    """What `check` saw: numbers of parameters, the loss before training, and how many of the
    batch's tokens are learned.

    If all are and the data are questions with answers, the prompts are not masked: the model learns
    to ask as well.
    """

    trainable: int
    total: int
    loss: float
    learned: int
    tokens: int


def _check_batch(model: nn.Module, ids: Tensor, labels: Tensor, mask: Tensor) -> None:
    blank = (mask.sum(1) == 0).nonzero().flatten().tolist()
    if blank:
        raise CheckFailed(
            f"row {blank[0] + 1} of the batch is nothing but padding; leave empty examples "
            "out: attention over nothing is 0/0"
        )
    learned = labels != IGNORE
    if not bool(learned[:, 1:].any()):
        raise CheckFailed(
            "all labels of the first batch are masked (-100): nothing to learn; put the "
            "answer in `response`"
        )
    rows = _rows(model, ids, labels, mask)
    require_fit(model, rows, "batch")
    if bool((learned & (mask == 0)).any()):
        raise CheckFailed("padding is learned; set the labels of padded positions to -100")
    require_borders(model, rows, "batch")


def _rows(model: nn.Module, ids: Tensor, labels: Tensor, mask: Tensor) -> list[Row]:
    """The batch's rows without their padding, which may stand on either side."""
    real = mask == 1
    ends = torch.tensor(model_ends(model), dtype=ids.dtype, device=ids.device)
    end = torch.isin(ids, ends)
    # a mask made as `ids != pad`: even the longest row seems to end in padding
    if bool((end & ~real)[:, -1].all()):
        behind = torch.roll(real, 1, 1)
        behind[:, 0] = False
        real = real | (end & behind)  # each answer's own EOS belongs to its row
    return [(i[r].tolist(), l[r].tolist()) for i, l, r in zip(ids, labels, real)]


def _check_packed(model: nn.Module) -> None:
    """bitsandbytes' 4-bit layers on a CPU: known by a name, so that a model without them needs no
    bitsandbytes.
    """
    for name, layer in model.named_modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu") or layer.weight.device.type != "cpu":
            continue
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise CheckFailed(
                f"an evaluation has made bitsandbytes pack {name} anew, and no gradient "
                "passes it any more; "
                "load the model again, and call hub.cure(model) before the first evaluation"
            )
        if layer.support_avx512bf16_for_cpu:
            raise CheckFailed(
                f"the first evaluation would make bitsandbytes pack {name} anew, and from "
                "then on no gradient would pass it; "
                "call hub.cure(model), or load with hub.load"
            )
        if (
            layer.in_features % BLOCK
            and layer.in_features % 16 == 0
            and not hasattr(layer, "decoded_by_ours")
        ):
            raise CheckFailed(
                f"{name} has rows of {layer.in_features}, no multiple of {BLOCK}, which "
                "bitsandbytes decodes wrongly on a CPU; "
                "call hub.cure(model), or load with hub.load"
            )


def _check_parameters(model: nn.Module) -> None:
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise CheckFailed(
                f"the weight {name} holds NaN or infinity; load the checkpoint again from a "
                "good copy"
            )
    adapters = {name: p for name, p in named.items() if "lora_" in name}
    trainable = [name for name, p in named.items() if p.requires_grad]
    if adapters and not any(p.requires_grad for p in adapters.values()):
        raise CheckFailed(
            "the model has an adapter, but it is frozen; call lora.use_adapter(model, name) "
            "or add it anew"
        )
    if not trainable:
        raise CheckFailed(
            "nothing is trainable: all parameters are frozen; call lora.add_lora(model) or "
            "unfreeze the model"
        )
    if adapters:
        for name in trainable:
            if not any(
                part in name for part in ("lora_", "modules_to_save", "trainable_tokens")
            ) and not name.endswith(".bias"):
                raise CheckFailed(
                    f"the base is not frozen: {name} is trainable beside the adapter; set its "
                    "requires_grad to False"
                )
        _check_both_zero(adapters)
    for name in trainable:
        if named[name].dtype == torch.float16:
            raise CheckFailed(
                f"{name} is trained in float16, where AdamW's small updates round to nothing; "
                "keep trained weights in float32"
            )


def _check_both_zero(adapters: dict[str, nn.Parameter]) -> None:
    """Each gets its gradient through the other: behind one that is zero for good, the other learns
    nothing that counts.
    """
    for name, a in adapters.items():
        other = name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")
        b = adapters.get(other)
        if "_A" not in name or b is None:
            continue
        if a.requires_grad and not bool(a.any()) and not bool(b.any()):
            raise CheckFailed(
                f"{name} and its B are both zero, so neither gets a gradient, ever; "
                "initialise A with random numbers"
            )
        for one, zero, learner in ((name, a, b), (other, b, a)):
            if learner.requires_grad and not zero.requires_grad and not bool(zero.any()):
                raise CheckFailed(
                    f"{one} is zero and frozen, so its adapter stays zero, whatever its other "
                    "half learns; set its requires_grad to True"
                )


def _check_gradient(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = {name: p.grad for name, p in named.items()}
    for parameter in named.values():
        parameter.grad = None
    try:
        total, tokens = loss_sum(model, batch)
        loss = total.item() / tokens
        if loss != loss or abs(loss) == float("inf"):
            raise CheckFailed(
                f"the loss before training is {loss}; load the model in float32 or bfloat16, "
                "and look for damaged weights"
            )
        if not total.requires_grad:
            raise CheckFailed(
                "no gradient reaches the trainable weights: the loss depends on none of them; "
                "with checkpointing call model.enable_input_require_grads() or use the "
                "non-reentrant kind"
            )
        total.backward()
        unreached = [name for name, p in named.items() if p.grad is None]
        if unreached:
            raise CheckFailed(
                f"no gradient reaches {unreached[0]} ({len(unreached)} of {len(named)} "
                "trainable weights); "
                "with checkpointing use the non-reentrant kind, and look for a detach() or "
                "no_grad() on the way"
            )
        _check_arrived(named, deep=bool((batch[1][:, 2:] != IGNORE).any()))
        return loss
    finally:
        for name, parameter in named.items():
            parameter.grad = kept[name]


def _check_arrived(named: dict[str, nn.Parameter], deep: bool) -> None:
    """Gradients are there: are they numbers, and does some of them reach every adapter? deep: a
    token is learned that attention looks back for.
    """
    gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient).all()):
            raise CheckFailed(
                f"the gradient of {name} holds NaN or infinity; train in float32 or bfloat16, "
                "and look for rows that are all padding"
            )
    moving = {name: bool(gradient.any()) for name, gradient in gradients.items()}
    if not any(moving.values()):
        raise CheckFailed(
            "all gradients are zero: nothing would move; look for an adapter with scale 0 or "
            "both matrices zero"
        )
    pairs = {name: name.replace("_A", "_B") for name in named if "lora_" in name and "_A" in name}
    still = [a for a, b in pairs.items() if b in named and not moving[a] and not moving[b]]
    if still and deep:  # at the start one of the two is zero and the other's gradient is not
        raise CheckFailed(
            f"the gradient of {still[0]} and of its B is exactly zero ({len(still)} of "
            f"{len(pairs)} adapters), so it is lost on its way there; "
            "look for a layer that cuts it, such as weights that an evaluation has packed "
            "anew, then load the model again"
        )


def check(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Report:
    """Raise CheckFailed if a run from here would train nothing; `batch` is what `text.collate`
    returns.

    Looks at ids and labels, frozen and trainable weights, NaN, dtypes, and runs one forward and
    backward pass.
    """
    _check_batch(model, *batch)
    return check_model(model, batch)


def check_model(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Report:
    """`check` without the look at the batch itself, for one whose rows have been looked at."""
    ids, labels, mask = batch
    _check_packed(model)
    _check_parameters(model)
    devices = [ids.device] if ids.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        loss = _check_gradient(model, batch)
    numbers = [(p.numel(), p.requires_grad) for p in model.parameters()]
    learned = int((labels[:, 1:] != IGNORE).sum())
    return Report(
        sum(n for n, on in numbers if on),
        sum(n for n, _ in numbers),
        loss,
        learned,
        int(mask.sum()),
    )

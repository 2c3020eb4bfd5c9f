"""The bench on which the course's traps are set: the shipped base through transformers and peft, as
everybody's script has it.

What it replaces: the first thirty lines of such a script. The traps themselves stand in the lesson
on QLoRA, a pair of cells for each: one in which the large libraries fail, one in which
`train.check` says so or minilora's own way does not fail.
How it works: `fresh` is transformers' model of the shipped base, `adapted` puts PEFT's adapter on
it, `learn` is the loop that everybody writes: loss, backward, step. `refusal` is what minilora says
instead of running; `kept` counts what autograd holds.
What it leaves out: whatever `train.fit` does beyond that loop; a trap would be none there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import hub
from ..errors import MiniloraError
from ..system.files import data_folder

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..text.rows import Row

    Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def rows_of(task: str = "extract", count: int = 8) -> list[Row]:
    """The first `count` questions and answers of a shipped task, as ids and labels."""
    from .. import text

    tokenizer = text.Tokenizer.from_pretrained(data_folder() / "base")
    return text.encode_rows(
        text.read_split(data_folder() / "tasks" / task, "train")[:count], tokenizer
    )


def fresh(**settings: Any) -> nn.Module:
    """transformers' model of the shipped base, on the CPU, in fp32 unless `settings` (those of
    from_pretrained) say otherwise.
    """
    import torch

    with hub.libraries():
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            data_folder() / "base",
            **{"dtype": torch.float32, "device_map": {"": "cpu"}, **settings},
        )


def adapted(
    model: nn.Module | None = None,
    seed: int = 0,
    autocast_adapter_dtype: bool = True,
    **settings: Any,
) -> nn.Module:
    """PEFT's adapter of rank 8 on every linear layer of `model` (default: `fresh()`); settings are
    LoraConfig's.
    """
    import torch

    with hub.libraries():
        from peft import LoraConfig, get_peft_model

        common = {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": "all-linear",
            "task_type": "CAUSAL_LM",
        }
        with torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            return get_peft_model(
                fresh() if model is None else model,
                LoraConfig(**common, **settings),
                autocast_adapter_dtype=autocast_adapter_dtype,
            )


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """transformers' own loss: the mean over the learned tokens of this batch."""
    ids, labels, mask = batch
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def learn(model: nn.Module, batch: Batch, steps: int = 3, lr: float = 3e-3) -> list[float]:
    """The loop that everybody writes; the loss of each step, before its update."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        loss = loss_of(model.train(), batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def moved(model: nn.Module, batch: Batch, steps: int = 2) -> tuple[list[float], int]:
    """`learn`, and how many of the adapter's matrices are others afterwards. Two steps: in the
    first, A has no gradient yet.
    """
    import torch

    matrices = [p for name, p in model.named_parameters() if "lora_" in name]
    before = [p.detach().clone() for p in matrices]
    losses = learn(model, batch, steps)
    return losses, sum(not torch.equal(p, old) for p, old in zip(matrices, before))


def predictions(model: nn.Module, rows: Sequence[Row]) -> torch.Tensor:
    """ln p of every learned token's position, (N, V), of a model of transformers or peft that is
    asked, not trained; for `divergence.kl`.
    """
    from ..train.kl_divergence import log_probabilities

    return log_probabilities(hub.answering(model.eval()), rows)


def gradient(model: nn.Module) -> torch.Tensor:
    """All gradients of `model` as one vector."""
    import torch

    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def refusal(call: Callable, *arguments: Any, **named: Any) -> str:
    """What minilora says instead of doing `call(*arguments)`; empty if it does it."""
    try:
        call(*arguments, **named)
    except MiniloraError as error:
        return str(error)
    return ""


def held(model: nn.Module) -> int:
    """Bytes of the model's parameters, each storage once."""
    return sum(
        {
            p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()
        }.values()
    )


def kept(model: nn.Module, batch: Batch) -> int:
    """Bytes that autograd keeps from forward to backward of one step, parameters not counted, each
    storage once.
    """
    import torch

    mine, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # held until the end, so that no address is given out twice
        loss = loss_of(model.train(), batch)
    del loss
    return sum(found.values())

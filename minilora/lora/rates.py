"""LoRA+: B learns faster than A.

What it replaces: `peft.optimizers.create_loraplus_optimizer`.
How it works (Hayou et al. 2024, arXiv:2402.12354): with one rate for both, wide models learn too
slowly, because B starts at zero and needs larger steps than A; give B the rate λ·lr. The result is
a list of parameter groups for any torch optimizer; `train.fit(…, lora_plus=16)` and
`minilora finetune --lora-plus 16` use it, each group keeping its share of a rate that rises and
falls.
What it leaves out: bitsandbytes' registration of 32-bit embeddings.
Where numerics differ: nowhere; the groups hold the rates that PEFT's hold.
"""

from __future__ import annotations

from torch import nn

from ..errors import MiniloraError


def loraplus_groups(
    model: nn.Module,
    lr: float,
    ratio: float = 16.0,
    embedding_lr: float = 1e-6,
    weight_decay: float = 0.0,
) -> list[dict]:
    """Optimizer groups: A (and full modules' matrices) at lr, B and all vectors at ratio·lr,
    adapted embeddings at embedding_lr.

    Biases and norms do not decay. Raises MiniloraError for a ratio below 1 or if nothing is
    trainable.
    """
    if not ratio >= 1:
        raise MiniloraError(
            f"LoRA+ ratio is {ratio!r}; B learns faster than A, so give 1 or more, such as 16"
        )
    rates: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, module in model.named_modules():
        norm = "norm" in type(module).__name__.lower()
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                name = f"{path}.{key}"
                rate = lr * ratio if "lora_B" in name or parameter.ndim == 1 else lr
                if "lora_embedding" in name:
                    rate = embedding_lr
                decay = 0.0 if key == "bias" or norm else weight_decay
                rates.setdefault((rate, decay), []).append(parameter)
    if not rates:
        raise MiniloraError("nothing is trainable; call lora.add_lora(model) first")
    return [
        {"params": group, "lr": rate, "weight_decay": decay}
        for (rate, decay), group in rates.items()
    ]

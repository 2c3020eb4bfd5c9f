"""LoRA on an embedding table, and modules trained whole beside an adapter.

What it replaces: `peft.tuners.lora.layer.Embedding` and `peft.utils.ModulesToSaveWrapper`.
How it works: an embedding is a linear layer whose input is one-hot: W (tokens, dim) + (B A)ᵀ·s with
A (r, tokens), B (dim, r). A is a table as well: the token's column is looked up and multiplied by
Bᵀ. Here A starts at zero and B at random, so that a token's first update has a direction. A full
module (a head, a norm) is a trainable copy that answers in the place of the frozen one.
What it leaves out: `max_norm`, sparse gradients, Gemma's scaled embeddings.
Where numerics differ: nowhere; forward and merge are bit-equal to PEFT's. A tied head goes on using
the table as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import MiniloraError
from .dora import dora_factor
from .layer import Adapted, AdaptedWeight, adapter_place


class LoRAEmbedding(AdaptedWeight):
    """An nn.Embedding with adapters. lora_embedding_A[name] is (r, tokens), lora_embedding_B[name]
    is (dim, r).
    """

    keys = ("lora_embedding_A", "lora_embedding_B")

    def __init__(self, base: nn.Embedding):
        super().__init__(base)
        self.lora_embedding_A, self.lora_embedding_B = nn.ParameterDict(), nn.ParameterDict()

    @property
    def A(self) -> nn.ParameterDict:
        return self.lora_embedding_A

    @property
    def B(self) -> nn.ParameterDict:
        return self.lora_embedding_B

    def add(self, name: str, rank: int, scale: float, dropout: float = 0.0) -> None:
        """A = 0, B ~ N(0, 1). Dropout does not apply: PEFT's embeddings have none either."""
        like = adapter_place(self.base)
        self.A[name] = nn.Parameter(torch.zeros(rank, self.base.num_embeddings, **like))
        self.B[name] = nn.Parameter(torch.randn(self.base.embedding_dim, rank, **like))
        self.scale[name], self.dropout[name] = scale, 0.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # (B, T) -> (B, T, dim)
        base_y = self.base(ids)
        if self.silent:
            return base_y
        if self.rows is not None:
            return self.by_rows(ids, base_y, self.adapt)
        y = base_y
        for name in self.active:
            y = self.adapt(name, ids, y)
        return y.to(base_y.dtype)

    def adapt(self, name: str, ids: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        A, B, scale = self.A[name], self.B[name], self.scale[name]
        low = F.embedding(ids, A.T, padding_idx=self.base.padding_idx)  # (B, T, r)
        if name not in self.lora_magnitude_vector:
            return y + (low @ B.T) * scale  # (B, T, dim)
        factor = dora_factor(self.weight.T, A, B, scale, self.lora_magnitude_vector[name])  # (dim,)
        return factor * y + factor * (low @ B.T) * scale

    def dense(self) -> torch.Tensor:
        return self.base.weight.detach().T  # (dim, tokens): the one-hot layer's weight

    def merged_base(self, names: list[str], dtype: torch.dtype | None = None) -> nn.Embedding:
        """A new nn.Embedding whose table holds the adapters `names`."""
        base = self.base
        table = self.merged_weight(names).T.to(dtype or base.weight.dtype).contiguous()
        merged = nn.Embedding(
            base.num_embeddings, base.embedding_dim, base.padding_idx, device="meta"
        ).train(self.training)
        merged.weight = nn.Parameter(table, requires_grad=False)
        return merged


class FullModule(Adapted):
    """Any module with trainable copies beside it, one for each adapter that trains it whole (PEFT:
    modules_to_save).
    """

    full = True

    def __init__(self, base: nn.Module):
        super().__init__(base)
        self.modules_to_save = nn.ModuleDict()

    def add(self, name: str) -> None:
        """Start from the base's own weights. Raises MiniloraError for a module without
        floating-point parameters.
        """
        twin = copy.deepcopy(self.base).requires_grad_(True)
        if not any(True for _ in twin.parameters()):
            raise MiniloraError(
                f"a {type(self.base).__name__} has no weights that could be trained whole; "
                "choose another module"
            )
        self.modules_to_save[name] = twin

    def has(self, name: str) -> bool:
        return name in self.modules_to_save

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The copy's state under its own keys, as PEFT's files have it."""
        return self.modules_to_save[name].state_dict(keep_vars=True) if self.has(name) else {}

    def adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, twin in self.modules_to_save.items():
            yield from ((name, parameter) for parameter in twin.parameters())

    def remove(self, name: str) -> None:
        if self.has(name):
            del self.modules_to_save[name]
        self.active = [each for each in self.active if each != name]

    def forward(self, *inputs, **options):
        if self.silent:
            return self.base(*inputs, **options)
        if self.rows is not None:
            return self.by_rows(
                inputs[0],
                self.base(*inputs, **options),
                lambda name, x, y: self.modules_to_save[name](x),
            )
        return self.modules_to_save[self.active[-1]](*inputs, **options)

    def merged_base(self, names: list[str], dtype: torch.dtype | None = None) -> nn.Module:
        """The copy itself: it takes the base's place."""
        return copy.deepcopy(self.modules_to_save[names[-1]]).requires_grad_(False)

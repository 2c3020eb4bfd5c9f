"""LoRA: a frozen linear layer and a low-rank detour beside it that learns.

What it replaces: `peft.tuners.lora.layer.Linear` (the two lines that matter inside its thousand).
How it works (Hu et al. 2021, §4.1): W (out, in) stays as it is. A (r, in) reads r numbers from x, B (out, r) writes
them into the output, s = α/r scales:

    y = x Wᵀ + b + ((x Aᵀ) Bᵀ) · s

A starts random and B at zero, so that at step 0 the layer gives what it gave before. Several adapters stand in one layer
under their names; `active` says which of them speak.
What it leaves out: convolutions, LoRA biases, GPT-2's transposed Conv1D.
Where numerics differ: forward is bit-equal to PEFT's, which is this order: add ((x Aᵀ) Bᵀ) · s to the base's output.
"""

from __future__ import annotations

import math
from typing import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import MiniloraError
from .dora import dora_addition, dora_factor, row_norms
from .fused import can_fuse, fused_lora

BASE = "__base__"  # in a mixed batch: the row that gets no adapter


class Adapted(nn.Module):
    """A module and what may speak beside it: the state that switching, disabling and merging act on."""

    full = False  # whether what stands beside the base is a whole copy of it, not a low-rank detour

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.active: list[str] = []
        self.disabled = False
        self.rows: list[str] | None = None  # one adapter's name for each row of the batch
        self.unmerged: tuple[nn.Module, ...] = ()  # while merged: the base as it was, out of sight of parameters()

    @property
    def merged(self) -> bool:
        return bool(self.unmerged)

    @property
    def silent(self) -> bool:
        """True where the base alone answers."""
        return self.disabled or self.merged or (not self.active and self.rows is None)

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight: what code that looks into the layer (tied heads, dtype checks) expects to find."""
        return self.base.weight

    def by_rows(self, x: torch.Tensor, y: torch.Tensor, change: Callable) -> torch.Tensor:
        """Let row i of y be changed by adapter `rows[i]` alone: `change(name, x_rows, y_rows)` → their new output."""
        if len(self.rows) != x.shape[0]:
            raise MiniloraError(f"{len(self.rows)} adapter names for a batch of {x.shape[0]} rows; give one name for each row")
        for name in dict.fromkeys(self.rows):
            if name == BASE or not self.has(name):
                continue
            index = torch.tensor([i for i, row in enumerate(self.rows) if row == name], device=x.device)
            y = y.index_copy(0, index, change(name, x[index], y[index]).to(y.dtype))
        return y


class LoRALinear(Adapted):
    """A linear layer (nn.Linear, or any with in_features, out_features and `dense_weight()`) with adapters.

    lora_A[name] is (r, in), lora_B[name] is (out, r), scale[name] is α/r or α/√r; magnitude[name] (out,) for DoRA alone.
    A base with a method `lora_forward(x, A, B, scale)` computes base and adapter together in its own way.
    """

    def __init__(self, base: nn.Module):
        super().__init__(base)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.lora_A, self.lora_B, self.magnitude = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        self.scale: dict[str, float] = {}
        self.dropout: dict[str, float] = {}

    def add(self, name: str, rank: int, scale: float, dropout: float = 0.0) -> None:
        """A ~ U(±1/√in), B = 0, in fp32 (fp64 over an fp64 base) on the base's device."""
        like = adapter_place(self.base)
        A = torch.empty(rank, self.in_features, **like)
        self.lora_A[name] = nn.Parameter(nn.init.kaiming_uniform_(A, a=math.sqrt(5)))  # gain √(1/3), so the bound is 1/√in
        self.lora_B[name] = nn.Parameter(torch.zeros(self.out_features, rank, **like))
        self.scale[name], self.dropout[name] = scale, dropout

    def add_magnitude(self, name: str) -> None:
        """Make adapter `name` a DoRA: m = ‖W + s B A‖ as it stands now, so that nothing changes yet."""
        A, B = self.lora_A[name].detach(), self.lora_B[name].detach()
        norms = row_norms(dense_weight(self.base).to(A.dtype), B @ A, self.scale[name])
        self.magnitude[name] = nn.Parameter(norms)

    def has(self, name: str) -> bool:
        return name in self.lora_A

    def tensors(self, name: str) -> dict[str, nn.Parameter]:
        """Adapter `name` under the names that PEFT's files use."""
        if not self.has(name):
            return {}
        named = {"lora_A.weight": self.lora_A[name], "lora_B.weight": self.lora_B[name]}
        return named | ({"lora_magnitude_vector": self.magnitude[name]} if name in self.magnitude else {})

    def adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(adapter's name, parameter) for all of this layer's adapters."""
        for group in (self.lora_A, self.lora_B, self.magnitude):
            yield from group.items()

    def remove(self, name: str) -> None:
        for group in (self.lora_A, self.lora_B, self.magnitude, self.scale, self.dropout):
            if name in group:
                del group[name]
        self.active = [each for each in self.active if each != name]

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        if self.silent:
            return self.base(x)
        if self.rows is not None:
            return self.by_rows(x, self.base(x), self.adapt)
        if len(self.active) == 1 and self.is_simple(self.active[0]):
            name = self.active[0]
            A, B, scale = self.lora_A[name], self.lora_B[name], self.scale[name]
            if hasattr(self.base, "lora_forward"):
                return self.base.lora_forward(x, A, B, scale)
            if can_fuse(self.base, x, A):
                return fused_lora(x, self.base.weight, self.base.bias, A, B, scale)
        y = base_y = self.base(x)
        for name in self.active:
            y = self.adapt(name, x, y)
        return y.to(base_y.dtype)

    def is_simple(self, name: str) -> bool:
        """True where base and detour read the same x and are simply added."""
        return name not in self.magnitude and not (self.training and self.dropout[name])

    def adapt(self, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + ((x Aᵀ) Bᵀ) · s: the whole of LoRA, the plain path that the fused one must equal."""
        A, B, scale = self.lora_A[name], self.lora_B[name], self.scale[name]
        dropped = F.dropout(x.to(A.dtype), self.dropout[name], self.training)  # the base's own x is left whole
        low = F.linear(dropped, A)  # (..., r)
        if name in self.magnitude:
            return y + self.dora(name, dropped, low, y)
        return y + F.linear(low, B) * scale  # (..., out)

    def dora(self, name: str, dropped: torch.Tensor, low: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What DoRA adds to y; under dropout it reads W x from the dropped x too, as PEFT does."""
        A, B, scale = self.lora_A[name], self.lora_B[name], self.scale[name]
        W = dense_weight(self.base).to(A.dtype)
        if self.training and self.dropout[name]:
            base_y = F.linear(dropped, W)
        else:
            base_y = y if self.base.bias is None else y - self.base.bias
        return dora_addition(base_y, low, B, scale, dora_factor(W, A, B, scale, self.magnitude[name]))

    def delta(self, name: str) -> torch.Tensor:
        """(B A) · s: what the adapter adds to W, (out, in)."""
        return (self.lora_B[name] @ self.lora_A[name]) * self.scale[name]

    def merged_base(self, names: list[str], dtype: torch.dtype | None = None) -> nn.Linear:
        """A new nn.Linear that answers like this layer with adapters `names`; the base is left as it is."""
        W = self.merged_weight(names).to(dtype or dense_weight(self.base).dtype)
        bias = self.base.bias
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta").train(self.training)
        linear.weight = nn.Parameter(W, requires_grad=False)
        linear.bias = None if bias is None else nn.Parameter(bias.detach().to(W.dtype), requires_grad=False)
        return linear

    def merged_weight(self, names: list[str]) -> torch.Tensor:
        """W + (B A) · s for each name in turn; with DoRA each row is then scaled to its magnitude."""
        W = dense_weight(self.base)
        total = W
        for name in names:
            total = total + self.delta(name)
            if name in self.magnitude:
                factor = dora_factor(W, self.lora_A[name], self.lora_B[name], self.scale[name], self.magnitude[name])
                total = factor[:, None] * total
        return total


def dense_weight(base: nn.Module) -> torch.Tensor:
    """The base's W (out, in) in numbers: its own `dense_weight()` if it is stored in another form."""
    if hasattr(base, "dense_weight"):
        return base.dense_weight()
    if not base.weight.is_floating_point() or base.weight.shape != (base.out_features, base.in_features):
        raise MiniloraError(f"a {type(base).__name__} keeps its weight packed; load the model in float32 or bfloat16 for this")
    return base.weight.detach()


def adapter_place(base: nn.Module) -> dict:
    """Where and in which type an adapter lives: the base's device, fp32 unless the base is fp64 (as PEFT)."""
    tensor = next(iter([*base.parameters(), *base.buffers()]))
    return {"device": tensor.device, "dtype": torch.float64 if tensor.dtype == torch.float64 else torch.float32}


def expected_shapes(module: nn.Module, rank: int, dora: bool) -> dict[str, tuple[int, ...]]:
    """The tensors that an adapter for `module` has in PEFT's files, and their shapes."""
    if isinstance(module, nn.Embedding):
        columns, rows, keys = module.num_embeddings, module.embedding_dim, ("lora_embedding_A", "lora_embedding_B")
    else:
        columns, rows, keys = module.in_features, module.out_features, ("lora_A.weight", "lora_B.weight")
    shapes = {keys[0]: (rank, columns), keys[1]: (rows, rank)}
    return shapes | ({"lora_magnitude_vector": (rows,)} if dora else {})

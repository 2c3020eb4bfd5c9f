"""LoRA: a frozen linear layer and a low-rank detour beside it that learns.

What it replaces: `peft.tuners.lora.layer.Linear` (the two lines that matter inside its thousand).
How it works (Hu et al. 2021, §4.1): W (out, in) stays as it is. A (r, in) reads r numbers from x, B
(out, r) writes them into the output, s = α/r scales:

    y = x Wᵀ + b + ((x Aᵀ) Bᵀ) · s

Shapes: N rows of a product (all tokens of a batch), r rank, in and out the layer's features, "..."
any leading dimensions, such as (B, T).

A starts random and B at zero, so that at step 0 the layer gives what it gave before. Several
adapters stand in one layer under their names; `active` says which of them speak.
What it leaves out: convolutions, LoRA biases, GPT-2's transposed Conv1D.
Where numerics differ: forward is bit-equal to PEFT's, which is this order: add ((x Aᵀ) Bᵀ) · s to
the base's output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import MiniloraError
from ..quantize.product import Product, product_of
from ..system.hooks import is_watched
from .dora import dora_addition, dora_factor, row_norms
from .fused import can_fuse, fused_lora

BASE = "__base__"  # in a mixed batch: the row that gets no adapter


class Adapted(nn.Module):
    """A module and what may speak beside it: the state that switching, silencing and merging act
    on.
    """

    full = False  # whether what stands beside the base is a whole copy of it, not a low-rank detour
    base: Any  # ours or another library's; what is asked of it is said where it is asked

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.active: list[str] = []
        self.disabled = False
        self.rows: list[str] | None = None  # one adapter's name for each row of the batch
        # while merged: the base as it was, out of sight of parameters()
        self.unmerged: tuple[Any, ...] = ()

    @property
    def merged(self) -> bool:
        return bool(self.unmerged)

    @property
    def original(self) -> Any:
        """The base as it was before any merge."""
        return self.unmerged[0] if self.unmerged else self.base

    @property
    def silent(self) -> bool:
        """True where the base alone answers."""
        return self.disabled or self.merged or (not self.active and self.rows is None)

    @property
    def weight(self) -> torch.Tensor:
        """The original weight, for code that looks into the layer, such as a head tied to the
        embedding.
        """
        return self.original.weight

    def has(self, name: str) -> bool:
        """Whether adapter `name` stands here."""
        raise NotImplementedError

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Adapter `name` under the keys of PEFT's files; empty where it does not stand here."""
        raise NotImplementedError

    def adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(adapter's name, parameter) for all of this layer's adapters."""
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """Delete adapter `name`, if it stands here."""
        raise NotImplementedError

    def merged_base(self, names: list[str], dtype: torch.dtype | None = None) -> nn.Module:
        """A new module that answers like this one with adapters `names`; the base is left as it
        is.
        """
        raise NotImplementedError

    def by_rows(self, x: torch.Tensor, y: torch.Tensor, change: Callable) -> torch.Tensor:
        """Let adapter `rows[i]` alone change row i of y: `change(name, x_rows, y_rows)` -> their
        new output.
        """
        rows = self.rows or []
        if len(rows) != x.shape[0]:
            raise MiniloraError(
                f"{len(rows)} adapter names for a batch of {x.shape[0]} rows; give one "
                "name for each row"
            )
        for name in dict.fromkeys(rows):
            if name != BASE and self.has(name):
                index = torch.tensor(
                    [i for i, row in enumerate(rows) if row == name], device=x.device
                )
                y = y.index_copy(0, index, change(name, x[index], y[index]).to(y.dtype))
        return y


class AdaptedWeight(Adapted):
    """What LoRALinear and LoRAEmbedding share: A (r, in), B (out, r), s and perhaps a magnitude
    (out,) for each name.
    """

    keys = ("lora_A.weight", "lora_B.weight")  # in PEFT's files

    def __init__(self, base: nn.Module):
        super().__init__(base)
        self.lora_magnitude_vector = nn.ParameterDict()
        self.scale: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        # A and B of PiSSA as they began
        self.start: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def A(self) -> nn.ParameterDict:
        raise NotImplementedError

    @property
    def B(self) -> nn.ParameterDict:
        raise NotImplementedError

    def add(self, name: str, rank: int, scale: float, dropout: float = 0.0) -> None:
        """Give the layer a fresh adapter."""
        raise NotImplementedError

    def dense(self) -> torch.Tensor:
        """W (out, in) in floating point."""
        raise NotImplementedError

    def has(self, name: str) -> bool:
        return name in self.A

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        if not self.has(name):
            return {}
        named = {self.keys[0]: self.A[name], self.keys[1]: self.B[name]}
        magnitude = self.lora_magnitude_vector
        return named | ({"lora_magnitude_vector": magnitude[name]} if name in magnitude else {})

    def adapter_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for group in (self.A, self.B, self.lora_magnitude_vector):
            yield from group.items()

    def remove(self, name: str) -> None:
        groups: tuple[Any, ...] = (
            self.A,
            self.B,
            self.lora_magnitude_vector,
            self.scale,
            self.dropout,
            self.start,
        )
        for group in groups:
            if name in group:
                del group[name]
        self.active = [each for each in self.active if each != name]

    def add_magnitude(self, name: str) -> None:
        """Make adapter `name` a DoRA: m = ‖W + s B A‖ as it stands now, so that nothing changes
        yet.
        """
        A, B = self.A[name].detach(), self.B[name].detach()  # (r, in), (out, r)
        self.lora_magnitude_vector[name] = nn.Parameter(
            row_norms(self.dense().to(A.dtype), B @ A, self.scale[name])
        )

    def delta(self, name: str) -> torch.Tensor:
        """(B A) · s: what adapter `name` adds to W, (out, in)."""
        return (self.B[name] @ self.A[name]) * self.scale[name]  # (out, in)

    def merged_weight(self, names: list[str]) -> torch.Tensor:
        """W + (B A) · s for each name in turn; with DoRA each row is then brought to its
        magnitude.
        """
        W = total = self.dense()  # (out, in)
        for name in names:
            total = total + self.delta(name)
            if name in self.lora_magnitude_vector:
                m = self.lora_magnitude_vector[name]  # (out,)
                total = (
                    dora_factor(W, self.A[name], self.B[name], self.scale[name], m)[:, None] * total
                )
        return total


class LoRALinear(AdaptedWeight):
    """A linear layer (nn.Linear, or any with in_features, out_features and `dense_weight()`) with
    adapters.

    lora_A[name] is (r, in), lora_B[name] is (out, r), scale[name] is α/r or α/√r. A base with a
    method `lora_forward(x, A, B, scale)` computes base and adapter together in its own way.
    """

    def __init__(self, base: nn.Module):
        super().__init__(base)
        self.in_features: int = self.base.in_features
        self.out_features: int = self.base.out_features
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()

    @property
    def A(self) -> nn.ParameterDict:
        return self.lora_A

    @property
    def B(self) -> nn.ParameterDict:
        return self.lora_B

    def add(self, name: str, rank: int, scale: float, dropout: float = 0.0) -> None:
        """A ~ U(±1/√in), B = 0, in fp32 (fp64 over an fp64 base) on the base's device. A layer's
        first adapter speaks at once.
        """
        like = adapter_place(self.base)
        A = torch.empty(rank, self.in_features, **like)  # (r, in)
        # gain √⅓: the bound is 1/√in
        self.lora_A[name] = nn.Parameter(nn.init.kaiming_uniform_(A, a=math.sqrt(5)))
        self.lora_B[name] = nn.Parameter(torch.zeros(self.out_features, rank, **like))
        self.scale[name], self.dropout[name] = scale, dropout
        self.active = self.active or [name]

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        if self.silent:
            return self.base(x)
        if self.rows is None and len(self.active) == 1:
            y = self.in_one_step(self.active[0], x)
            if y is not None:
                return y
        y = base_y = self.base(x)  # (..., out)
        if self.rows is not None:
            return self.by_rows(x, y, self.adapt)
        for name in self.active:
            y = self.adapt(name, x, y)
        return y.to(base_y.dtype)

    def in_one_step(self, name: str, x: torch.Tensor) -> torch.Tensor | None:
        """The output by the fused step of fused.py; None where the plain path below has to be
        taken, as for a hook on the base, which a fused step would not call.
        """
        if not self.adds_only(name) or is_watched(self.base):
            return None
        A, B, scale = self.lora_A[name], self.lora_B[name], self.scale[name]
        if hasattr(self.base, "lora_forward"):
            return self.base.lora_forward(x, A, B, scale)
        if can_fuse(self.base, x, A):
            return fused_lora(x, self.base.weight, self.base.bias, A, B, scale)
        return None

    def as_product(self) -> Product | None:
        """What the layer computes, for one token at a time; None for what is more than one added
        detour.
        """
        product = product_of(self.base)
        if self.silent or product is None:
            return product
        if self.rows is not None or len(self.active) > 1 or not self.adds_only(self.active[0]):
            return None
        name = self.active[0]
        A, B = self.lora_A[name].detach(), self.lora_B[name].detach()  # (r, in), (out, r)
        return Product(product.weight, product.bias, A, B, float(self.scale[name]))

    def adds_only(self, name: str) -> bool:
        """True where base and detour read the same x and are simply added: no DoRA, no dropout at
        work.
        """
        return name not in self.lora_magnitude_vector and not (self.training and self.dropout[name])

    def adapt(self, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + ((x Aᵀ) Bᵀ) · s: the whole of LoRA, and the plain path that the fused one must
        equal.
        """
        A, B, scale = self.lora_A[name], self.lora_B[name], self.scale[name]  # (r, in), (out, r)
        x = F.dropout(x.to(A.dtype), self.dropout[name], self.training)  # on the detour alone
        low = F.linear(x, A)  # (..., r)
        if name in self.lora_magnitude_vector:
            return y + self.dora(name, x, low, y)
        return y + F.linear(low, B) * scale  # (..., out)

    def dora(self, name: str, x: torch.Tensor, low: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What DoRA adds to y; under dropout it reads W x from the dropped x too, as PEFT does."""
        A, B, scale, bias = self.lora_A[name], self.lora_B[name], self.scale[name], self.base.bias
        W = self.dense().to(A.dtype)  # (out, in)
        if self.training and self.dropout[name]:
            base_y = F.linear(x, W)  # (..., out)
        else:
            base_y = y if bias is None else y - bias
        return dora_addition(
            base_y, low, B, scale, dora_factor(W, A, B, scale, self.lora_magnitude_vector[name])
        )

    def dense(self) -> torch.Tensor:
        """W (out, in) in floating point, decoded if the base keeps it packed."""
        return dense_weight(self.base)

    def merged_base(self, names: list[str], dtype: torch.dtype | None = None) -> nn.Linear:
        """A new nn.Linear that answers like this layer with adapters `names`; the base is left as
        it is.
        """
        W = self.dense()
        W = self.merged_weight(names).to(dtype or W.dtype)  # (out, in)
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta").train(
            self.training
        )
        linear.weight = nn.Parameter(W, requires_grad=False)
        if self.base.bias is not None:
            linear.bias = nn.Parameter(self.base.bias.detach().to(W.dtype), requires_grad=False)
        return linear


def dense_weight(base: Any) -> torch.Tensor:
    """The base's W (out, in) as numbers: its own `dense_weight()` if it keeps them in another form.

    Raises MiniloraError for a packed weight of another library.
    """
    if hasattr(base, "dense_weight"):
        return base.dense_weight()
    if not base.weight.is_floating_point() or base.weight.shape != (
        base.out_features,
        base.in_features,
    ):
        raise MiniloraError(
            f"a {type(base).__name__} keeps its weight packed; load the model in float32 or "
            "bfloat16 for this"
        )
    return base.weight.detach()


def adapter_place(base: nn.Module) -> dict[str, Any]:
    """Where an adapter lives and in which type: the base's device, fp32 unless the base is fp64 (as
    PEFT has it).
    """
    held = [*base.parameters(), *base.buffers()]
    tensor = held[0] if held else dense_weight(base)
    return {
        "device": tensor.device,
        "dtype": torch.float64 if tensor.dtype == torch.float64 else torch.float32,
    }


def expected_shapes(module: Any, rank: int, dora: bool) -> dict[str, tuple[int, ...]]:
    """The tensors that an adapter for `module` has in PEFT's files, and their shapes."""
    if isinstance(module, nn.Embedding):
        columns, rows, keys = (
            module.num_embeddings,
            module.embedding_dim,
            ("lora_embedding_A", "lora_embedding_B"),
        )
    else:
        columns, rows, keys = module.in_features, module.out_features, AdaptedWeight.keys
    shapes = {keys[0]: (rank, columns), keys[1]: (rows, rank)}
    return shapes | ({"lora_magnitude_vector": (rows,)} if dora else {})

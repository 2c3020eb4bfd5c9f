"""QLoRA: a frozen linear layer in 4 bits, with an adapter on top that trains (Dettmers et al. 2023,
arXiv:2305.14314).

What it replaces: `bitsandbytes.nn.Linear4bit` under PEFT's LoRA layer.
How it works: `quantize_model` puts a `QLinear` in the place of each linear layer. It keeps 4-bit
codes and scales, and decodes the weight W into one shared buffer whenever it is needed. What is
computed with it, the adapter's detour and the backward pass, is the fused step of lora/fused.py,
which takes the layer's `decode` for a weight. So only x and x Aᵀ need to be kept; W is decoded
again going back, which costs far less than the products it takes part in.
Where one token at a time is generated, `as_product` lets W be multiplied as it is packed.
What it leaves out: gradients for W (it is frozen), double backward.
Where numerics differ: the decoded W is right for every shape; bitsandbytes on a CPU is not, and it
loses the input's gradient after an evaluation. The adapter is computed in the input's type, as
under autocast; PEFT takes a bf16 input up to fp32 for it. In 16 bits the detour is added inside the
matrix product, so the last bit may differ from the plain version's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import MiniloraError
from ..lora.fused import frozen_linear, fused_lora
from ..quantize import bnb_format, zero_point
from ..quantize.blockwise import Quantized, quantize
from ..quantize.product import Product
from ..system.precision import autocast_dtype
from ..system.scratch import Scratch
from .replace import replace_linears

# Bytes of a decoded weight that is kept between layers. Smaller blocks the C library reuses by
# itself; larger ones it often returns to the system, and touching their pages anew costs a third of
# decoding.
HELD_FROM, HELD_TO = 1 << 22, 1 << 30

_scratch = Scratch(HELD_TO, lambda size: torch.empty(size, dtype=torch.uint8))


def _buffer(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, name: str = "W"
) -> torch.Tensor:
    """Memory in which a W is decoded: one piece for each thread and name, as large as its largest
    layer, and no longer there than 4-bit layers are.

    Only where the allocator would not reuse it by itself: a GPU's does (and streams may overlap
    there), and so does the C library for what is small.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    if device.type != "cpu" or size < HELD_FROM:
        return torch.empty(shape, dtype=dtype, device=device)
    return _scratch.bytes(name, size).view(dtype).view(shape)


def refuse_zero_point(code, called: str = "code") -> None:
    """Raise MiniloraError for a code with a zero point in each block, which no layer holds."""
    if isinstance(code, str) and code in zero_point.CODES:
        raise MiniloraError(
            f"{called} {code} has a zero point for each block, which a quantized layer does not "
            "hold; choose nf4, fp4, int4 or another code book"
        )


class QLinear(nn.Module):
    """A linear layer whose weight is kept quantized and frozen. Holds `quantized`'s arrays as
    buffers.

    rounds_to: the type that W is rounded to before anything is computed with it, which is what
    bitsandbytes does with the type in which a file says that the weight was (None: to none).
    """

    weight: torch.Tensor  # two codes a byte, ((out · in + 1) // 2, 1) uint8
    absmax: torch.Tensor  # scales, (blocks,), fp32 or 8-bit codes of them
    nested_absmax: torch.Tensor | None  # the scales' scales, fp32

    def __init__(
        self,
        quantized: Quantized,
        bias: torch.Tensor | None = None,
        rounds_to: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.rounds_to = rounds_to
        _scratch.serve(self)
        self.out_features, self.in_features = quantized.shape
        self._hold(quantized)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def _hold(self, quantized: Quantized) -> None:
        self._form = quantized  # everything but the arrays, which live in the buffers
        self.register_buffer("weight", quantized.packed)
        self.register_buffer("absmax", quantized.absmax)
        self.register_buffer(
            "nested_absmax", None if quantized.nested is None else quantized.nested.absmax
        )

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, code="nf4", block: int = 64, double: bool = True
    ) -> QLinear:
        refuse_zero_point(code)
        return cls(quantize(linear.weight.detach(), code, block, double), linear.bias).train(
            linear.training
        )

    @property
    def quantized(self) -> Quantized:
        """The weight as `quantize` returned it, on the device where the layer is now."""
        q = self._form
        if q.packed is not self.weight or q.absmax is not self.absmax:  # moved or loaded since
            nested = q.nested and dataclasses.replace(q.nested, absmax=self.nested_absmax)
            q = self._form = dataclasses.replace(
                q, packed=self.weight, absmax=self.absmax, nested=nested
            )
        return q

    def __setstate__(self, state: dict) -> None:  # of a copy, or from a pickle
        super().__setstate__(state)
        _scratch.serve(self)

    def _apply(self, fn, recurse: bool = True):
        """Follow `.to(device)`; the scales stay fp32 whatever type the model is cast to."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _save_to_state_dict(self, destination, prefix: str, keep_vars: bool) -> None:
        """The keys that transformers and bitsandbytes use for a 4-bit weight."""
        q = dataclasses.replace(self.quantized, dtype=self.rounds_to or self.quantized.dtype)
        destination.update(bnb_format.to_tensors(q, prefix + "weight"))
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ):
        name, device = prefix + "weight", self.weight.device
        if not bnb_format.quantized_names(bnb_format.part_keys(state_dict, name)):
            missing_keys.append(f"{name}.quant_state")
            return
        q = bnb_format.from_tensors(
            {key: state_dict[key].to(device) for key in bnb_format.part_keys(state_dict, name)},
            name,
        )
        if q.shape != self._form.shape:
            error_msgs.append(
                f"{name} has shape {list(q.shape)}, the layer needs {list(self._form.shape)}"
            )
            return
        if self.rounds_to is not None:
            self.rounds_to = cast(torch.dtype, q.dtype)
            q = dataclasses.replace(q, dtype=self._form.dtype)
        self._hold(q)
        if self.bias is not None and prefix + "bias" in state_dict:
            self.bias.data.copy_(state_dict[prefix + "bias"])
        elif self.bias is not None:
            missing_keys.append(prefix + "bias")

    def dense_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The decoded weight as a tensor of its own (out, in), for an exact merge."""
        q = self.quantized
        wanted = dtype or cast(torch.dtype, q.dtype)
        return q.dequantize(self._through(wanted)).to(wanted)

    dequantize = dense_weight

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """The decoded weight in the shared buffer: valid until the next layer decodes."""
        q, through = self.quantized, self._through(dtype)
        W = _buffer(q.shape, dtype, q.packed.device)
        if through == dtype:
            return q.dequantize(out=W)
        narrow = _buffer(q.shape, through, q.packed.device, "W in the type that it is rounded to")
        return W.copy_(q.dequantize(out=narrow))

    def _through(self, dtype: torch.dtype) -> torch.dtype:
        """The type that W takes on its way from fp32 to `dtype`."""
        through = self.rounds_to
        return dtype if through is None or through.itemsize > 2 else through

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return frozen_linear(_autocast(x), self.decode, self.bias)

    def lora_forward(
        self, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """x Wᵀ + bias + scale (x Aᵀ) Bᵀ, with the hand-written backward. x: (..., in), A: (r, in),
        B: (out, r).
        """
        x = _autocast(x)
        return fused_lora(x, self.decode, self.bias, A.to(x.dtype), B.to(x.dtype), float(scale))

    def as_product(self) -> Product | None:
        """What the layer computes, for one token at a time; None where W is rounded on its way."""
        if self._through(torch.float32) != torch.float32:
            return None
        return Product(self.quantized, self.bias)

    def extra_repr(self) -> str:
        q = self.quantized
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, code={q.code}, "
            f"block={q.block}, double={q.nested is not None}"
        )


def lora_forward_plain(
    layer: QLinear, x: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scale: float
) -> torch.Tensor:
    """The three lines that the fused function must equal: autograd keeps W, x and every
    intermediate.
    """
    # (out, in), (r, in), (out, r)
    W, A, B = layer.dense_weight(x.dtype), A.to(x.dtype), B.to(x.dtype)
    y = F.linear(x, W, None if layer.bias is None else layer.bias.to(x.dtype))  # (..., out)
    return y + F.linear(F.linear(x, A), B) * scale


def _autocast(x: torch.Tensor) -> torch.Tensor:
    """x in autocast's type inside its region. A custom function is not on autocast's list, so it
    asks by itself.
    """
    return x.to(autocast_dtype(x.device.type) or x.dtype)


def quantize_model(
    model: nn.Module,
    code="nf4",
    double: bool = True,
    block: int = 64,
    skip: Sequence[str] = (),
) -> nn.Module:
    """Replace the linear layers of `model`, ours or transformers', by frozen `QLinear`s, in place.

    Embeddings, the output head, and names and paths in `skip` stay as they are, and every parameter
    that is left is frozen.
    Raises MiniloraError if there is no linear layer, adapters are on the model already, or for what
    `quantize` refuses; the model is then as it was.
    """
    replace_linears(
        model, lambda linear, path: QLinear.from_linear(linear, code, block, double), skip
    )
    return model.requires_grad_(False)

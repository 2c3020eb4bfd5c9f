"""One token per row through a Llama in one call: `one_token.py` in C++, for weights in fp32 or 4
bits on a processor.

What it replaces: the decoding loop of llama.cpp.
How it works: a token takes two dozen small operations in each layer, and torch's own work for one
of them is longer than the operation. Between two products what Python reads has left the cache, so
it costs a small model a fifth of its time in fp32, and more where the weights are packed.
`one_token.cpp` does a whole token, and multiplies by packed weights as they are
(`quantize/product.h`). The compiler takes a second, so it is called when that much has been waited
for; see `system/cpp.py`, and MINILORA_COMPILE there.
What it leaves out: what `one_token.fits` refuses, 16 bits, more rows than MOST_ROWS (whose products
pay for decoding), int8 layers, and adapters that do more than add: `stepper` then gives the Python
one.
Where numerics differ: sums are added in another order, 1e-6 relative in a hidden vector.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import c_float, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..quantize import product
from ..quantize.product import Matrix, address, product_of
from ..system import cpp
from ..system.precision import autocast_dtype
from .cache import Cache
from .decoder import Decoder, Layer, RMSNorm
from .one_token import Stepper, fits

SOURCE = Path(__file__).with_name("one_token.cpp")

MOST_ROWS = 8

# Seconds that the Python way loses for each layer, and for each number that it decodes
LAYER_COSTS, NUMBER_COSTS = 2e-4, 1.5e-9
BUILDING_COSTS = 2.0

LINEARS = ("query", "key", "value", "out", "gate", "up", "down")


class LayerForm(ctypes.Structure):
    """`Layer` of one_token.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("first_norm", "second_norm", "q_norm", "k_norm")),
        *(
            (name, c_float)
            for name in ("first_epsilon", "second_epsilon", "q_epsilon", "k_epsilon")
        ),
        *((name, Matrix) for name in LINEARS),
        *((name, c_void_p) for name in ("keys", "values")),
    ]


class StepForm(ctypes.Structure):
    """`Step` of one_token.cpp."""

    _fields_ = [
        *((name, c_int64) for name in ("layers", "B", "C", "H", "G", "D", "F")),
        *((name, c_int64) for name in ("capacity", "seen", "threads")),
        *((name, c_void_p) for name in ("start", "cos", "sin")),
    ]


@dataclass
class State:
    """What this process has learned about the compiler."""

    library: ctypes.CDLL | None = None
    tried: bool = False
    waited: float = 0.0  # seconds that were expected to be lost to the Python way, or have been


state = State()

_lock = threading.Lock()


def library(expected: float) -> ctypes.CDLL | None:
    """The compiled step; None before it pays, and where it cannot be had.

    expected: seconds that the caller would save.
    """
    wanted = cpp.wanted()
    if wanted == "never":
        return None
    with _lock:
        state.waited += expected
        if not state.tried and (wanted == "always" or state.waited > BUILDING_COSTS):
            state.tried, state.library = True, cpp.build(SOURCE)
    return state.library


def stepper(decoder: Decoder, cache: Cache, real: Tensor | None, new: int) -> Stepper | None:
    """What takes a token through the decoder: compiled, or in Python, or None where neither fits.

    real: as `Stepper`; new: tokens that are to come at most.
    """
    if not fits(decoder, cache.capacity):
        return None
    forms = layer_forms(decoder)
    start = None if real is None else (real == 0).sum(-1)  # (B,)
    if forms is None or not left_padded(real, start):
        return Stepper(decoder, cache, real)
    found = library(new * forms.lost)
    if found is None:
        return Stepper(decoder, cache, real)
    return CompiledStepper(decoder, cache, real, start, forms, found)


def left_padded(real: Tensor | None, start: Tensor | None) -> bool:
    """Whether all that is not real stands before all that is."""
    if real is None or start is None:
        return True
    return torch.equal(real != 0, torch.arange(real.shape[1]) >= start[:, None])


@dataclass
class Forms:
    """The layers as C++ reads them, the arrays that they point to, and the seconds that a token
    loses in Python.
    """

    layers: Any
    kept: list[Any]
    lost: float


def layer_forms(decoder: Decoder) -> Forms | None:
    """Norms and linear layers of each layer; None where one does not fit."""
    if autocast_dtype("cpu") is not None:
        return None
    try:
        return _layer_forms(decoder)
    except ValueError:
        return None


def _layer_forms(decoder: Decoder) -> Forms:
    """Raises ValueError where one does not fit."""
    layers, lost = (LayerForm * len(decoder.layers))(), 0.0
    kept: list[Any] = []
    for form, layer in zip(layers, decoder.layers):
        assert isinstance(layer, Layer)  # as `fits` has seen
        attention, mlp = layer.self_attn, layer.mlp
        norms = {
            "first": layer.input_layernorm,
            "second": layer.post_attention_layernorm,
            "q": attention.q_norm,
            "k": attention.k_norm,
        }
        for name, norm in norms.items():
            if norm is not None:
                weight = cast(RMSNorm, norm).weight
                setattr(form, f"{name}_norm", address(weight))
                setattr(form, f"{name}_epsilon", norm.eps)
                kept.append(weight)
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        lost += LAYER_COSTS
        for name, module in zip(LINEARS, linears):
            computes = product_of(module)
            made = None if computes is None else product.matrix(computes)
            if computes is None or made is None:
                raise ValueError(f"{name} is not for C++ as it is")
            setattr(form, name, made[0])
            kept += made[1]
            if not isinstance(computes.weight, Tensor):
                lost += NUMBER_COSTS * computes.weight.size
    return Forms(layers, kept, lost)


class CompiledStepper(Stepper):
    """`Stepper`, by the compiled step. start: (B,), the padded tokens of each row, or None."""

    def __init__(
        self,
        decoder: Decoder,
        cache: Cache,
        real: Tensor | None,
        start: Tensor | None,
        forms: Forms,
        library: ctypes.CDLL,
    ) -> None:
        super().__init__(decoder, cache, real)
        self.start, self.forms, self.library = start, forms, library
        self.inner = forms.layers[0].gate.out
        self.writable: bool | None = None  # the cache, not looked at yet

    def __call__(self, token: Tensor) -> Tensor:
        """token (B,) → hidden vectors (B, 1, C)."""
        B, D, cache = token.shape[0], self.head_dim, self.cache
        x = self.embed(token)  # (B, C)
        if B > MOST_ROWS or x.dtype != torch.float32 or not self._sees(B):
            return super().__call__(token)
        cos, sin, _ = self._angles(x.dtype)
        cos, sin = (each.reshape(-1, D).expand(B, D).contiguous() for each in (cos, sin))
        start = torch.zeros(B, dtype=torch.int64) if self.start is None else self.start
        x = x.contiguous()
        step = StepForm(
            layers=len(self.forms.layers),
            B=B,
            C=x.shape[1],
            H=self.heads,
            G=self.groups,
            D=D,
            F=self.inner,
            capacity=cache.capacity,
            seen=cache.length,
            threads=torch.get_num_threads(),
            start=start.data_ptr(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
        )
        self.library.one_token(self.forms.layers, ctypes.byref(step), ctypes.c_void_p(x.data_ptr()))
        cache.length += 1
        return self.norm(x[:, None])

    def _sees(self, B: int) -> bool:
        """Whether the cache holds what C++ can write to, for one more token of B rows; tells the
        layers where, once.
        """
        if self.cache.length >= self.cache.capacity:
            return False  # `extend` says so
        if self.writable is None:
            pairs = [self.cache.layers[index] for index in range(len(self.forms.layers))]
            self.writable = all(
                each.dtype == torch.float32 and each.is_contiguous() and len(each) == B
                for pair in pairs
                for each in pair
            )
            for form, (keys, values) in zip(self.forms.layers, pairs):
                form.keys, form.values = keys.data_ptr(), values.data_ptr()
        return self.writable

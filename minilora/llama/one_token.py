"""One token per row through a Llama, quickly: the inner loop of generation.

What it replaces: the general forward, which costs a small model more in Python and in tiny
operations than in products.
How it works: with one position the heads lie side by side in memory, so queries and keys turn in
one go, and the query heads of a group, which see the same keys, pose as positions of one head.
Modules are looked up once, a plain linear layer becomes a bare call, and the norm uses ‖x‖² + Cε in
place of the mean: x·√C·w / √(‖x‖² + Cε).
`compiled_token.py` has the same in C++, for what fits.
What it leaves out: replaced layers other than the linear ones, hooks, and a window that is shorter
than the text; then the general forward is used.
Where numerics differ: rounding of the norm, 1e-7 relative in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache
from .decoder import MLP, Attention, Decoder, Layer, RMSNorm
from .rope import rotate


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def fits(decoder: Decoder, length: int) -> bool:
    """Whether every part is this package's own, nobody listens in by a hook, and no window is
    shorter than the `length` tokens that the text will have at most.
    """
    if any(window and window < length for window in decoder.windows):
        return False
    if any(_hooked(module) for module in decoder.modules()):
        return False
    norms: list[nn.Module | None] = [decoder.norm]
    for layer in decoder.layers:
        if type(layer) is not Layer:
            return False
        if type(layer.self_attn) is not Attention or type(layer.mlp) is not MLP:
            return False
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        norms += [layer.self_attn.q_norm, layer.self_attn.k_norm]
    return all(norm is None or type(norm) is RMSNorm for norm in norms)


def _linear(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A plain nn.Linear as a bare call; anything else (an adapter, a 4-bit layer) as it is."""
    if type(module) is nn.Linear:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    return module


def _normalize(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return (
        x
        * torch.linalg.vector_norm(x, dim=-1, keepdim=True).square().add_(epsilon).rsqrt_()
        * weight
    )


def _norm(module: RMSNorm) -> Callable[[Tensor], Tensor]:
    if module.weight.dtype != torch.float32:
        return module
    size = module.weight.numel()
    return partial(
        _normalize, weight=module.weight.detach() * math.sqrt(size), epsilon=size * module.eps
    )


class Stepper:
    """`Decoder.forward` for one new token per row; the cache has seen the prompt already.

    real: (B, capacity) of 1 and 0, where a prompt was padded on the left, else None.
    """

    def __init__(self, decoder: Decoder, cache: Cache, real: Tensor | None = None) -> None:
        self.embed, self.rotary, self.norm = (
            decoder.embed_tokens,
            decoder.rotary,
            _norm(decoder.norm),
        )
        self.cache = cache
        self.mask = None if real is None else real.bool()[:, None, None, :]  # (B, 1, 1, capacity)
        self.positions = None if real is None else real.cumsum(-1) - 1  # (B, capacity)
        self.layers: list[tuple[Callable[[Tensor], Tensor], ...]] = []
        self.normed: list[tuple[Callable[[Tensor], Tensor], ...] | None] = []  # of q and k
        for layer in decoder.layers:
            assert isinstance(layer, Layer)  # as `fits` has seen
            attention, mlp = layer.self_attn, layer.mlp
            linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
            linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
            norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
            self.layers.append((*norms, *map(_linear, linears)))
            own = [norm for norm in (attention.q_norm, attention.k_norm) if norm is not None]
            self.normed.append(tuple(_norm(cast(RMSNorm, norm)) for norm in own) or None)
        self.heads, self.groups, self.head_dim = (
            attention.heads,
            attention.groups,
            attention.head_dim,
        )

    def _angles(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """cos and sin of the new position, (1, D) or (B, 1, 1, D), and the mask, (B, 1, 1, S)."""
        seen, mask = self.cache.length, None
        if self.mask is None or self.positions is None:
            cos, sin = self.rotary(seen, seen + 1)
        else:
            cos, sin = self.rotary(0, seen + 1)
            positions = self.positions[:, seen]
            cos, sin = cos[positions][:, None, None], sin[positions][:, None, None]
            mask = self.mask[..., : seen + 1]
        return cos.to(dtype), sin.to(dtype), mask

    def __call__(self, token: Tensor) -> Tensor:
        """token (B,) → hidden vectors (B, 1, C)."""
        B, H, G, D = token.shape[0], self.heads, self.groups, self.head_dim
        x = self.embed(token[:, None])  # (B, 1, C)
        cos, sin, mask = self._angles(x.dtype)
        for index, (first_norm, second_norm, query, key, value, out, gate, up, down) in enumerate(
            self.layers
        ):
            h = first_norm(x)
            q, k, normed = query(h), key(h), self.normed[index]  # (B, 1, H·D), (B, 1, G·D)
            if normed is not None:
                q = normed[0](q.view(B, 1, H, D)).view(B, 1, H * D)
                k = normed[1](k.view(B, 1, G, D)).view(B, 1, G * D)
            # (B, H + G, 1, D)
            turned = rotate(torch.cat((q, k), dim=-1).view(B, H + G, 1, D), cos, sin)
            # (B, G, S, D)
            k, v = self.cache.extend(index, turned.narrow(1, H, G), value(h).view(B, G, 1, D))
            q = turned.narrow(1, 0, H).view(B, G, H // G, D)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, G, H/G, D)
            x = x + out(y.reshape(B, 1, H * D))
            h = second_norm(x)
            x = x + down(F.silu(gate(h)) * up(h))  # (B, 1, C)
        self.cache.length += 1
        return self.norm(x)

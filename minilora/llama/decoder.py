"""The Llama transformer, from scratch, in plain PyTorch.

What it replaces: transformers' `LlamaForCausalLM` (Llama 2 and 3, TinyLlama, SmolLM2), and the
families that differ from it in a detail: Mistral (a window), Qwen2 (biases), Qwen3 (norms on
queries and keys). Parameter names are Hugging Face's, so a state dict, a LoRA target or an adapter
file fits both.
How it works: token vectors run through N equal layers. Each adds attention (rotary positions,
grouped key/value heads, causal) and then a gated MLP to the running vector, each behind an RMSNorm;
a last norm and a linear head give the logits. `rope.py` turns by positions, `checkpoint.py` reads
and writes folders, `generate.py` generates.
Shapes, in all rooms: B rows of the batch, T tokens, S tokens seen (keys), C channels (hidden size),
H heads, G groups (key/value heads), D head dimension, F feed-forward width, V vocabulary, N rows of
a product (B·T), r rank. A weight is (out, in).
What it leaves out: attention dropout, tensor parallelism.
Where numerics differ: in fp32 nothing beyond the order of additions inside the library's own fused
kernels (within 1e-5 of transformers' logits). Rope tables stay in fp32 when the model is cast, as
the tables of a freshly loaded transformers model do. Outputs at padded positions are finite but
mean nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from .cache import Cache
from .config import Config
from .fused_ops import gated, rms_norm
from .rope import RotaryTable, rotate


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · weight, the mean taken in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:  # (..., C) -> (..., C)
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention; each key/value head serves a group of query heads."""

    # pretraining puts another way to the same result here
    attend = staticmethod(F.scaled_dot_product_attention)

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.index = index
        self.heads, self.groups, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        query, key = self.heads * self.head_dim, self.groups * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=config.attention_bias)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        B, T, _ = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, H·D), (B, T, G·D) twice
        q = q.view(B, T, self.heads, self.head_dim)
        k = k.view(B, T, self.groups, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:  # each head by itself
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q.transpose(1, 2), cos, sin)  # (B, H, T, D)
        k = rotate(k.transpose(1, 2), cos, sin)  # (B, G, T, D)
        v = v.view(B, T, self.groups, self.head_dim).transpose(1, 2)  # (B, G, T, D)
        if cache is not None:
            k, v = cache.extend(self.index, k, v)  # (B, G, S, D)
        grouped = self.heads != self.groups
        # (B, H, T, D)
        y = self.attend(
            q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=grouped
        )
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(
            config.hidden_size, config.intermediate_size, bias=config.mlp_bias
        )
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(
            config.intermediate_size, config.hidden_size, bias=config.mlp_bias
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C), by way of (B, T, F)
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))


class Layer(nn.Module):
    """One block: attention and MLP, each added to the running vector."""

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, index)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)  # (B, T, C)
        return x + self.mlp(self.post_attention_layernorm(x))  # (B, T, C)


def visible_keys(attention_mask: Tensor, length: int, window: int | None = None) -> Tensor:
    """Which keys the last `length` queries may see, (B, 1, T, S) bool: real ones, not later, not
    `window` or more before, and always itself (so that no padded query is left without a key, which
    would give NaN).
    """
    S = attention_mask.shape[1]
    order = torch.arange(S, device=attention_mask.device)  # (S,)
    query = order[S - length :, None]  # (T, 1)
    real = attention_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
    near = order <= query  # (T, S)
    if window is not None:
        near = near & (order > query - window)
    return (real & near) | (order == query)  # (B, 1, T, S)


class Decoder(nn.Module):
    """Embedding, layers and last norm: token ids (B, T) → hidden vectors (B, T, C)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryTable(config)
        self.windows = [config.window(index) for index in range(config.num_hidden_layers)]
        self.gradient_checkpointing = False

    def _window_masks(self, ids: Tensor, real: Tensor | None, S: int) -> dict[int | None, Tensor]:
        """The mask of each window that leaves something of S tokens out, (B or 1, 1, T, S)."""
        short = {window for window in self.windows if window is not None and window < S}
        if not short:
            return {}
        real = ids.new_ones(1, S) if real is None else real
        return {window: visible_keys(real, ids.shape[1], window) for window in short}

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        T, seen = ids.shape[1], 0 if cache is None else cache.length
        x = self.embed_tokens(ids)  # (B, T, C)
        cos, sin = (
            self.rotary(seen, seen + T) if attention_mask is None else self.rotary(0, seen + T)
        )
        mask = None
        if attention_mask is not None:
            mask = visible_keys(attention_mask, T)  # (B, 1, T, S)
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]  # (B, T)
            cos, sin = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)  # (B, 1, T, D)
        elif seen and T > 1:
            mask = visible_keys(ids.new_ones(1, seen + T), T)  # (1, 1, T, S)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # (T, D) or (B, 1, T, D)
        near = self._window_masks(ids, attention_mask, seen + T)
        for layer, window in zip(self.layers, self.windows):
            seeing = near.get(window, mask)
            if self.gradient_checkpointing and cache is None and torch.is_grad_enabled():
                x = recompute(layer, x, cos, sin, seeing, None, use_reentrant=False)
            else:
                x = layer(x, cos, sin, seeing, cache)
        if cache is not None:
            cache.length = seen + T
        return self.norm(x)  # (B, T, C)

"""The Llama transformer, from scratch, in plain PyTorch.

What it replaces: transformers' `LlamaForCausalLM` (Llama 2 and 3, TinyLlama, SmolLM2). Parameter
names are Hugging Face's, so a state dict, a LoRA target or an adapter file fits both.
How it works: token vectors run through N equal layers. Each adds attention (rotary positions,
grouped key/value heads, causal) and then a gated MLP to the running vector, each behind an RMSNorm;
a last norm and a linear head give the logits. `checkpoint.py` reads and writes folders,
`sampling.py` generates.
What it leaves out: attention dropout, tensor parallelism, and the rope types `dynamic`, `yarn` and
`longrope`.
Where numerics differ: in fp32 nothing beyond the order of additions inside the library's own fused
kernels (within 1e-5 of transformers' logits). Rope tables stay in fp32 when the model is cast, as
the tables of a freshly loaded transformers model do. Outputs at padded positions are finite but
mean nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from .errors import MiniloraError
from .lean import gated, rms_norm, turned

ROPE_TYPES = {  # and the numbers each needs
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_ROWS = 4096  # positions tabled at first; longer inputs grow the table


@dataclass
class Config:
    """The shape of a Llama, under Hugging Face's field names. Raises MiniloraError on a shape that
    cannot be.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = None
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MiniloraError(
                    f"config: {name} is {value!r}; it must be a whole number of at least 1"
                )
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if not isinstance(self.head_dim, int) or self.head_dim < 2 or self.head_dim % 2:
            raise MiniloraError(
                f"config: head_dim is {self.head_dim!r}; rotary positions turn pairs, so it "
                "must be even"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise MiniloraError(
                f"config: num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}; each key/value head serves "
                "an equal group of heads"
            )
        self._check_rope()

    def _check_rope(self) -> None:
        """Raise MiniloraError on a rope type that is unknown or lacks a number."""
        scaling = self.rope_scaling or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ROPE_TYPES:
            raise MiniloraError(
                f"config: rope type {kind!r} is not supported; known are {', '.join(ROPE_TYPES)}"
            )
        for name in ROPE_TYPES[kind]:
            if not isinstance(scaling.get(name), (int, float)) or scaling[name] <= 0:
                raise MiniloraError(
                    f"config: rope type {kind!r} needs {name} as a number above 0, not "
                    f"{scaling.get(name)!r}"
                )

    @classmethod
    def from_hf(cls, fields: dict[str, Any]) -> Config:
        """Read config.json's contents, in the layout of transformers 4 (rope_theta, rope_scaling)
        or 5 (rope_parameters).

        Raises MiniloraError where the file describes something other than a plain Llama.
        """
        from .checkpoint import config_from_hf

        return config_from_hf(cls, fields)

    def to_hf(self) -> dict[str, Any]:
        """Contents for config.json, in the layout that transformers 4 and 5 both read."""
        from .checkpoint import config_to_hf

        return config_to_hf(self)


def rope_frequencies(config: Config) -> Tensor:
    """Angle per position of each pair of dimensions, (head_dim/2,): θ^(-2i/d), scaled for long
    contexts if asked.

    `llama3` leaves fast pairs alone, slows slow ones by `factor` and blends between (Llama 3.1's
    scheme).
    """
    dim = config.head_dim
    # (D/2,)
    inverse = 1.0 / (config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        inverse = inverse / scaling["factor"]
    elif kind == "llama3":
        factor, low, high = (
            scaling["factor"],
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
        )
        old_length = scaling["original_max_position_embeddings"]
        wavelength = 2 * math.pi / inverse
        slow = torch.where(wavelength > old_length / low, inverse / factor, inverse)
        blend = (old_length / wavelength - low) / (high - low)
        middle = (wavelength <= old_length / low) & (wavelength >= old_length / high)
        inverse = torch.where(middle, (1 - blend) * slow / factor + blend * slow, slow)
    return inverse


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (a, b) = (x[i], x[i + D/2]) by its position's angle: (a·cos − b·sin, b·cos +
    a·sin).

    x (B, H, T, D); cos and sin broadcast to it, and the first half of sin carries the minus.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return turned(x, cos, sin)  # the same numbers, quicker backward
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin  # the roll swaps a and b


class RotaryTable(nn.Module):
    """Tables of cos and (−sin, sin), a row per position; kept in fp32 whatever the model is cast
    to, and never saved.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.build(min(config.max_position_embeddings, ROPE_ROWS))

    def build(self, rows: int, device: torch.device | str | None = None) -> None:
        """Fill the tables for positions 0 … rows-1."""
        inverse = rope_frequencies(self.config).to(device)
        angles = torch.arange(rows, device=inverse.device).float()[:, None] * inverse  # (rows, D/2)
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", torch.cat((cos, cos), dim=-1), persistent=False)  # (rows, D)
        self.register_buffer("sin", torch.cat((-sin, sin), dim=-1), persistent=False)  # (rows, D)

    # called by .to(), .half(), .cuda() …: follow the device, not the dtype
    def _apply(self, fn, recurse=True):
        device = fn(self.cos).device
        if device != self.cos.device:
            self.build(self.cos.shape[0], device)
        return self

    def forward(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """cos and sin for positions start … stop-1, (T, D) each."""
        if stop > self.cos.shape[0]:
            self.build(max(stop, 2 * self.cos.shape[0]), self.cos.device)
        return self.cos[start:stop], self.sin[start:stop]


class Cache:
    """Keys and values of the tokens seen so far, (B, G, S, D) per layer, in memory set aside once
    for `capacity`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # tokens seen
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values (B, G, T, D) behind the old ones, in place; returns views on
        all so far.

        Raises MiniloraError when the memory set aside is full.
        """
        if layer not in self.layers:
            B, G, _, D = k.shape
            self.layers[layer] = (
                k.new_empty(B, G, self.capacity, D),
                v.new_empty(B, G, self.capacity, D),
            )
        keys, values = self.layers[layer]
        start, stop = self.length, self.length + k.shape[2]
        if stop > self.capacity:
            raise MiniloraError(
                f"the cache holds {self.capacity} tokens and {stop} are needed; make it with "
                f"Cache({stop})"
            )
        keys.narrow(2, start, stop - start).copy_(k)
        values.narrow(2, start, stop - start).copy_(v)
        return keys.narrow(2, 0, stop), values.narrow(2, 0, stop)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · weight, the mean taken in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
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
        self.q_proj = nn.Linear(config.hidden_size, query, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=config.attention_bias)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=config.attention_bias)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        B, T, _ = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (B, T, H·D), (B, T, G·D) twice
        # (B, H, T, D)
        q = rotate(q.view(B, T, self.heads, self.head_dim).transpose(1, 2), cos, sin)
        # (B, G, T, D)
        k = rotate(k.view(B, T, self.groups, self.head_dim).transpose(1, 2), cos, sin)
        v = v.view(B, T, self.groups, self.head_dim).transpose(1, 2)  # (B, G, T, D)
        if cache is not None:
            k, v = cache.extend(self.index, k, v)  # (B, G, S, D)
        grouped = self.heads != self.groups
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

    def forward(self, x: Tensor) -> Tensor:
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
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def attention_bias(attention_mask: Tensor, length: int) -> Tensor:
    """Which keys the last `length` queries may see, (B, 1, T, S) bool: real ones, not later, and
    always itself (so that no padded query is left without a key, which would give NaN).
    """
    S = attention_mask.shape[1]
    order = torch.arange(S, device=attention_mask.device)
    query = order[S - length :, None]  # (T, 1)
    real = attention_mask.bool()[:, None, None, :]  # (B, 1, 1, S)
    return (real & (order <= query)) | (order == query)


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
        self.gradient_checkpointing = False

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
            mask = attention_bias(attention_mask, T)  # (B, 1, T, S)
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]  # (B, T)
            cos, sin = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)  # (B, 1, T, D)
        elif seen and T > 1:
            mask = attention_bias(ids.new_ones(1, seen + T), T)
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for layer in self.layers:
            if self.gradient_checkpointing and cache is None and torch.is_grad_enabled():
                x = recompute(layer, x, cos, sin, mask, None, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask, cache)
        if cache is not None:
            cache.length = seen + T
        return self.norm(x)


class Llama(nn.Module):
    """A causal language model: `model(ids)` gives the logits of each next token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def gradient_checkpointing(self) -> bool:
        """True: keep only each layer's input for backward and compute the layer again there."""
        return self.model.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.model.gradient_checkpointing = bool(on)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden vectors (..., C) → logits (..., V); a tied head is the embedding table itself."""
        if self.lm_head is None:
            return F.linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)

    def forward(
        self, ids: Tensor, attention_mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Logits (B, T, V) for ids (B, T).

        attention_mask: (B, T) of 1 and 0, or (B, seen + T) with a cache, for padded rows; positions
        count its ones. Right-padded rows need none: the causal order already hides what comes
        later.
        """
        return self.head(self.model(ids, attention_mask, cache))

    def generate(
        self, ids: Tensor, max_new_tokens: int, temperature: float = 0.0, **options: Any
    ) -> Tensor:
        """Continue each row of ids (B, T) → (B, T + new); greedy at temperature 0. Options as
        `sampling.generate`: top_k, top_p, attention_mask (left padding), stop, seed, on_token.
        """
        from .sampling import generate

        return generate(self, ids, max_new_tokens, temperature, **options)

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> Llama:
        """Read a Hugging Face folder; raises MiniloraError naming file, key and remedy (see
        `checkpoint.load`).
        """
        from .checkpoint import load

        return load(path, dtype, device)

    def save_pretrained(self, path: str | PathLike, max_shard_bytes: int = 5 * 10**9) -> None:
        """Write config.json and safetensors, all or nothing (see `checkpoint.save`)."""
        from .checkpoint import save

        save(self, path, max_shard_bytes)

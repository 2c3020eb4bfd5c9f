"""The Llama: a decoder with its head, loaded from and saved to a Hugging Face folder."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..system.gguf_reader import is_gguf
from . import generation_config, gguf
from .cache import Cache
from .checkpoint import load, save
from .config import Config
from .decoder import Decoder
from .generate import generate


class Llama(nn.Module):
    """A causal language model: `model(ids)` gives the logits of each next token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.generation: dict[str, Any] = {}  # the fields of generation_config.json
        self.model = Decoder(config)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
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
        `generate.generate`: top_k, top_p, attention_mask (left padding), stop, seed, on_token.
        """
        return generate(self, ids, max_new_tokens, temperature, **options)

    @classmethod
    def from_pretrained(
        cls, path: str | PathLike, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> Llama:
        """Read a Hugging Face folder, or a GGUF (see `gguf.load`); raises MiniloraError naming
        file, key and remedy (see `checkpoint.load`). The ends that generation_config.json names
        join those of `config`.
        """
        if is_gguf(path):
            return gguf.load(cls, path, dtype, device)
        model = load(cls, path, dtype, device)
        model.generation = generation_config.read(path, model.config)
        return model

    def save_pretrained(self, path: str | PathLike, max_shard_bytes: int = 5 * 10**9) -> None:
        """Write config.json and safetensors, all or nothing (see `checkpoint.save`), and
        generation_config.json where one was read.
        """
        save(self, path, max_shard_bytes)

"""The face that lets our scoring and chat ask a transformers model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..text.ends import model_ends
from .loading import libraries


def answering(model: nn.Module) -> nn.Module:
    """`model` of transformers or peft with the `generate` of our Llama, for `scoring.exact_match`
    and for a chat.
    """
    return Answering(model).train(model.training)


class Answering(nn.Module):
    """Holds the model and speaks for it."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.generation_config = getattr(inner, "generation_config", None)

    def forward(self, ids, attention_mask=None):
        return self.inner(ids, attention_mask=attention_mask).logits  # (B, T, V)

    @torch.no_grad()
    def generate(
        self,
        ids,
        max_new_tokens,
        temperature=0.0,
        *,
        top_k=None,
        top_p=None,
        attention_mask=None,
        stop=None,
        seed=None,
        on_token=None,
    ):
        """ids (B, T) → (B, T + new), as `llama.generate`; rows that have stopped go on with the
        stop token.
        """
        given = model_ends(self.inner) if stop is None else stop
        stops = [given] if isinstance(given, int) else list(given)
        devices = [ids.device] if ids.device.type == "cuda" else []
        with libraries(), torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            return self.inner.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids) if attention_mask is None else attention_mask,
                max_new_tokens=max_new_tokens,
                eos_token_id=stops or None,
                pad_token_id=stops[0] if stops else 0,
                use_cache=True,
                streamer=Listener(on_token) if on_token else None,
                **_drawing(temperature, top_k, top_p),
            )


class Listener:
    """transformers' streamer: hands on one step's tokens, the prompt left out."""

    def __init__(self, on_token: Callable):
        self.on_token, self.prompt_passed = on_token, False

    def put(self, tokens: torch.Tensor) -> None:
        if self.prompt_passed:
            self.on_token(tokens.reshape(-1).tolist())
        self.prompt_passed = True

    def end(self) -> None:
        pass


def _drawing(temperature: float, top_k: int | None, top_p: float | None) -> dict:
    """How a token is chosen, in transformers' words."""
    if not temperature:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": temperature,
        "top_k": top_k or 0,
        "top_p": top_p or 1.0,
    }

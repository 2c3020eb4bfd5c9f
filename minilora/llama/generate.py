"""Choosing the next token, and the loop that writes a text token by token.

What it replaces: transformers' `generate` and its logits warpers, for greedy search and sampling.
How it works: the prompt runs through the model once and leaves its keys and values in a cache; from
then on each step feeds the one new token. The last logits are divided by the temperature, cut to
the `top_k` largest, then to the smallest set whose probabilities sum to `top_p`, and one token is
drawn.
What it leaves out: beam search, repetition penalties, assisted decoding.
Where numerics differ: in fp32 nowhere that was found; under one torch seed the very tokens of
transformers' sampling come out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import MiniloraError
from ..system.ranges import number
from .cache import Cache
from .compiled_token import stepper
from .config import Config
from .decoder import Decoder

# below, the quotient of a logit is soon infinite; the command line asks for .001 at least
TEMPERATURE = number(1e-6, 1e6, zero=True)


class Speaker(Protocol):
    """What generation asks of a model."""

    config: Config
    model: Decoder

    @property
    def device(self) -> torch.device: ...

    def head(self, hidden: Tensor) -> Tensor: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> Any: ...


def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits (B, V) with everything that may not be drawn set to -inf. Order: temperature, top_k,
    top_p.

    top_k keeps ties with the k-th. top_p keeps the token that crosses p, and always at least one
    (Holtzman et al., 2020, "The Curious Case of Neural Text Degeneration").
    """
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ascending, order = logits.sort(descending=False)  # (B, V)
        # the small ones that together make up at most 1 - p
        tail = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        tail[:, -1] = False
        logits = logits.masked_fill(tail.scatter(1, order, tail), -torch.inf)
    return logits


def next_token(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:
    """One token per row, (B,), from logits (B, V): the largest at temperature 0, else drawn."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = filter_logits(logits.float(), temperature, top_k, top_p).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _check(model: Speaker, ids: Tensor, attention_mask: Tensor | None) -> None:
    if ids.dim() != 2 or 0 in ids.shape or ids.is_floating_point():
        raise MiniloraError(
            f"generate: ids are {tuple(ids.shape)} {ids.dtype}; they must be (batch, length) "
            "whole numbers with at "
            "least one row and one token, for example torch.tensor([[1]])"
        )
    low, high, vocabulary = int(ids.min()), int(ids.max()), model.config.vocab_size
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        raise MiniloraError(
            f"generate: token id {wrong} is outside the model's 0 … {vocabulary - 1}; use its "
            "own tokenizer"
        )
    if attention_mask is None:
        return
    if attention_mask.shape != ids.shape:
        raise MiniloraError(
            f"generate: attention_mask is {tuple(attention_mask.shape)} and ids are "
            f"{tuple(ids.shape)}; they must be alike"
        )
    if not bool(attention_mask[:, -1].all()):
        raise MiniloraError(
            "generate: attention_mask ends with 0 in some row; pad prompts on the left"
        )


def _check_numbers(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if (
        isinstance(max_new_tokens, bool)
        or not isinstance(max_new_tokens, int)
        or max_new_tokens < 0
    ):
        raise MiniloraError(
            f"generate: max_new_tokens is {max_new_tokens!r}; it must be a whole number, 0 or more"
        )
    TEMPERATURE.require(temperature, "generate: temperature")
    if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
        raise MiniloraError(
            f"generate: top_k is {top_k!r}; it must be a whole number of at least 1, or None "
            "for all"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise MiniloraError(
            f"generate: top_p is {top_p!r}; it must be above 0 and at most 1, or None for all"
        )


def stop_ids(model: Any, stop: int | Iterable[int] | None) -> list[int]:
    """The ids that end a text: `stop`, or where it is None the model's own eos; an empty list never
    stops.
    """
    if stop is None:
        stop = model.config.eos_token_id
    if stop is None:
        return []
    return [stop] if isinstance(stop, int) else list(stop)


def _pad_id(config: Config, stops: list[int]) -> int:
    """What fills a row that has ended: the model's pad id, else the first stop that is an id."""
    given = [*stops, 0] if config.pad_token_id is None else [config.pad_token_id]
    return next(each for each in (*given, 0) if 0 <= each < config.vocab_size)


@contextlib.contextmanager
def evaluating(model: Speaker) -> Iterator[None]:
    """Dropout off inside the block; every module's mode is put back as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _forwards(
    model: Speaker, capacity: int, mask: Tensor | None, new: int
) -> Callable[[Tensor], Tensor]:
    """A function from all ids so far to the hidden vectors of those it has not seen yet.

    capacity: tokens of the longest text; new: those of them that are to be made.
    """
    cache, decoder = Cache(capacity), model.model
    step = stepper(decoder, cache, mask, new)

    def forward(ids: Tensor) -> Tensor:
        if cache.length and step is not None:
            return step(ids[:, -1])
        return decoder(
            ids[:, cache.length :], None if mask is None else mask[:, : ids.shape[1]], cache
        )

    return forward


@torch.no_grad()
def generate(
    model: Speaker,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    attention_mask: Tensor | None = None,
    stop: int | Iterable[int] | None = None,
    seed: int | None = None,
    on_token: Callable[[list[int]], object] | None = None,
) -> Tensor:
    """Continue each row of ids (B, T) by up to max_new_tokens → (B, T + new).

    attention_mask: (B, T), 0 where a row is padded on the left. stop: id or ids that end a row
    (None: the model's eos; an empty list: none); a row that has ended is filled with the pad id.
    seed: draws from a generator of its own; None: from torch's. on_token: called after each step
    with the new token of each row. Raises MiniloraError on values that make no sense.
    """
    _check_numbers(max_new_tokens, temperature, top_k, top_p)
    ids = ids.to(model.device)
    _check(model, ids, attention_mask)
    generator = None if seed is None else torch.Generator(ids.device).manual_seed(seed)
    stops = stop_ids(model, stop)
    ends = torch.tensor(stops, device=ids.device)
    pad = _pad_id(model.config, stops)
    B, T = ids.shape
    out = torch.full((B, T + max_new_tokens), pad, dtype=torch.long, device=ids.device)
    out[:, :T] = ids
    mask = None
    if attention_mask is not None and not bool(attention_mask.all()):
        mask = torch.ones_like(out)
        mask[:, :T] = attention_mask
    running = torch.ones(B, dtype=torch.bool, device=ids.device)
    with evaluating(model):
        forward = _forwards(model, T + max_new_tokens, mask, max_new_tokens)
        for length in range(T, T + max_new_tokens):
            hidden = forward(out[:, :length])  # (B, T, C) at first, then (B, 1, C)
            # (B,)
            token = next_token(model.head(hidden[:, -1]), temperature, top_k, top_p, generator)
            if stops:
                token = torch.where(running, token, pad)
                running &= ~torch.isin(token, ends)
            out[:, length] = token
            if on_token is not None:
                on_token(token.tolist())
            if stops and not bool(running.any()):
                return out[:, : length + 1]
    return out

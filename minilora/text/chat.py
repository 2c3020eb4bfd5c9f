"""A chat with a model: the history that still fits, the answer as it grows, and a stop that is
heard.

What it replaces: `transformers chat` and `TextIteratorStreamer`.
How it works: `reply` continues a row of ids and hands on every piece of text as soon as its bytes
are complete; before each token it asks whether to stop. A `Conversation` keeps the turns, puts them
into the model's format (text.encode_prompt), and lets the oldest question and answer go where they
no longer fit the model's positions. The model is our Llama, or another behind `hub.answering`.
What it leaves out: tools, several conversations in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import MiniloraError
from .ends import answer_ends

if TYPE_CHECKING:
    from torch import nn

    from .tokenizer import Tokenizer


class Stream:
    """Calls `show` with each new piece of an answer; holds back a character whose bytes are not all
    there yet.
    """

    def __init__(self, tokenizer: Tokenizer, stops: list[int], show: Callable[[str], object]):
        self.tokenizer, self.stops, self.show = tokenizer, stops, show
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, tokens: list[int]) -> None:
        if tokens[0] in self.stops:
            return
        self.ids.append(tokens[0])
        text = self.tokenizer.decode(self.ids)
        if not text.endswith("\ufffd"):
            self._more(text)

    def _more(self, text: str) -> None:
        self.show(text[len(self.shown) :])
        self.shown = text

    def finish(self) -> str:
        """Show what was held back; returns the whole answer."""
        text = self.tokenizer.decode(self.ids)
        if text != self.shown:
            self._more(text)
        return self.shown


class _Stopped(Exception):
    """Ends `generate` from inside: nobody wants the next token."""


def reply(
    model: nn.Module,
    tokenizer: Tokenizer,
    ids: list[int],
    max_new: int,
    *,
    show: Callable[[str], object] = lambda piece: None,
    stop: Callable[[], bool] = lambda: False,
    **sampling,
) -> str:
    """The continuation of `ids`, at most `max_new` tokens; `sampling` is temperature, top_k, top_p
    and seed of `generate`.

    Raises MiniloraError where the ids leave no room for an answer.
    """
    import torch

    limit = model.config.max_position_embeddings
    if len(ids) + 1 > limit:
        raise MiniloraError(
            f"the prompt has {len(ids)} tokens, the model has room for {limit - 1}; shorten it"
        )
    stops = answer_ends(model, tokenizer)
    stream = Stream(tokenizer, stops, show)

    def on_token(tokens: list[int]) -> None:
        stream(tokens)
        if stop():
            raise _Stopped

    device = next(model.parameters()).device
    try:
        model.generate(
            torch.tensor([ids], device=device),
            min(max_new, limit - len(ids)),
            stop=stops,
            on_token=on_token,
            **sampling,
        )
    except _Stopped:
        return stream.shown  # without the first bytes of a character that will not come
    return stream.finish()


class Conversation:
    """The turns of a chat, as `{"role", "content"}`, and the model that answers. system: what it is
    told before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        max_new: int = 128,
        system: str | None = None,
        **sampling,
    ):
        self.model, self.tokenizer, self.max_new, self.sampling = (
            model,
            tokenizer,
            max_new,
            sampling,
        )
        self.told = [] if system is None else [{"role": "system", "content": system}]
        self.turns: list[dict] = []

    def reset(self) -> None:
        """Forget the turns."""
        self.turns = []

    def ask(
        self,
        prompt: str,
        show: Callable[[str], object] = lambda piece: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> str:
        """Add the question and its answer to the turns; returns the answer, or the part of it that
        was there when `stop` said so.
        """
        turns = [*self.turns, {"role": "user", "content": prompt}]
        room = self.model.config.max_position_embeddings - self.max_new
        while len(turns) > 1 and len(self._ids(turns)) > room:
            del turns[:2]  # the oldest question and its answer
        answer = reply(
            self.model,
            self.tokenizer,
            self._ids(turns),
            self.max_new,
            show=show,
            stop=stop,
            **self.sampling,
        )
        self.turns = [*turns, {"role": "assistant", "content": answer}]
        return answer

    def _ids(self, turns: list[dict]) -> list[int]:
        from .prompts import encode_prompt

        return encode_prompt([*self.told, *turns], self.tokenizer)

"""`minilora generate`: an answer to one prompt, or a chat, token by token.

What it replaces: `transformers chat`. How it works: the prompt is put into the model's format (text.encode_prompt) and the
answer is printed as it grows. What it leaves out: a history longer than the model's positions (the oldest turns go).
Where numerics differ: nowhere.
"""

from __future__ import annotations

import sys

from ..errors import MiniloraError
from . import models


def add_arguments(parser) -> None:
    models.add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="the question; `-` reads it from standard input")
    what.add_argument("--chat", action="store_true", help="ask and answer in turns; an empty line ends it")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as plain text, outside the chat format")
    parser.add_argument("--max-new", type=int, default=128, help="at most so many new tokens (default 128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default), 1 samples")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int)


class Printer:
    """Prints an answer while it grows; holds back a character whose bytes are not all there yet."""

    def __init__(self, tokenizer, stops: list[int]):
        self.tokenizer, self.stops = tokenizer, stops
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, tokens: list[int]) -> None:
        if tokens[0] in self.stops:
            return
        self.ids.append(tokens[0])
        text = self.tokenizer.decode(self.ids)
        if not text.endswith("\ufffd"):
            self._show(text)

    def _show(self, text: str) -> None:
        print(text[len(self.shown) :], end="", flush=True)
        self.shown = text

    def finish(self) -> str:
        self._show(self.tokenizer.decode(self.ids))
        print(flush=True)
        return self.shown


def answer(model, tokenizer, ids: list[int], args) -> str:
    """Print and return the continuation of `ids`."""
    import torch

    limit = model.config.max_position_embeddings
    if len(ids) + 1 > limit:
        raise MiniloraError(f"the prompt has {len(ids)} tokens, the model has room for {limit - 1}; shorten it")
    stops = models.stop_ids(model, tokenizer)
    printer = Printer(tokenizer, stops)
    model.generate(
        torch.tensor([ids]),
        min(args.max_new, limit - len(ids)),
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        stop=stops,
        seed=args.seed,
        on_token=printer,
    )
    return printer.finish()


def chat(model, tokenizer, args) -> None:
    from ..text import encode_prompt

    messages: list[dict] = []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        messages.append({"role": "user", "content": line})
        room = model.config.max_position_embeddings - args.max_new
        while len(messages) > 1 and len(encode_prompt(messages, tokenizer)) > room:
            del messages[:2]  # the oldest question and its answer
        messages.append({"role": "assistant", "content": answer(model, tokenizer, encode_prompt(messages, tokenizer), args)})


def run(args) -> int:
    if args.max_new < 1:
        raise MiniloraError(f"--max-new is {args.max_new}; give 1 or more")
    from ..text import encode_prompt

    model, tokenizer = models.load(args)
    if args.chat:
        chat(model, tokenizer, args)
        return 0
    prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
    ids = tokenizer.encode(prompt, bos=True) if args.raw else encode_prompt(prompt, tokenizer)
    answer(model, tokenizer, ids or [tokenizer.eos_id], args)
    return 0

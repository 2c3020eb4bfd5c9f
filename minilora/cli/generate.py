"""`minilora generate`: an answer to one prompt, or a chat, token by token.

What it replaces: `transformers chat`. How it works: the prompt is put into the model's format
(text.encode_prompt) and the answer is printed as it grows. What it leaves out: a history longer
than the model's positions (the oldest turns go).
Where numerics differ: nowhere.
"""

from __future__ import annotations

import sys

from ..cli import options
from ..errors import MiniloraError
from ..recipes import load


def add_arguments(parser) -> None:
    options.add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="the question; `-` reads it from standard input")
    what.add_argument(
        "--chat", action="store_true", help="ask and answer in turns; an empty line ends it"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="continue the prompt as plain text, outside the chat format",
    )
    parser.add_argument(
        "--max-new", type=int, default=128, help="at most so many new tokens (default 128)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 takes the likeliest token (default), 1 samples",
    )
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--seed", type=int)


def show(piece: str) -> None:
    print(piece, end="", flush=True)


def chat(conversation) -> None:
    """Ask and answer in turns until an empty line, or the end of the input."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not line.strip():
            return
        conversation.ask(line, show)
        print(flush=True)


def run(args) -> int:
    if args.max_new < 1:
        raise MiniloraError(f"--max-new is {args.max_new}; give 1 or more")
    from ..text.chat import Conversation, reply
    from ..text.prompts import encode_prompt

    model, tokenizer = load.load(args)
    sampling = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")}
    if args.chat:
        chat(Conversation(model, tokenizer, args.max_new, **sampling))
        return 0
    prompt = sys.stdin.read().rstrip("\n") if args.prompt == "-" else args.prompt
    ids = tokenizer.encode(prompt, bos=True) if args.raw else encode_prompt(prompt, tokenizer)
    reply(model, tokenizer, ids or [tokenizer.eos_id], args.max_new, show=show, **sampling)
    print(flush=True)
    return 0

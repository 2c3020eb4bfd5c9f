"""`minilora generate`: an answer to one prompt, or a chat, token by token.

What it replaces: `transformers chat`. How it works: the prompt is put into the model's format
(text.encode_prompt) and the answer is printed as it grows. What it leaves out: a history longer
than the model's positions (the oldest turns go).
"""

from __future__ import annotations

import sys

from ..errors import MiniloraError
from ..recipes import load
from ..recipes.settings import flag
from ..system.ranges import SEED, TEMPERATURE, TOKENS, number
from . import options

EXAMPLE = """examples:
  minilora generate --adapter runs/extract --prompt "Who wrote the letter?"
  minilora generate --adapter runs/extract --chat"""

SAMPLING = ("temperature", "top_k", "top_p", "seed")


def add_arguments(parser) -> None:
    parser.usage = "minilora generate (--prompt TEXT | --chat) [options]"
    parser.epilog = EXAMPLE
    options.add_model_arguments(parser)
    group = parser.add_argument_group("what is asked")
    what = group.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--prompt", metavar="TEXT", help="the question; - reads it from standard input"
    )
    what.add_argument(
        "--chat", action="store_true", help="ask and answer in turns; an empty line ends it"
    )
    group.add_argument(
        "--raw",
        action="store_true",
        help="continue the prompt as plain text, outside the chat format (default: no)",
    )
    add_drawing(parser, max_new=128)


def add_drawing(parser, max_new: int) -> None:
    """The options of how an answer is drawn, with that default of its length."""
    add = parser.add_argument_group("how the answer is drawn").add_argument
    add(
        "--max-new",
        type=options.within("--max-new", TOKENS),
        default=max_new,
        metavar="N",
        help=f"at most so many new tokens (default: {max_new})",
    )
    add(
        "--temperature",
        type=options.within("--temperature", TEMPERATURE),
        default=0.0,
        metavar="X",
        help="0 takes the likeliest token, 1 samples (default: 0)",
    )
    add(
        "--top-k",
        type=options.within("--top-k", TOKENS),
        metavar="N",
        help="sample among the N likeliest (default: among all)",
    )
    add(
        "--top-p",
        type=options.within("--top-p", number(0, 1, above=True)),
        metavar="X",
        help="sample among the likeliest that together have this probability (default: among all)",
    )
    add(
        "--seed",
        type=options.within("--seed", SEED),
        metavar="N",
        help="of the sampling (default: another each time)",
    )


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


def prompt_of(args) -> str:
    """The question. Raises MiniloraError if there is none."""
    if args.prompt != "-":
        prompt, where = args.prompt, "--prompt"
    else:
        prompt, where = sys.stdin.read().rstrip("\n"), "standard input"
    if not prompt.strip():
        raise MiniloraError(f"{where} is empty; ask something, or give --chat")
    return prompt


def refuse_undrawn(args) -> None:
    """Raise MiniloraError for options of sampling where nothing is sampled."""
    for name in SAMPLING[1:] if args.temperature == 0 else ():
        if getattr(args, name) is not None:
            raise MiniloraError(
                f"{flag(name)} says nothing at temperature 0, which takes the likeliest token; "
                "leave it out, or add --temperature 1"
            )


def refuse_idle(args) -> None:
    """Raise MiniloraError for options that say nothing beside the others."""
    refuse_undrawn(args)
    if args.chat and args.raw:
        raise MiniloraError(
            "--raw says nothing for --chat, which asks in the chat format; leave one of them out"
        )


def run(args) -> int:
    refuse_idle(args)
    prompt = None if args.chat else prompt_of(args)
    from ..text.chat import Conversation, reply
    from ..text.prompts import encode_prompt

    model, tokenizer = load.load(args.model, args.adapter, args.code, args.device)
    sampling = {name: getattr(args, name) for name in SAMPLING}
    if prompt is None:
        chat(Conversation(model, tokenizer, args.max_new, **sampling))
        return 0
    ids = tokenizer.encode_text(prompt) if args.raw else encode_prompt(prompt, tokenizer)
    reply(model, tokenizer, ids or [tokenizer.eos_id], args.max_new, show=show, **sampling)
    print(flush=True)
    return 0

"""`minilora chat`: a conversation in the terminal.

What it replaces: `transformers chat`, `ollama run`. How it works: each answer is printed as it
grows, and the turns are kept (text/chat.py). Ctrl-C ends the answer, what there is of it stays a
turn; Ctrl-D or /exit ends the program. Where the input is no terminal, each of its lines is a
question, and nothing but the answers is printed. What it leaves out: a question of several lines,
saved conversations.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from ..errors import MiniloraError
from ..recipes import load
from . import generate, options

EXAMPLE = """examples:
  minilora chat --model smollm2-135m
  minilora chat --model smollm2-135m --adapter runs/extract --system "Answer in one word."
  echo "What is the capital of Italy?" | minilora chat --model smollm2-135m"""

EXIT, RESET = "/exit", "/reset"


def add_arguments(parser) -> None:
    parser.usage, parser.epilog = "minilora chat [--model MODEL] [options]", EXAMPLE
    options.add_model_arguments(parser)
    parser.add_argument_group("what is asked").add_argument(
        "--system",
        metavar="TEXT",
        help="what the model is told before the first question (default: what its chat template "
        "says)",
    )
    generate.add_drawing(parser, max_new=512)


@contextlib.contextmanager
def ctrl_c_stops() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only makes the yielded function true; a second one, before
    that was asked for, is a KeyboardInterrupt.
    """
    pressed = False

    def press(*_) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():  # no signals there
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def questions(terminal: bool) -> Iterator[str]:
    """What is typed, line by line, until its end or /exit."""
    while True:
        try:
            line = input("> " if terminal else "")
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            print(f"\n({EXIT} or Ctrl-D leaves)")
            continue
        if line.strip() == EXIT:
            return
        if line.strip():
            yield line


def talk(conversation, terminal: bool) -> None:
    """Answer each question; in a terminal, one that cannot be answered ends nothing."""
    for line in questions(terminal):
        if line.strip() == RESET:
            conversation.reset()
            if terminal:
                print("(forgotten)")
            continue
        try:
            with ctrl_c_stops() as stop:
                conversation.ask(line, generate.show, stop)
        except KeyboardInterrupt:
            pass  # the question is forgotten
        except MiniloraError as error:
            if not terminal:
                raise
            print(f"minilora: {error}", file=sys.stderr)
        print(flush=True)


def run(args) -> int:
    generate.refuse_undrawn(args)
    if args.system is not None and not args.system.strip():
        raise MiniloraError("--system is empty; give a text, or leave it out")
    from ..text.chat import Conversation

    terminal = sys.stdin.isatty()
    model, tokenizer = load.load(args.model, args.adapter, args.code, args.device)
    sampling = {name: getattr(args, name) for name in generate.SAMPLING}
    conversation = Conversation(model, tokenizer, args.max_new, system=args.system, **sampling)
    if terminal:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401  arrows and history at the prompt
        print(
            f"{args.model}: Ctrl-C ends an answer, {RESET} forgets what was said, {EXIT} or Ctrl-D "
            "leaves"
        )
    talk(conversation, terminal)
    return 0

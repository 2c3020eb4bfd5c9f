"""The command line: `minilora COMMAND`; COMMANDS names them all.

What it replaces: the example scripts of transformers and PEFT with their dozens of flags.
How it works: each command is a module with `add_arguments(parser)` and `run(args)`; only the chosen
one is imported, so that help and typing errors answer at once. What a user can mend arrives as
MiniloraError and is printed as one line with exit code 2; Ctrl-C ends with 130, as a shell expects.
Anything else is a fault of ours or of a library, or damage that nobody foresaw: one line, too, with
exit code 1, and the traceback only with `--debug`.
What it leaves out: configuration files; a run's settings are in its run.json.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import re
import sys
import warnings
from collections.abc import Sequence

from ..errors import Interrupted, MiniloraError, MiniloraWarning, printed
from ..system import memory

COMMANDS = {
    "finetune": (
        "minilora.cli.finetune",
        "train an adapter, or all weights, on your examples",
    ),
    "generate": ("minilora.cli.generate", "answer a prompt, or chat"),
    "chat": ("minilora.cli.chat", "talk with a model in the terminal"),
    "evaluate": ("minilora.cli.evaluate", "score a model on a data folder's test split"),
    "merge": ("minilora.cli.merge", "write an adapter into its model's weights"),
    "export": ("minilora.cli.export", "write a model as a file for llama.cpp and Ollama"),
    "budget": ("minilora.cli.budget", "say what a run will need in memory, time and money"),
    "pretrain": ("minilora.cli.pretrain", "train the shipped tiny Llama from nothing"),
    "models": ("minilora.cli.models", "list the models known by name; fetch or remove one"),
    "lessons": ("minilora.cli.lessons", "lay the course's notebooks out and open them"),
    "doctor": ("minilora.cli.doctor", "say what this machine has and what is missing"),
}


class Parser(argparse.ArgumentParser):
    """argparse with its complaints in one line, and with the lines of an example as they stand."""

    def __init__(self, **settings):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )

    def error(self, message: str):
        # an option's own line names it already
        message = re.sub(r"^argument (--[\w-]+): (?=\1 )", "", message)
        raise MiniloraError(f"{message}; see `{self.prog} --help`")


def _overview() -> str:
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return (
        "usage: minilora COMMAND [options]\n\n"
        + "\n".join(lines)
        + "\n\n`minilora COMMAND --help` lists a command's options; -V tells the version; --debug, "
        "anywhere,\nshows where an unexpected error comes from."
    )


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] in ("-V", "--version"):
        from .. import __version__

        print(f"minilora {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, 1)
        meant = f"did you mean {near[0]}? There are" if near else "choose"
        raise MiniloraError(f"there is no command {argv[0]!r}; {meant} {', '.join(COMMANDS)}")
    module_name, text = COMMANDS[argv[0]]
    module = importlib.import_module(module_name)
    parser = Parser(prog=f"minilora {argv[0]}", description=text)
    module.add_arguments(parser)
    return module.run(parser.parse_args(list(argv[1:]))) or 0


def _one_line(message: str) -> str:
    line = printed(message.encode("utf-8", "backslashreplace").decode(), limit=sys.maxsize)
    line = line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    return f"minilora: {line}"


def _complain(message: str) -> None:
    print(_one_line(message), file=sys.stderr)


def _warning(message, category, *place, **more) -> str:
    """Our warnings in one line; those of others as Python has them."""
    if issubclass(category, MiniloraWarning):
        return _one_line(f"warning: {message}") + "\n"
    return PYTHONS_FORM(message, category, *place, **more)


PYTHONS_FORM = warnings.formatwarning


MEMORY = {  # what a command can do about a full memory; finetune, which knows more, says it itself
    "evaluate": "lower --batch, or quantize the base with --code nf4",
    "generate": "lower --max-new, or quantize the base with --code nf4",
}


DEBUG = "--debug"
LONGEST = 2000  # characters of a line: what is longer repeats what was typed

debugging = False  # the tests' own: an unexpected error is a fault, and they are to see it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for what the user can mend, 1 for what is
    unexpected, 130 for Ctrl-C.
    """
    given = sys.argv[1:] if argv is None else argv
    warnings.formatwarning = _warning
    words, debug = [word for word in given if word != DEBUG], DEBUG in given
    try:
        return _run(words)
    except Interrupted as error:
        _complain(str(error))
        return 130
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except SystemExit as error:  # argparse after --help
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    except BrokenPipeError:
        # `minilora generate … | head`: the reader has gone, nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except BaseException as error:  # a Rust library's panic is no Exception
        if debug:
            import traceback

            traceback.print_exc()
        return _refused(error, words[0] if words else "", debug)


def _refused(error: BaseException, command: str, debug: bool) -> int:
    """Say in one line what ended the command; returns the exit code."""
    if isinstance(error, MiniloraError):
        _complain(str(error))
    elif isinstance(error, Exception) and memory.full(error):
        remedy = "end what else runs, or take a machine with more memory"
        _complain(f"the memory is full; {MEMORY.get(command, remedy)}")
    elif isinstance(error, OSError):
        _complain(
            f"{error.filename or 'the disk'}: {error.strerror or error}; check the path, "
            "its permissions and the free space"
        )
    elif debugging:
        raise error
    else:
        told = " ".join(str(error).split())
        told = told if len(told) <= 160 else f"{told[:160]}…"
        again = "report it with the lines above" if debug else "run it again with --debug"
        report = "" if debug else ", and report what that says"
        _complain(f"unexpected: {type(error).__name__}: {told or 'no words'}; {again}{report}")
        return 1
    return 2

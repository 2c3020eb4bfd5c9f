"""One exception for everything a user can put right.

What it replaces: the tracebacks that a wrong path, a broken line or an impossible rank raise in
other libraries.
How it works: every module raises `MiniloraError` with one line that names the value and the remedy;
the command line prints that line and exits with code 2, a notebook shows it as the last line of the
error.
What it leaves out: programming errors. A wrong type from our own code keeps its own exception and
traceback.
"""


class MiniloraError(ValueError):
    """Bad input that the caller can mend. The message is one line: the value, what is wrong, what
    to do.
    """


class MemoryFull(MiniloraError):
    """The memory does not hold what was asked for. `told` is the message without its remedy, for
    those who know a better one.
    """

    def __init__(self, message: str, told: str):
        super().__init__(message)
        self.told = told


class MiniloraWarning(UserWarning):
    """Something in a file that changes nothing in what is done, and that its owner should know.
    Python says each once; the command line in one line.
    """


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a line that says how to go on."""


def printed(text: object, limit: int = 200) -> str:
    """A stranger's text for an error's line: no control characters, which could write anywhere on a
    terminal, and cut where it is long.
    """
    line = "".join(each if each.isprintable() else " " for each in str(text))
    line = " ".join(line.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"

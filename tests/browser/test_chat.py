"""The chat panel in a real browser, by keyboard alone: ask, read, ask again, stop."""

import nbformat
import pytest
from lab_page import LabPage

from tools.lesson_parts import setup

pytestmark = pytest.mark.browser
CHAT = """
import time
from minilora import llama, text
from minilora.text.chat import Conversation
from minilora.course.explore.chatpanel import Panel
from minilora.system.files import data_folder

base = data_folder() / "base"
model, tokenizer = llama.Llama.from_pretrained(base), text.Tokenizer.from_pretrained(base)
# it never ends by itself, so that Stop has something to stop
model.config.eos_token_id, tokenizer.eos_id = [], -1
panel = Panel(Conversation(model, tokenizer, max_new=MOST, temperature=1.0, seed=0))
grow = panel._grow
# as a large model would, so that there is time to press Stop
panel._grow = lambda piece: (time.sleep(0.05), grow(piece))
shown = panel.show()
# a slow kernel: whatever the page sends late comes behind Send
shown.children[0].observe(lambda change: time.sleep(0.4), "value")
shown
"""


@pytest.fixture
def chat(page, server, shelf, request):
    """The panel of a model that answers in so many tokens."""
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(source)
            for source in (setup(), CHAT.replace("MOST", str(request.param)))
        ]
    )
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    nbformat.write(notebook, shelf / "chat.ipynb")
    lab = LabPage(page, server, "chat.ipynb")
    lab.run_all()
    assert lab.errors() == []
    page.locator(".minilora-chat").wait_for()
    return page


def ask(page, question: str) -> None:
    """Type into the box, Tab to Send, Space."""
    page.locator(".widget-textarea textarea").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(question)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText.trim()") == "Send"
    page.keyboard.press("Space")


def state(page, wanted: str, turns: int):
    page.locator(f'.minilora-chat[data-state="{wanted}"][data-turns="{turns}"]').wait_for()


@pytest.mark.parametrize("chat", [12], indirect=True)
def test_a_question_is_answered_and_escaped(chat):
    ask(chat, "<img src=x onerror=alert(1)> & who?")
    state(chat, "idle", 2)
    assert "<img src=x onerror=alert(1)> & who?" in chat.locator(".minilora-chat").inner_text()
    assert chat.locator(".minilora-chat img").count() == 0
    ask(chat, "and then?")
    state(chat, "idle", 4)


@pytest.mark.parametrize("chat", [400], indirect=True)
def test_stop_is_heard_while_the_answer_grows(chat):
    ask(chat, "tell me a story")
    state(chat, "answering", 2)
    chat.wait_for_function(
        "() => document.querySelector('.minilora-chat [role=log]').innerText.length > 40"
    )
    chat.keyboard.press("Tab")
    assert chat.evaluate("document.activeElement.innerText.trim()") == "Stop"
    chat.keyboard.press("Space")
    state(chat, "stopped", 2)
    answer = chat.locator(".minilora-chat [role=log] > div").last.inner_text()
    chat.wait_for_timeout(1000)
    assert chat.locator(".minilora-chat [role=log] > div").last.inner_text() == answer

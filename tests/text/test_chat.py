"""A chat by `Conversation`, and its panel without a browser: streaming, stopping, escaping, and
errors that are seen.
"""

import gc
import re
import threading
import weakref
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from minilora import hub, text
from minilora.course.explore.chatpanel import Panel, render
from minilora.course.explore.live import LossPicture
from minilora.errors import MiniloraError
from minilora.llama import Config, Llama
from minilora.llama.generate import generate
from minilora.text.chat import Conversation, Stream, reply


@pytest.fixture(scope="module")
def pair(tiny_folder):
    return Llama.from_pretrained(tiny_folder), text.Tokenizer.from_pretrained(tiny_folder)


def test_an_answer_grows_by_whole_characters(pair):
    """A character of several bytes is several tokens here: it must not appear in halves; what is
    never finished comes at the end.
    """
    _, tokenizer = pair
    pieces = []
    stream = Stream(tokenizer, [tokenizer.eos_id], pieces.append)
    for token in [*tokenizer.encode("aé€b"), tokenizer.eos_id]:
        stream([token])
    assert pieces == ["a", "é", "€", "b"] and stream.finish() == "aé€b" and len(pieces) == 4
    stream([tokenizer.encode("€")[0]])
    assert len(pieces) == 4 and stream.finish() == "aé€b\ufffd" and pieces[-1] == "\ufffd"


def test_reply_is_what_generate_writes_piece_by_piece(pair):
    model, tokenizer = pair
    ids, pieces = text.encode_prompt("who", tokenizer), []
    answer = reply(model, tokenizer, ids, 12, show=pieces.append, temperature=0.9, seed=3)
    wanted = generate(
        model, torch.tensor([ids]), 12, temperature=0.9, seed=3, stop=[tokenizer.eos_id]
    )[0, len(ids) :].tolist()
    wanted = wanted[: wanted.index(tokenizer.eos_id)] if tokenizer.eos_id in wanted else wanted
    assert answer == "".join(pieces) == tokenizer.decode(wanted) and len(pieces) > 3


def test_stop_ends_an_answer_and_keeps_what_is_there(pair):
    talk, pieces = Conversation(*pair, max_new=40, temperature=0.6, seed=4), []
    cut = talk.ask("who", pieces.append, stop=lambda: len(pieces) >= 2)
    whole = Conversation(*pair, max_new=40, temperature=0.6, seed=4).ask("who")
    assert whole.startswith(cut) and len(pieces) == 2 and len(cut) < len(whole)
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] and talk.turns[1][
        "content"
    ] == cut


def test_an_end_is_not_shown_and_nothing_behind_it(pair):
    """The second token of an answer, declared an end by the configuration alone."""
    model, tokenizer = pair
    ids = text.encode_prompt("who", tokenizer)
    drawn = generate(model, torch.tensor([ids]), 8, temperature=0.9, seed=3, stop=[])
    first, second = drawn[0, len(ids) : len(ids) + 2].tolist()
    other = Llama(Config(**(vars(model.config) | {"eos_token_id": [2, second]})))
    other.load_state_dict(model.state_dict())
    pieces = []
    answer = reply(other, tokenizer, ids, 8, show=pieces.append, temperature=0.9, seed=3)
    assert first != second and answer == "".join(pieces) == tokenizer.decode([first])


def test_an_answer_ends_where_the_positions_do(pair):
    model, tokenizer = pair
    room, count = model.config.max_position_embeddings, []
    ids = (text.encode_prompt("who", tokenizer) * 100)[: room - 3]
    reply(model, tokenizer, ids, 40, stop=lambda: bool(count.append(1)), temperature=0.9, seed=3)
    assert 0 < len(count) <= 3


def test_a_conversation_draws_as_it_was_told_to(pair):
    model, tokenizer = pair
    ids = text.encode_prompt("who", tokenizer)
    for sampling in ({}, {"temperature": 0.9, "seed": 3}, {"temperature": 0.9, "seed": 4}):
        talk = Conversation(model, tokenizer, max_new=12, **sampling)
        assert talk.ask("who") == reply(model, tokenizer, ids, 12, **sampling)
    assert talk.ask("who") != talk.turns[1]["content"]  # the second question has a history


def test_the_oldest_turns_go_when_the_room_is_full(pair):
    model, tokenizer = pair
    talk = Conversation(model, tokenizer, max_new=100)
    room = model.config.max_position_embeddings - 100
    for number in range(6):
        talk.ask(f"{number} " + "the cat sat " * 9, stop=lambda: True)
        assert len(text.encode_prompt(talk.turns[:-1], tokenizer)) <= room
    assert (
        len(talk.turns) < 12
        and talk.turns[0]["role"] == "user"
        and talk.turns[-2]["content"].startswith("5 ")
    )


def test_a_question_without_room_for_an_answer(pair):
    talk = Conversation(*pair)
    with pytest.raises(MiniloraError, match="has room for 255; shorten it"):
        talk.ask("abcdefghij" * 60)
    assert talk.turns == []


HOSTILE = "<script>alert(\"x\")</script> & <b onclick='y'>"


def test_every_word_is_escaped():
    drawn = render(
        [{"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}],
        trouble=HOSTILE,
    )
    root = ElementTree.fromstring(drawn)
    assert "".join(root.itertext()).count(HOSTILE) == 3
    assert {element.tag for element in root.iter()} == {"div", "b", "i"} and "<script" not in drawn
    assert (
        root.find(".//div[@role='log']").get("aria-live") == "polite"
        and root.get("data-turns") == "2"
    )


def test_a_panel_answers_in_a_thread_and_draws_the_growing_answer(pair):
    panel = Panel(Conversation(*pair, max_new=30), question="who")
    box = panel.show()
    assert [type(child).__name__ for child in box.children] == [
        "Textarea",
        "HBox",
        "HTML",
    ] and box.children[0].value == "who"
    send, stop = box.children[1].children
    assert (send.description, stop.description) == ("Send", "Stop")
    states = []
    panel.picture.observe(
        lambda change: states.append(re.search('data-state="([a-z]+)"', change["new"])[1]), "value"
    )
    send.click()
    panel.wait()
    assert (
        states[0] == "answering"
        and states[-1] == "idle"
        and panel.thread is not threading.current_thread()
    )
    assert panel.conversation.turns[-1]["content"] == Conversation(*pair, max_new=30).ask("who")
    assert 'data-turns="2"' in panel.picture.value


def test_the_stop_button_is_heard_while_the_answer_grows(pair):
    """The answer would have 100 tokens; after the first piece it waits until Stop has been
    pressed.
    """
    panel = Panel(Conversation(*pair, max_new=100, temperature=0.6, seed=4))
    stop = panel.show().children[1].children[1]
    begun, pressed, grow = threading.Event(), threading.Event(), panel._grow

    def slowly(piece):
        grow(piece)
        begun.set()
        assert pressed.wait(30)

    panel._grow = slowly
    panel.ask("the dog")
    assert begun.wait(30)
    panel.ask("a second question while the first is being answered")
    stop.click()
    pressed.set()
    panel.wait()
    assert panel.state == "stopped" and 'data-state="stopped"' in panel.picture.value
    answer = panel.conversation.turns[-1]["content"]
    assert panel.conversation.turns[0]["content"] == "the dog" and 0 < len(answer) < len(
        Conversation(*pair, max_new=100, temperature=0.6, seed=4).ask("the dog")
    )


def test_what_goes_wrong_is_shown_and_the_next_question_is_answered(pair):
    panel = Panel(Conversation(*pair, max_new=4))
    panel.ask(HOSTILE * 30)
    panel.wait()
    assert "shorten it" in panel.html() and panel.state == "idle"
    panel.ask("   ")
    assert panel.state == "idle"
    panel.ask("who")
    panel.wait()
    assert "shorten it" not in panel.html() and len(panel.conversation.turns) == 2


def test_the_loss_picture_grows_with_the_run():
    picture = LossPicture(3)
    assert "step 0 of 3" in repr(picture.still())
    widget = picture.show()
    for step, loss in enumerate((2.0, 1.5, 0.5), start=1):
        picture(step, loss)
    assert 'data-step="3"' in widget.value and "step 3 of 3: loss 0.500, 2.000 at step 1" in repr(
        picture.still()
    )
    late = LossPicture(3)
    late.remember([2.0, 1.5])
    late(3, 0.5)
    assert late.html() == picture.html()
    ElementTree.fromstring(late.html())


def test_a_model_that_has_answered_goes_with_its_last_name():
    model = Llama(Config(64, 16, 32, 1, 2, 2))
    seen = weakref.ref(model)
    gc.disable()  # a GPU's memory does not wait for a collection
    try:
        speaker = hub.answering(model)
        del speaker, model
        assert seen() is None
    finally:
        gc.enable()

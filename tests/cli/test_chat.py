"""`minilora chat` and `minilora models`: what is printed, and how each ends."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from minilora.cli import chat
from minilora.cli.main import main
from minilora.errors import MiniloraError
from minilora.text.chat import Conversation


@pytest.fixture
def tiny(tiny_folder):
    from minilora.recipes import load

    return load.load(str(tiny_folder))


class Piped(io.StringIO):
    def isatty(self):
        return False


class Typed(Piped):
    def isatty(self):
        return True


def talk(monkeypatch, lines, *options, typed=False):
    monkeypatch.setattr("sys.stdin", (Typed if typed else Piped)(lines))
    return main(["chat", *options])


def answers(model, tokenizer, *questions, **settings):
    conversation = Conversation(model, tokenizer, 5, **settings)
    return [conversation.ask(question) for question in questions]


def test_each_line_of_a_pipe_is_a_question_and_the_history_is_kept(
    monkeypatch, capsys, tiny, tiny_folder
):
    asked = ["the cat", "who was there"]
    options = ("--model", str(tiny_folder), "--max-new", "5")
    assert talk(monkeypatch, "\n\n".join(asked), *options) == 0
    expected = answers(*tiny, *asked)
    assert capsys.readouterr().out == "".join(answer + "\n" for answer in expected)
    assert expected[1] != answers(*tiny, asked[1])[0]  # the first question counts


def test_reset_forgets_and_exit_leaves(monkeypatch, capsys, tiny, tiny_folder):
    options = ("--model", str(tiny_folder), "--max-new", "5")
    talk(monkeypatch, "the cat\n/reset\nwho was there\n/exit\nnever asked", *options)
    expected = answers(*tiny, "the cat") + answers(*tiny, "who was there")
    assert capsys.readouterr().out == "".join(answer + "\n" for answer in expected)


def test_a_system_text_stands_before_the_first_question(monkeypatch, capsys, tiny, tiny_folder):
    options = ("--model", str(tiny_folder), "--max-new", "5", "--system", "the dog and the bird")
    talk(monkeypatch, "the cat", *options)
    told = answers(*tiny, "the cat", system="the dog and the bird")
    assert capsys.readouterr().out == told[0] + "\n" and told != answers(*tiny, "the cat")


def test_the_oldest_turns_go_and_the_system_text_stays(tiny):
    from minilora.text.prompts import encode_prompt

    model, tokenizer = tiny
    room = model.config.max_position_embeddings
    conversation = Conversation(model, tokenizer, 5, system="who was there")
    for _ in range(30):
        conversation.ask("the cat sat on the mat " * 3)
    turns = conversation.turns
    assert turns[0]["role"] == "user" and len(turns) < 60
    system = {"role": "system", "content": "who was there"}
    asked = encode_prompt([system, *turns[:-1]], tokenizer)  # the last question and all before it
    assert len(asked) + 5 <= room


def test_in_a_terminal_it_says_how_to_leave_and_goes_on_after_a_mistake(
    monkeypatch, capsys, tiny_folder
):
    long = "the cat sat on the mat " * 200
    options = ("--model", str(tiny_folder), "--max-new", "5")
    assert talk(monkeypatch, f"{long}\nthe cat\n", *options, typed=True) == 0
    told = capsys.readouterr()
    assert "Ctrl-D" in told.out and "shorten it" in told.err
    assert told.out.count("> ") == 3  # the long one, the short one, the end


def test_in_a_pipe_a_question_that_cannot_be_answered_ends_it(monkeypatch, capsys, tiny_folder):
    long = "the cat sat on the mat " * 200
    assert talk(monkeypatch, long, "--model", str(tiny_folder)) == 2
    assert "shorten it" in capsys.readouterr().err


def test_ctrl_c_ends_the_answer_and_not_the_program(monkeypatch, capsys, tiny):
    """What was there of the answer stays in the history."""
    conversation = Conversation(*tiny, 200)
    pieces = []

    def show(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(chat.generate, "show", show)
    monkeypatch.setattr("sys.stdin", Piped("the cat\n"))
    before = signal.getsignal(signal.SIGINT)
    chat.talk(conversation, terminal=False)
    assert len(pieces) < 10 and "".join(pieces) == conversation.turns[-1]["content"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_does_not_wait_for_the_next_token(monkeypatch, tiny):
    class Stuck:
        turns = []

        def ask(self, *_):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)
            raise AssertionError("it waited")

    monkeypatch.setattr("sys.stdin", Piped("the cat\n"))
    chat.talk(Stuck(), terminal=False)


def test_ctrl_c_at_the_prompt_of_a_terminal_says_how_to_leave(monkeypatch, capsys):
    typed = iter([KeyboardInterrupt, "the cat", EOFError])

    def answer(prompt):
        said = next(typed)
        if isinstance(said, str):
            return said
        raise said

    monkeypatch.setattr("builtins.input", answer)
    assert list(chat.questions(terminal=True)) == ["the cat"]
    assert "/exit or Ctrl-D leaves" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, told",
    [(["--system", " "], "--system is empty"), (["--top-k", "3"], "--top-k says nothing")],
)
def test_options_that_say_nothing(capsys, options, told):
    assert main(["chat", *options]) == 2 and told in capsys.readouterr().err


# --------------------------------------------------------------------------------- minilora models


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "home"))
    return tmp_path / "home"


def put(home, name, went_through="Q4_1"):
    from minilora.models import cache

    folder = home / "models" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    cache.write_source(folder, cache.Source(name, "a wheel", "Apache-2.0", went_through))
    return folder


def row(out, name):
    return next(line for line in out.splitlines() if line.startswith(name))


def test_models_lists_what_is_known_and_what_is_here(home, capsys):
    put(home, "smollm2-135m"), put(home, "mine-0123", "")
    (home / "models" / "half").mkdir()
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    here = row(out, "smollm2-135m")
    assert "yes" in here and "3 MB" in here and "Apache-2.0" in here and "through Q4_1" in here
    assert " no " in row(out, "tinyllama") and "2,200 MB" in row(out, "tinyllama")
    assert "shipped" in row(out, "tiny ") and "a wheel" in row(out, "mine-0123")
    assert "half" not in out and str(home) in out


def test_models_clears_one_or_all(home, capsys):
    first, second = put(home, "smollm2-135m"), put(home, "mine-0123")
    half = home / "models" / ".smollm2-135m.partial"
    half.mkdir()
    assert main(["models", "--clear", "smollm2-135m"]) == 0
    assert not first.exists() and not half.exists() and second.exists()
    assert "removed" in capsys.readouterr().out
    assert main(["models", "--clear", "all"]) == 0 and not second.exists()
    assert main(["models", "--clear", "all"]) == 0


@pytest.fixture
def removed(home, monkeypatch):
    """What would be removed; nothing is, whatever the code under test asks for."""
    asked = []
    monkeypatch.setattr("shutil.rmtree", lambda path, *_, **__: asked.append(path))
    return asked


@pytest.mark.parametrize("name", ["nothing", "../outside", "..", ".", "", "a/b", "a", "link"])
def test_nothing_but_a_model_in_the_cache_is_ever_removed(home, capsys, removed, name):
    put(home, "smollm2-135m")
    (home / "outside").mkdir()
    (home / "models" / "a" / "b").mkdir(parents=True)
    (home / "models" / "link").symlink_to(home / "outside")
    assert main(["models", "--clear", name]) == 2 and not removed
    told = capsys.readouterr().err
    assert told.startswith("minilora: --clear") and "smollm2-135m" in told


def test_remove_itself_refuses_what_is_not_in_the_cache(home, removed):
    from minilora.models import cache

    kept = put(home, "smollm2-135m")
    (home / "models" / "a").mkdir()
    inside = (home / "models" / "a", home / "models" / "..", kept / "inside")
    for path in (home, home / "models", home / "outside", *inside):
        with pytest.raises(ValueError, match="is no model in"):
            cache.remove(path)
    assert not removed


def test_models_fetches_only_what_it_knows(home, capsys):
    assert main(["models", "--fetch", "gpt-5"]) == 2
    told = capsys.readouterr().err
    assert "there is no such model" in told and "smollm2-135m" in told


def test_a_damaged_source_is_named(home, capsys):
    (put(home, "smollm2-135m") / "source.json").write_text("{")
    assert main(["models"]) == 2 and "source.json" in capsys.readouterr().err


@pytest.mark.slow
def test_chat_in_a_process_of_its_own(tiny_folder):
    command = [sys.executable, "-m", "minilora", "chat", "--model", str(tiny_folder)]
    run = subprocess.run(
        [*command, "--max-new", "4"], input="the cat\n", capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.strip() and not run.stderr


def test_errors_of_a_conversation_are_the_users(tiny):
    with pytest.raises(MiniloraError, match="shorten it"):
        Conversation(*tiny, 5).ask("the cat " * 500)

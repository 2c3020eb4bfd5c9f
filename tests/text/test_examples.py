"""Lines of JSONL: what is read, and what is refused by name."""

import json

import pytest

from minilora import text
from minilora.errors import MiniloraError


def test_reading_all_three_shapes_and_splits(tmp_path):
    lines = [
        {"prompt": "p", "response": "r"},
        {"text": "t"},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    ]
    (tmp_path / "train.jsonl").write_text(
        "\ufeff" + "\n\n".join(json.dumps(line) for line in lines) + "\r\n", encoding="utf-8"
    )
    assert (
        text.read_split(tmp_path, "train")
        == text.read_split(tmp_path / "train.jsonl", "test")
        == lines
    )
    with pytest.raises(MiniloraError, match="train.jsonl"):
        text.read_split(tmp_path, "valid")


BAD_LINES = {
    "not json": ("{prompt: 1}", "line 2 cannot be read as JSON"),
    "a list": ("[1, 2]", "line 2 is a JSON list"),
    "no field": ('{"question": "x"}', r"\['question'\]"),
    "no response": ('{"prompt": "x"}', "lacks the field `response`"),
    "a number": ('{"prompt": 1, "response": "x"}', "`prompt` that is not a text"),
    "empty": ('{"prompt": "x", "response": ""}', "empty `response`"),
    "half a surrogate": ('{"text": "\\ud800"}', "valid Unicode"),
    "no answer": ('{"messages": [{"role": "user", "content": "x"}]}', "do not end with an answer"),
    "no content": ('{"messages": [{"role": "assistant"}]}', "without `role` and `content`"),
    "the other half": ('{"text": "\\udfff"}', "valid Unicode"),
    "a user's turn last": (
        '{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}',
        "do not end with an answer",
    ),
    "an empty answer": (
        '{"messages": [{"role": "assistant", "content": ""}]}',
        "do not end with an answer",
    ),
    "no messages": ('{"messages": []}', "at least one message"),
    "an empty text": ('{"text": ""}', "empty `text`"),
    "deep": ("[" * 100_000, "line 2"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, name):
    line, message = BAD_LINES[name]
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(MiniloraError, match=message) as caught:
        text.read_examples(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [(b"", "is empty"), (b"\n \n", "is empty"), (b'{"text": "\xff"}', "not UTF-8")],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(MiniloraError, match=message):
        text.read_examples(path)


def test_a_line_is_counted_and_ends_as_an_editor_shows_it(tmp_path):
    """Empty lines count; a line separator inside a text is no end of a line."""
    path = tmp_path / "data.jsonl"
    path.write_text('\n\n{"text": "one\u2028two\x85three"}\r\n\n{"text": ""}\n', encoding="utf-8")
    with pytest.raises(MiniloraError, match="line 5 has an empty `text`"):
        text.read_examples(path)
    path.write_text('{"text": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert text.read_examples(path) == [{"text": "one\u2028two\x85three"}]


def test_an_empty_question_may_have_an_answer(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "", "response": "x"}\n', encoding="utf-8")
    assert text.read_examples(path) == [{"prompt": "", "response": "x"}]


def test_what_is_not_there_is_named_with_what_is(tmp_path):
    with pytest.raises(MiniloraError, match="no data at .*nothing.jsonl; give a .jsonl file"):
        text.read_examples(tmp_path / "nothing.jsonl")
    with pytest.raises(MiniloraError, match="is a folder; name the .jsonl file in it"):
        text.read_examples(tmp_path)
    with pytest.raises(MiniloraError, match="no test.jsonl in .* \\(there is no .jsonl file\\)"):
        text.read_split(tmp_path, "test")
    (tmp_path / "b.jsonl").touch(), (tmp_path / "a.jsonl").touch()
    with pytest.raises(MiniloraError, match="there is a.jsonl, b.jsonl"):
        text.read_split(tmp_path, "test")

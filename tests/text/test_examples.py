"""Lines of JSONL: what is read, and what is refused by name."""

import json
import subprocess
import sys

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


def turns(*contents, **last):
    found = [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(contents)
    ]
    return [*found[:-1], {**found[-1], **last}]


CALL = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
ODD_ROWS = {
    "two forms": ({"prompt": "a", "response": "b", "messages": 5}, "`prompt` and `response` and"),
    "text as well": ({"prompt": "a", "response": "b", "text": "c"}, "keep one of"),
    "messages and text": ({"messages": turns("a", "b"), "text": "c"}, "`messages` and `text`"),
    "messages of a number": ({"messages": 5}, "not a list with at least one message"),
    "messages of texts": ({"messages": ["a", "b"]}, "without `role` and `content`"),
    "a role of a number": ({"messages": [{"role": 1, "content": "x"}]}, "without `role`"),
    "tools": ({"messages": turns("a", "b"), "tools": CALL}, "has `tools`, and calls of tools"),
    "functions": ({"prompt": "a", "response": "b", "functions": CALL}, "has `functions`"),
    "a call": ({"messages": turns("a", "", tool_calls=CALL)}, "a message that has `tool_calls`"),
    "an old call": ({"messages": turns("a", "b", function_call={"name": "f"})}, "`function_call`"),
    "a call and no content": (
        {"messages": turns("a", None, tool_calls=CALL)}, "a message that has `tool_calls`"),
    "an empty answer between": ({"messages": turns("a", "", "c", "d")}, "an empty message"),
    "half a weight": ({"messages": turns("a", "b", weight=0.5)}, "`weight` is 0.5"),
    "a weight in words": ({"messages": turns("a", "b", weight="0")}, '`weight` is "0"'),
    "a weight below zero": ({"messages": turns("a", "b", weight=-1)}, "`weight` is -1"),
    "train in words": ({"messages": turns("a", "b", train="false")}, '`train` is "false"'),
    "a question to be learned": (
        {"messages": [{"role": "user", "content": "a", "train": True}, *turns("a", "b")[1:]]},
        "only answers of the role `assistant`"),
    "nothing to learn": ({"messages": turns("a", "b", weight=0)}, "has no answer to learn"),
    "parts of a content": (
        {"messages": turns("a", [{"type": "text", "text": "b"}])}, "`content` as texts"),
    "a null": ({"prompt": None, "response": "b"}, "lacks the field `prompt`"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_ROWS)
def test_an_odd_row_is_named_with_file_and_line(tmp_path, name):
    row, words = ODD_ROWS[name]
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n\n' + json.dumps(row) + "\n")
    with pytest.raises(MiniloraError) as caught:
        text.read_examples(path)
    assert str(caught.value).startswith(f"{path}, line 3 ") and "\n" not in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("line", [
    b'{"text": ' + b"[" * 200_000, b'{"text": "x", "n": ' + b"9" * 5_000 + b"}", b'{"a": NaN}',
    b'{"text": "x", "n": 1e999}', b'{"text": "\\ud83d"}', b'{"messages": [{"role": "\\udc00"}]}',
    b'{"text": "x"', b'"text"', b"null", b"5", b"\x00", b"{'text': 'x'}",
])  # fmt: skip
def test_a_line_that_no_json_reader_should_read(tmp_path, line):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(MiniloraError) as caught:
        text.read_examples(path)
    assert f"{path}, line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_what_means_nothing_more_is_read(tmp_path):
    """Empty cells of a table, marks of a known kind, a first question that stands there twice."""
    rows = [
        {"prompt": "a", "response": "b", "messages": None, "text": None, "tools": []},
        {"prompt": "a", "messages": turns("a", "b", weight=1, train=True, tool_calls=None)},
        {"messages": turns("a", "", "c", "d")},
    ]
    rows[2]["messages"][1]["weight"] = 0
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = text.read_examples(path)
    assert found[0] == {"prompt": "a", "response": "b", "tools": []} and found[1:] == rows[1:]
    assert text.messages_of(found[1])[-1]["content"] == "b"


OTHER_FILES = {
    "story.txt": "Once there was\na cat.\n\nIt said: \"x\".\n",
    "story.md": "# A cat\n\nIt sat.",
    "rows.csv": "prompt,response\nwho,the cat\nwhy,\"a, b\"\n",
    "rows.tsv": "prompt\tresponse\nwho\tthe cat\nwhy\ta, b\n",
    "rows.json": '[{"prompt": "who", "response": "the cat"},\n {"prompt": "a", "response": "b"}]',
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_file_of_another_form_comes_with_the_command_that_makes_rows_of_it(tmp_path, name):
    """And that command does."""
    path = tmp_path / "a folder's" / name
    path.parent.mkdir()
    path.write_text(OTHER_FILES[name])
    with pytest.raises(MiniloraError) as caught:
        text.read_examples(path)
    line = str(caught.value)
    assert "\n" not in line and "to make a row of each" in line
    command = line.split(": python -c ", 1)[1].replace("> data.jsonl", f"> '{tmp_path}/data.jsonl'")
    subprocess.run(f"{sys.executable} -c {command}", shell=True, check=True)
    assert len(text.read_examples(tmp_path / "data.jsonl")) == 2


def test_lines_of_json_may_have_any_name(tmp_path):
    for name in ("a.txt", "b.json", "c.csv"):
        (tmp_path / name).write_text('\ufeff{"text": "x"}\n', encoding="utf-8")
        assert text.read_examples(tmp_path / name) == [{"text": "x"}]


def test_what_is_no_file_is_not_read(tmp_path):
    with pytest.raises(MiniloraError, match="which is no regular file"):
        text.read_examples("/dev/null")

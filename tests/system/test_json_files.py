"""JSON of strangers: one line for whatever is wrong, with the file, the field and the value."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import MiniloraError
from minilora.system.json_files import parse_json, read_json, shown

SCHEMA = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 10},
        "rate": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "kind": {"enum": ["a", "b"]},
        "inside": {"type": "object", "properties": {"names": {"items": {"type": "string"}}}},
    },
}

WRONG = {
    b'{"size": "3"}': 'size is "3", where a whole number belongs',
    b'{"size": 0}': "size is 0, less than 1",
    b'{"size": 11}': "size is 11, more than 10",
    b'{"size": true}': "size is true, where a whole number belongs",
    b'{"size": 1, "rate": 0}': "rate is 0, not more than 0",
    b'{"size": 1, "rate": []}': "rate is [], where a number or null belongs",
    b'{"size": 1, "kind": "c"}': 'kind is "c", and not one of "a", "b"',
    b'{"size": 1, "inside": {"names": ["x", 5]}}': "inside.names.1 is 5, where a text belongs",
    b"{}": "there is no size",
    b"[1]": "it is [1], where an object in {} belongs",
    b"{": "cannot be read as JSON",
    b"": "cannot be read as JSON",
    b"[" * 200_000: "nested too deep",
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000: "nested too deep",
    b"1" * 5_000: "cannot be read as JSON",
    b'{"size": NaN}': "size is NaN, which is no JSON number",
    b'{"size": -Infinity}': "size is -Infinity, which is no JSON number",
    b'{"size": 1e999}': "size is 1e999, which is beyond what a number can hold",
    b'{"size": 1, "kind": "\\ud800"}': "no UTF-8 text",
    b"\xff\xfe{}": "no UTF-8 text",
}


@pytest.mark.parametrize("data", WRONG, ids=lambda data: data[:24].decode("latin-1"))
def test_what_is_wrong_is_said_in_one_line(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(MiniloraError) as told:
        read_json(path, SCHEMA)
    line = str(told.value)
    assert line.startswith(str(path)) and WRONG[data] in line and "copy it again" in line
    assert "\n" not in line and len(line) < len(str(path)) + 300


def test_what_is_right_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(
        b'\xef\xbb\xbf{"size": 3, "rate": null, "kind": "a", "more": "\\ud83d\\ude00"}'
    )
    value = {"size": 3, "rate": None, "kind": "a", "more": "\U0001f600"}
    assert read_json(path, SCHEMA) == value


def test_only_a_regular_file_of_bounded_size_is_read(tmp_path):
    for path, told in ((tmp_path, "no regular file"), (tmp_path / "none", "does not exist")):
        with pytest.raises(MiniloraError, match=told):
            read_json(path)
    large = tmp_path / "large.json"
    large.write_bytes(b" " * 2_000_001 + b"{}")
    with pytest.raises(MiniloraError, match="2 MB, more than 1"):
        read_json(large, megabytes=1)
    assert read_json(large) == {}


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(TREES)
def test_what_json_writes_comes_back(value):
    assert parse_json(json.dumps(value), "it") == json.loads(json.dumps(value))
    assert len(shown(value, 40)) <= 40


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_one_line(data):
    try:
        parse_json(data, "it", SCHEMA)
    except MiniloraError as error:
        assert "\n" not in str(error)

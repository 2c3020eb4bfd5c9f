"""Examples from a folder, from one file, and from a data set on the hub, which a server on this
machine plays.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hub_server import cache, no_hub  # noqa: F401  fixtures

from minilora.errors import MiniloraError
from minilora.system.files import data_folder
from minilora.text import Tokenizer, encode_example, read_split
from minilora.text.sources import OnTheHub, asked, short_enough, splits

pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")
ROWS = [
    {"instruction": f"add {i}", "context": "" if i % 2 else f"to {i}", "response": str(2 * i)}
    for i in range(20)
]


class DataHub(BaseHTTPRequestHandler):
    """Has one data set with three files; asked paths are kept."""

    files = {
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        "rows.json": json.dumps(ROWS),
        "broken.jsonl": "{",
        "lines.jsonl": json.dumps(
            {**ROWS[0], "response": "one\u2028two\x85three"}, ensure_ascii=False
        )
        + "\n"
        + "".join(json.dumps(row) + "\n" for row in ROWS[1:]),
    }

    def do_GET(self):
        self.server.asked.append(self.path)
        name = self.path.rpartition("/")[2].partition("?")[0]
        there = self.path.startswith("/datasets/someone/rows/resolve/")
        body = self.files.get(name, "").encode() if there else b""
        self.send_response(200 if body else 404)
        sent = {"Content-Length": str(len(body)), "ETag": f'"{name}"', "X-Repo-Commit": "0" * 40}
        sent |= {} if body else {"X-Error-Code": "EntryNotFound" if there else "RepoNotFound"}
        for key, value in sent.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(cache, monkeypatch):  # noqa: F811
    server = ThreadingHTTPServer(("127.0.0.1", 0), DataHub)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield server
    server.shutdown(), server.server_close()


def test_a_folder_is_read_split_by_split():
    task = data_folder() / "tasks" / "mood"
    assert splits(task) == {split: read_split(task, split) for split in ("train", "valid", "test")}


def test_three_examples_are_enough_to_be_cut(tmp_path):
    path = tmp_path / "three.jsonl"
    path.write_text("".join(f'{{"prompt": "say {c}", "response": "{c}"}}\n' for c in "abc"))
    assert {name: len(found) for name, found in splits(path, held_back=0.4).items()} == {
        "train": 1,
        "valid": 1,
        "test": 1,
    }


def test_one_file_is_cut_by_seed_and_nothing_is_lost_or_doubled(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "response": f"a{i}"}) + "\n" for i in range(30))
    )
    one, again, other = splits(file), splits(file), splits(file, seed=1)
    assert one == again and one["test"] != other["test"]
    assert {split: len(found) for split, found in one.items()} == {
        "train": 24,
        "valid": 3,
        "test": 3,
    }
    assert sorted(e["prompt"] for found in one.values() for e in found) == sorted(
        f"q{i}" for i in range(30)
    )
    with pytest.raises(MiniloraError, match="too few to hold back 0.01"):
        splits(file, held_back=0.01)
    with pytest.raises(MiniloraError, match="below a half"):
        splits(file, held_back=0.5)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_data_set_on_the_hub(hub, name):
    found = splits(OnTheHub("someone/rows", name, ("instruction", "context", "response")))
    every = {e["prompt"]: e["response"] for split in found.values() for e in split}
    assert every == {f"add {i}" + ("" if i % 2 else f"\nto {i}"): str(2 * i) for i in range(20)}
    assert {split: len(examples) for split, examples in found.items()} == {
        "train": 16,
        "valid": 2,
        "test": 2,
    }
    assert any(path == f"/datasets/someone/rows/resolve/main/{name}" for path in hub.asked)


@pytest.mark.parametrize(
    "source, told",
    [
        (
            OnTheHub("someone/rows", "rows.jsonl", ("question", "response")),
            "no text in field 'question'; it has: instruction, context, response",
        ),
        (
            OnTheHub("someone/rows", "missing.jsonl"),
            "cannot fetch 'missing.jsonl' of the data set 'someone/rows' from the Hub (it has "
            "no such file)",
        ),
        (OnTheHub("someone/else", "rows.jsonl"), "there is no such repository"),
        (OnTheHub("someone/rows", "broken.jsonl"), "neither JSON Lines nor a list in JSON"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub, source, told):
    with pytest.raises(MiniloraError) as caught:
        splits(source)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_line_ends_where_json_lines_end_and_nowhere_else(hub):
    found = splits(OnTheHub("someone/rows", "lines.jsonl", ("instruction", "context", "response")))
    assert "one\u2028two\x85three" in [
        each["response"] for split in found.values() for each in split
    ]


def test_what_is_too_long_is_left_out_of_each_split():
    tokenizer = Tokenizer.from_pretrained(data_folder() / "base")
    short, long = {"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b " * 50}
    most = len(encode_example(short, tokenizer)[0])
    assert short_enough(
        {"train": [short, long], "test": [long, short, short]}, tokenizer, most
    ) == {"train": [short], "test": [short, short]}
    with pytest.raises(MiniloraError, match=f"no example of test fits into {most} tokens"):
        short_enough({"train": [short], "test": [long]}, tokenizer, most)


def test_of_each_shape_the_last_question_and_its_answer():
    turn = lambda role, content: {"role": role, "content": content}  # noqa: E731
    chat = [
        turn("system", "s"),
        turn("user", "one"),
        turn("assistant", "1"),
        turn("user", "two"),
        turn("assistant", "2"),
    ]
    found = asked(
        [
            {"prompt": "p", "response": "r"},
            {"messages": chat},
            {"messages": [turn("assistant", "alone")]},
        ]
    )
    assert found == [("p", "r"), ("two", "2"), ("", "alone")]
    with pytest.raises(MiniloraError, match="only `text` has no question"):
        asked([{"text": "a story"}])

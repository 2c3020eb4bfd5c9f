"""Lines of JSONL: what an example may look like, and errors that name the line."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ..errors import MiniloraError
from ..system.json_files import parse_json, shown
from .prompts import is_learned

SHAPES = "`prompt` and `response`, `messages`, or `text`"
FIELDS = ("prompt", "response", "messages", "text")
TOOLS = ("tools", "functions", "tool_calls", "function_call")  # of an example, of a message

# files that people have: what they are, and the Python that prints JSONL of the one it is given
TEXT = (
    "plain text; to make a row of each paragraph",
    "import json, sys; [print(json.dumps({'text': p})) "
    "for p in open(sys.argv[1]).read().split('\\n\\n')]",
)
TABLE = "a table; to make a row of each line"
ROWS = "import csv, json, sys; [print(json.dumps(r)) for r in csv.DictReader(open(sys.argv[1])%s)]"
OTHER_FORMS = {
    ".txt": TEXT,
    ".md": TEXT,
    ".csv": (TABLE, ROWS % ""),
    ".tsv": (TABLE, ROWS % ", delimiter='\\t'"),
    ".parquet": (
        "a Parquet file; to make a row of each entry",
        "import pandas, sys; print(pandas.read_parquet(sys.argv[1])"
        ".to_json(orient='records', lines=True))",
    ),
    ".json": (
        "one list; to make a row of each entry",
        "import json, sys; [print(json.dumps(r)) for r in json.load(open(sys.argv[1]))]",
    ),
}


def _problem(example) -> str | None:
    """What is wrong with one parsed line, or None."""
    if not isinstance(example, dict):
        return (
            f"is a JSON {type(example).__name__}, not an object; write one {{...}} per line with "
            f"{SHAPES}"
        )
    found = [name for name in FIELDS if name in example]
    if "prompt" in found and "messages" in found and "response" not in found:
        found.remove("prompt")  # the first question of the messages, once more
    if len({"prompt" if name == "response" else name for name in found}) > 1:
        return (
            f"has {' and '.join(f'`{name}`' for name in found)}, which say different things; keep "
            f"one of {SHAPES}"
        )
    if named := next((name for name in TOOLS if example.get(name)), None):
        return _tools(named)
    if "messages" in found:
        return _problem_in_messages(example["messages"])
    if "prompt" in example or "response" in example:
        wanted = ("prompt", "response")
    elif "text" in example:
        wanted = ("text",)
    else:
        return f"has the fields {sorted(example)}; it needs {SHAPES}"
    for field in wanted:
        if field not in example:
            return f"lacks the field `{field}`; it needs {SHAPES}"
        if not isinstance(example[field], str):
            return f"has a `{field}` that is not a text; write it as a JSON string"
    if not example[wanted[-1]]:
        return f"has an empty `{wanted[-1]}`; there is nothing to learn from it, remove the line"
    return None


def _tools(named: str) -> str:
    return (
        f"has `{named}`, and calls of tools are not written into prompts here; leave the line out, "
        "or write the whole as `text`"
    )


def _problem_in_messages(messages) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "has `messages` that are not a list with at least one message"
    for message in messages:
        if problem := _problem_in_message(message):
            return problem
    last = messages[-1]
    if last["role"] != "assistant" or not last["content"]:
        return (
            "has `messages` that do not end with an answer of the role `assistant`; add the "
            "answer to be learned"
        )
    if not any(each["role"] == "assistant" and is_learned(each) for each in messages):
        return "has no answer to learn: each has `weight: 0` or `train: false`; remove the line"
    return None


def _problem_in_message(message) -> str | None:
    if isinstance(message, dict) and (named := next((n for n in TOOLS if message.get(n)), None)):
        return "has a message that " + _tools(named)
    if not isinstance(message, dict) or not all(
        isinstance(message.get(field), str) for field in ("role", "content")
    ):
        return "has a message without `role` and `content` as texts"
    for field, values in (("weight", (0, 1, None)), ("train", (True, False, None))):
        if message.get(field) not in values:
            return (
                f"has a message whose `{field}` is {shown(message[field])}; an answer is learned "
                "(1, true) or not (0, false)"
            )
    if message["role"] != "assistant" and message.get("train"):
        return (
            f"has a message of the role {shown(message['role'])} with `train: true`; only answers "
            "of the role `assistant` are learned"
        )
    if message["role"] == "assistant" and not message["content"] and is_learned(message):
        return (
            "has an empty message of the role `assistant`, so `messages` do not end with an answer "
            "or stop before one; leave it out, or give it `weight: 0`"
        )
    return None


def read_examples(path: str | os.PathLike) -> list[dict]:
    """The examples of a JSONL file, in order; empty lines are skipped.

    Raises MiniloraError that names file and line for what is no JSON, lacks a field, or is empty.
    """
    path = Path(path)
    lines = _text(path).split("\n")
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        example = parse_json(line, where, remedy="write one JSON object of valid Unicode per line")
        if isinstance(example, dict):  # a table's empty cells
            example = {k: v for k, v in example.items() if v is not None or k not in FIELDS}
        if problem := _problem(example):
            raise MiniloraError(f"{where} {problem}")
        examples.append(example)
    if not examples:
        raise MiniloraError(f"{path} is empty; write one JSON object per line with {SHAPES}")
    return examples


def _require_lines(path: Path, data: bytes) -> None:
    """Raise MiniloraError, with the command that makes JSONL of it, for a file of another form."""
    form, begin = path.suffix.lower(), data[:100].lstrip(b"\xef\xbb\xbf \r\n")[:1]
    if form in OTHER_FORMS and begin != b"{" and (form == ".json") == (begin == b"["):
        kind, code = OTHER_FORMS[form]
        command = f'python -c "{code}" {shlex.quote(str(path))} > data.jsonl'
        raise MiniloraError(f"{path} is {kind}: {command}")


def _text(path: Path) -> str:
    """All of the file. Raises MiniloraError for what cannot be read, or cannot be JSONL."""
    if path.is_dir():
        raise MiniloraError(f"{path} is a folder; name the .jsonl file in it")
    if not path.is_file():
        odd = ", which is no regular file" if path.exists() else ""
        raise MiniloraError(
            f"no data at {path}{odd}; give a .jsonl file or a folder with train.jsonl, "
            "valid.jsonl and test.jsonl"
        )
    try:
        data = path.read_bytes()
        _require_lines(path, data)
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise MiniloraError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise MiniloraError(
            f"cannot read {path}: {error.strerror}; check its permissions"
        ) from error


def read_split(path: str | os.PathLike, split: str) -> list[dict]:
    """The examples of `split` ("train", "valid", "test") in a data folder; a file is taken as it
    is.
    """
    path = Path(path)
    if not path.is_dir():
        return read_examples(path)
    file = path / f"{split}.jsonl"
    if not file.is_file():
        there = ", ".join(sorted(f.name for f in path.glob("*.jsonl"))) or "no .jsonl file"
        raise MiniloraError(
            f"no {split}.jsonl in {path} (there is {there}); add it or name another folder"
        )
    return read_examples(file)

"""Lines of JSONL: what an example may look like, and errors that name the line."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import MiniloraError

SHAPES = "`prompt` and `response`, `messages`, or `text`"


def _problem(example) -> str | None:
    """What is wrong with one parsed line, or None."""
    if not isinstance(example, dict):
        return (
            f"is a JSON {type(example).__name__}, not an object; write one {{...}} per line with "
            f"{SHAPES}"
        )
    if "prompt" in example or "response" in example:
        wanted = ("prompt", "response")
    elif "messages" in example:
        return _problem_in_messages(example["messages"])
    elif "text" in example:
        wanted = ("text",)
    else:
        return f"has the fields {sorted(example)}; it needs {SHAPES}"
    for field in wanted:
        if field not in example:
            return f"lacks the field `{field}`; it needs {SHAPES}"
        if not _is_text(example[field]):
            return f"has a `{field}` that is not a text; write it as a JSON string of valid Unicode"
    if not example[wanted[-1]]:
        return f"has an empty `{wanted[-1]}`; there is nothing to learn from it, remove the line"
    return None


def _is_text(value) -> bool:
    """True for a string that UTF-8 can hold: JSON lets half a surrogate pair through."""
    return isinstance(value, str) and not any(
        "\ud800" <= character <= "\udfff" for character in value
    )


def _problem_in_messages(messages) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "has `messages` that are not a list with at least one message"
    for message in messages:
        if not isinstance(message, dict) or not all(
            _is_text(message.get(field)) for field in ("role", "content")
        ):
            return "has a message without `role` and `content` as texts"
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        return (
            "has `messages` that do not end with an answer of the role `assistant`; add the "
            "answer to be learned"
        )
    return None


def read_examples(path: str | os.PathLike) -> list[dict]:
    """The examples of a JSONL file, in order; empty lines are skipped.

    Raises MiniloraError that names file and line for what is no JSON, lacks a field, or is empty.
    """
    path = Path(path)
    if path.is_dir():
        raise MiniloraError(f"{path} is a folder; name the .jsonl file in it")
    if not path.is_file():
        raise MiniloraError(
            f"no data at {path}; give a .jsonl file or a folder with train.jsonl, valid.jsonl "
            "and test.jsonl"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise MiniloraError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise MiniloraError(
            f"cannot read {path}: {error.strerror}; check its permissions"
        ) from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise MiniloraError(
                f"{path}, line {number} is not JSON ({error}); write one JSON object per line"
            ) from error
        if problem := _problem(example):
            raise MiniloraError(f"{path}, line {number} {problem}")
        examples.append(example)
    if not examples:
        raise MiniloraError(f"{path} is empty; write one JSON object per line with {SHAPES}")
    return examples


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

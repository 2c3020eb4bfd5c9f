"""JSON that somebody else wrote, read in one place.

What it replaces: `json.loads(path.read_text())` and then a key that is missing, a number that is a
text, 200,000 brackets, a lone half of a surrogate pair.
How it works: the bytes are bounded, decoded and parsed strictly; what comes out is compared with a
JSON schema by the library `jsonschema`. Whatever is wrong ends in one line that names the file, the
field, its value and what belongs there.
What it leaves out: what a schema cannot say, such as one field that must divide another; whoever
reads the fields checks that.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from ..errors import MiniloraError

MEGABYTES = 16  # a config.json has a few KB; a tokenizer.json, read with a limit of its own, 33 MB
AGAIN = "copy it again from where it came"

KINDS = {  # how a schema's types are called for people
    "null": "null",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "array": "a list",
    "object": "an object in {}",
}


def read_json(
    path: str | os.PathLike,
    schema: dict | None = None,
    *,
    remedy: str = AGAIN,
    megabytes: float = MEGABYTES,
) -> Any:
    """The content of the JSON file `path`, which follows `schema`.

    Raises MiniloraError, in one line with `remedy`, if there is no such regular file, if it is
    larger than `megabytes`, or for what `parse_json` refuses.
    """
    return parse_json(read_bytes(path, remedy=remedy, megabytes=megabytes), path, schema, remedy)


def read_bytes(
    path: str | os.PathLike, *, remedy: str = AGAIN, megabytes: float = MEGABYTES
) -> bytes:
    """All of a regular file that is not larger than `megabytes` (10^6 bytes each)."""
    path = Path(path)
    try:
        if not path.is_file():  # a device or a pipe might never end
            there = "is no regular file" if path.exists() else "does not exist"
            raise MiniloraError(f"{path} {there}; {remedy}")
        size = path.stat().st_size
        if size > megabytes * 1e6:
            raise MiniloraError(
                f"{path} has {size / 1e6:.0f} MB, more than {megabytes:g}; {remedy}"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, MiniloraError):
            raise
        raise MiniloraError(
            f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); {remedy}"
        ) from error


def parse_json(
    data: str | bytes,
    name: str | os.PathLike,
    schema: dict | None = None,
    remedy: str = AGAIN,
) -> Any:
    """`data` as JSON, called `name` in errors.

    Raises MiniloraError for bytes that are not UTF-8, text that is not JSON, NaN and infinities,
    whole numbers of thousands of digits, nesting that Python cannot follow, half a surrogate pair,
    and what does not follow `schema`.
    """
    try:
        # a byte order mark is what Windows editors put in front
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        _encodable(value, text)
    except RecursionError as error:
        raise MiniloraError(f"{name} is nested too deep to be read; {remedy}") from error
    except UnicodeError as error:
        raise MiniloraError(
            f"{name} holds bytes that are no UTF-8 text ({error.reason}); {remedy}"
        ) from error
    except NoNumber as error:
        field = re.search(rf'"([^"\\]{{1,60}})"\s*:\s*{re.escape(error.text)}', text)
        told = f"{field[1]} is {_short(error)}" if field else _short(error)
        raise MiniloraError(f"{name} cannot be read as JSON ({told}); {remedy}") from error
    except ValueError as error:
        raise MiniloraError(f"{name} cannot be read as JSON ({_short(error)}); {remedy}") from error
    if schema is not None:
        require(value, schema, name, remedy)
    return value


def require(value: Any, schema: dict, name: str | os.PathLike, remedy: str = AGAIN) -> None:
    """Raise MiniloraError, naming the field, unless `value` follows the JSON `schema`."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        error = best_match(Draft202012Validator(schema).iter_errors(value))
    except RecursionError as deep:
        raise MiniloraError(f"{name} is nested too deep to be read; {remedy}") from deep
    if error is not None:
        raise MiniloraError(f"{name}: {_told(error)}; {remedy}")


def shown(value: Any, limit: int = 60) -> str:
    """A value in an error's line, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (ValueError, RecursionError):
        text = f"something of type {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _told(error) -> str:
    """jsonschema's complaint in our words: the field, its value, what belongs there."""
    field = ".".join(str(part) for part in error.absolute_path)
    subject = f"{field} is {shown(error.instance)}" if field else f"it is {shown(error.instance)}"
    rule, limit = error.validator, error.validator_value
    if rule == "type":
        kinds = [limit] if isinstance(limit, str) else limit
        return f"{subject}, where {' or '.join(KINDS[kind] for kind in kinds)} belongs"
    if rule == "enum":
        return f"{subject}, and not one of {', '.join(shown(choice) for choice in limit)}"
    if rule == "required":
        missing = [key for key in limit if key not in error.instance]
        return f"{field + ' has no' if field else 'there is no'} {', '.join(missing)}"
    words = {
        "minimum": "less than",
        "maximum": "more than",
        "exclusiveMinimum": "not more than",
        "exclusiveMaximum": "not less than",
    }
    if rule in words:
        return f"{subject}, {words[rule]} {limit}"
    return f"{subject}: {_short(error.message)}"


def _short(error: object, limit: int = 120) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


class NoNumber(ValueError):
    """`text` stands where a number should, and is none that JSON has."""

    def __init__(self, text: str, why: str) -> None:
        super().__init__(f"{_short(text, 40)}{why}")
        self.text = text


def _no_constant(name: str):
    raise NoNumber(name, ", which is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise NoNumber(text, ", which is beyond what a number can hold")
    return value


def _encodable(value: Any, text: str) -> None:
    """Half a surrogate pair, written as an escape, could never be printed or saved again."""
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")

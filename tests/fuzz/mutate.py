"""Damage of all kinds, drawn from a seeded generator: what editors, broken downloads, other
programs and people do to files.
"""

from __future__ import annotations

import copy
import json
import struct
from random import Random
from typing import Any

VALUES: list[Any] = [
    *(None, True, False, "", "x", "None", "true", "1", "1e-6", "float32", "../x", "😀", "a" * 300),
    *(-1, 0, 1, 2, 3, 7, 64, 65, 1000, 10**6, 2**31, 2**63, 2**64, -(2**63), 10**30),
    *(0.0, -0.5, 0.5, 1.5, 1e-300, 1e-6, 1e300, [], {}, [1], ["x"], [[1]], [None], {"a": 1}),
    *({"type": "linear", "factor": 2.0}, {"content": "x"}, [0, 1], "(.*)*x", "model", [2, 1]),
]
TEXTS = [b"", b" ", b"null", b"[]", b"{}", b"0", b'"x"', b"[" * 200_000, b'{"a":' * 5000, b"\x00"]
TEXTS += [b"\xff\xfe\x00", b"9" * 5000, b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xef\xbb\xbf{}"]
PIECES = [b"\x00", b"\xff", b'"', b"{", b"}", b"[", b"]", b",", b"\n", b"\\", b"9" * 400, b"NaN"]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of each value inside a JSON value, but for the whole."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, each in inner:
        found.append((*path, key))
        if isinstance(each, (dict, list)):
            found += places(each, (*path, key))
    return found


def bytes_damaged(rng: Random, data: bytes) -> bytes:
    """A few bytes flipped, put in or taken out; or the end, or a part, missing or doubled."""
    if not data:
        return rng.choice(PIECES)
    place = rng.randrange(len(data))
    kind = rng.randrange(6)
    if kind == 0:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 1:
        return data[:place] + rng.choice(PIECES) + data[place:]
    if kind == 2:
        return data[:place]
    end = min(len(data), place + rng.choice((1, 2, 8, 100)))
    if kind == 3:
        return data[:place] + data[end:]
    if kind == 4:
        return data[:end] + data[place:]
    return rng.choice(TEXTS)


def json_damaged(rng: Random, data: bytes) -> bytes:
    """One to three fields of a JSON object changed, dropped, renamed or added; or its bytes."""
    if rng.random() < 0.15:
        return bytes_damaged(rng, data)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        there = places(value)
        if not there:
            break
        *path, last = rng.choice(there)
        inside = value
        for key in path:
            inside = inside[key]
        kind = rng.randrange(8)
        if kind < 5:
            inside[last] = (
                near(rng, inside[last]) if kind == 4 else copy.deepcopy(rng.choice(VALUES))
            )
        elif kind == 5:
            del inside[last]
        elif kind == 6 and isinstance(inside, dict):
            inside[f"{last}{rng.choice(('_', 's', ' '))}"] = inside.pop(last)
        elif isinstance(inside, list):
            inside.append(copy.deepcopy(rng.choice(VALUES)))
    return json.dumps(value).encode()


def near(rng: Random, value: Any) -> Any:
    """A value of the same type, not far away."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, value, -2 * value, 7))
    if isinstance(value, float):
        return value * rng.choice((0.5, 2.0, -1.0, 10.0))
    if isinstance(value, str):
        return rng.choice((value.upper(), value[:-1], value + "x", value[::-1], f" {value}"))
    return str(value)


def lines_damaged(rng: Random, data: bytes) -> bytes:
    """One line of JSON Lines damaged."""
    if rng.random() < 0.15:
        return bytes_damaged(rng, data)
    lines = data.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = json_damaged(rng, lines[number])
    return b"\n".join(lines) + b"\n"


def tensors_damaged(rng: Random, data: bytes) -> bytes:
    """A safetensors file: its header's JSON, its length, numbers set to NaN or infinity, bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = rng.randrange(10)
    if kind < 4:
        header = json_damaged(rng, header)
        return struct.pack("<Q", len(header)) + header + body
    if kind < 6:
        return _renamed_or_reshaped(rng, json.loads(header), body)
    if kind == 6:
        values = bytearray(body)
        place = 4 * rng.randrange(max(1, len(body) // 4))
        values[place : place + 4] = struct.pack(
            "<f", rng.choice((float("nan"), float("inf"), 1e30))
        )
        return data[: 8 + length] + bytes(values[: len(body)])
    if kind == 7:
        wrong = rng.choice((0, 1, length - 1, length + 1, 2**20, 2**40, 2**63 - 1, 2**64 - 1))
        return struct.pack("<Q", wrong) + data[8:]
    return bytes_damaged(rng, data)


def _renamed_or_reshaped(rng: Random, header: dict, body: bytes) -> bytes:
    """What stays a file that safetensors reads: another name, shape or type of the same bytes."""
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    kind = rng.randrange(6)
    if kind == 0:
        header[name + rng.choice(("x", ".bias", "_scale"))] = header.pop(name)
    elif kind == 1:
        other = rng.choice(names)
        header[name], header[other] = header[other], header[name]
    elif kind == 2:
        entry["shape"] = entry["shape"][::-1]
    elif kind == 3:
        count = 1
        for size in entry["shape"]:
            count *= size
        entry["shape"] = rng.choice(([count], [1, count], [count, 1], [1, *entry["shape"]]))
    elif kind == 4 and entry["dtype"] in ("F32", "I32", "U32"):
        entry["dtype"] = rng.choice(("I32", "U32"))
    else:
        for each in names:
            prefix = rng.choice(("model.", "module.", "_orig_mod.", "base_model."))
            header[prefix + each] = header.pop(each)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


TEMPLATE_PARTS = [
    "{{ 1 / 0 }}",
    "{{ messages[99].content }}",
    "{{ nothing.there }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ [0] * 10 ** 9 }}",
    "{{ '%999999999d' % 5 }}",
    "{{ 'x'.center(10 ** 9) }}",
    "{{ 'x'|center(10 ** 9) }}",
    "{{ '{:>999999999}'.format(5) }}",
    "{{ 10 ** 10 ** 7 }}",
    "{{ 7 ** 7 ** 7 ** 7 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ raise_exception('no') }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.__class__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages|tojson }}",
    "{{ messages|join }}",
    "{{ strftime_now(5) }}",
    "{{ messages.append(1) }}",
    "{% set x = messages %}{{ x.clear() }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{{ lipsum(n=10000) }}",
    "{{ dict(a=1) }}",
    "{{ namespace(a=1).a }}",
    "{{ '\\ud800' }}",
    "{{ messages|map('upper')|list }}",
    "{{ messages|batch(10 ** 8)|list }}",
    "{{ 'x'|indent(10 ** 9) }}",
    "{{ 'x y'|wordwrap(0) }}",
    "{{ range(10 ** 9)|list }}",
    "{{ range(10 ** 5)|sum }}",
    "{% break %}",
    "{%",
    "}}",
    "{% endif %}",
    "{% generation %}x{% endgeneration %}",
]


def template_damaged(rng: Random, text: str) -> str:
    """A chat template with a part of another kind in it, or with characters missing."""
    place = rng.randrange(len(text) + 1)
    kind = rng.randrange(5)
    if kind < 3:
        ends = [0, len(text), place]
        place = rng.choice(ends)
        return text[:place] + rng.choice(TEMPLATE_PARTS) + text[place:]
    if kind == 3:
        return text[:place] + text[min(len(text), place + rng.choice((1, 3, 10, 40))) :]
    return bytes_damaged(rng, text.encode()).decode("utf-8", "replace")

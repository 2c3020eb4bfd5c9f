"""run.json: what a run was started with, on what, and which files it made.

What it replaces: a settings file that is believed without a look. How it works: it is read against
a schema. `identity` is what of a run decides its numbers: each saved state carries it, so that a
run.json of another run, or an edited one, is not taken for this one's.
What it leaves out: whether each setting is one that can be; who uses it checks that.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from ..system.json_files import read_json
from .config import FREE, SAME_PRODUCT, declared

ABOUT = "run.json"
ANEW = "begin anew with another --out or --overwrite"

QUANTIZATION = {  # how the base was quantized: arguments of qlora.base.quantize_base
    "type": ["object", "null"],
    "required": ["code"],
    "properties": {
        "code": {"type": "string"},
        "double": {"type": "boolean"},
        "block": {"type": "integer", "minimum": 1, "maximum": 65536},
        "threshold": {"type": "number"},
    },
    "additionalProperties": False,
}

SCHEMA = {
    "type": "object",
    "required": ["settings"],
    "properties": {
        "settings": {"type": "object"},
        "quantization": QUANTIZATION,
        "marks": {"type": "object", "additionalProperties": {"type": "string"}},
        "files": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "string"}},
        },
    },
}


def read_about(folder: Path, remedy: str = ANEW) -> dict | None:
    """What run.json in `folder` says, or None where there is none. Raises MiniloraError for one
    that cannot be read, or is no run's.
    """
    path = folder / ABOUT
    return read_json(path, SCHEMA, remedy=remedy) if path.is_file() else None


def identity(kind: type, settings: Mapping, marks: Mapping) -> str:
    """A sum over what decides the numbers of a run: its settings, declared in `kind`, without those
    that may change while it goes on or have their default, and the marks of its data and base.
    """
    known = declared(kind)
    rules = {name: each.metadata["resume"] for name, each in known.items()}
    decides = {
        name: value
        for name, value in settings.items()
        if name in known and rules[name] not in (FREE, SAME_PRODUCT) and name not in marks
        if value != known[name].default
    }
    together = [settings.get(name, 1) for name, rule in rules.items() if rule == SAME_PRODUCT]
    text = json.dumps([decides, math.prod(together), marks], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

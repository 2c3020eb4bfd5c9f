"""generation_config.json: what else ends a text, read beside config.json and written back.

What it replaces: transformers' `GenerationConfig`, as far as it says where a text ends.
How it works: the ids that it names join those of config.json, and `Config.eos_token_id` has them
all from then on. The other fields (temperature, top_p, …) are kept as they are, for whoever reads
the folder next; a saved folder names all the ends here, where transformers looks first.
What it leaves out: obeying the other fields; `generate` has them as arguments.
Where it differs: transformers stops at the ids of this file alone where there is one, and never
where it names none.
"""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from ..system.json_files import read_json
from .config import Config

NAME = "generation_config.json"
SCHEMA = {
    "type": "object",
    "properties": {
        "eos_token_id": {"type": ["integer", "array", "null"], "items": {"type": "integer"}}
    },
}


def ids_of(value: int | list[int] | None) -> list[int]:
    """One id, several or none, as config.json has them, as a list."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def read(folder: str | PathLike, config: Config) -> dict[str, Any]:
    """The fields of the folder's generation_config.json, none where there is no such file; the ends
    that it names join those of `config`.

    Raises MiniloraError if it is no JSON, or names ends that are no whole numbers.
    """
    file = Path(folder) / NAME
    if not file.exists():
        return {}
    fields = read_json(file, SCHEMA, remedy="mend it, or take it away")
    add_ends(config, ids_of(fields.get("eos_token_id")))
    return fields


def add_ends(config: Config, ids: list[int]) -> None:
    """Let `ids` end a text, too; what the vocabulary does not have never comes, and is left out."""
    ends = ids_of(config.eos_token_id)
    there = (int(each) for each in ids if 0 <= each < config.vocab_size)
    both = list(dict.fromkeys((*ends, *there)))
    if len(both) > len(ends):
        config.eos_token_id = both if len(both) > 1 else both[0]


def write(fields: dict[str, Any], config: Config, folder: Path, beside: Path) -> None:
    """Write the file into `folder`, with every end that `config` has, where the model came with
    such `fields`, or where `beside` holds one from before: transformers would stop by that one.
    """
    if not fields and not (beside / NAME).exists():
        return  # transformers asks config.json
    fields = fields | {"eos_token_id": config.eos_token_id}
    (folder / NAME).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")

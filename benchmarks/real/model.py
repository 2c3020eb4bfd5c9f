"""The real model of these benchmarks, where it is, and what every results file says of it."""

from __future__ import annotations

import json
from pathlib import Path

NAME = "smollm2-135m"


def folder() -> Path | None:
    """Where the model lies; None, and a line, where it is not here."""
    from minilora.models import cache

    found = cache.have(NAME)
    if found is None:
        print(f"left out: `minilora models --fetch {NAME}` fetches the model that this needs")
    return found


def about(place: Path) -> dict:
    """The model's name, hash and way here, and which text it is scored on."""
    from minilora.course import real_text
    from minilora.models import cache
    from minilora.recipes.finetune import fingerprint_folder
    from minilora.text import Tokenizer

    source = json.loads((place / cache.SOURCE).read_text(encoding="utf-8"))
    rows = real_text.rows_to_score(Tokenizer.from_pretrained(place))
    return {
        "model": NAME,
        "weights": fingerprint_folder(place)[:16],
        "source": source["source"],
        "went_through": source.get("went_through", ""),
        "text": f"{len(rows)} × {len(rows[0][0])} tokens of {real_text.told()}",
        "text_hash": real_text.fingerprint(rows),
    }

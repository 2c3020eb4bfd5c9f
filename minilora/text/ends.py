"""Where an answer ends: the one rule for training, scoring, chats and preference.

What it replaces: `eos_token_id` handed to each call of `generate`, and a pad token that is EOS.
How it works: a row ends with the tokenizer's EOS, in a chat behind whatever the template ends a
turn with, and both are learned. An answer ends at the first id that the tokenizer, config.json or
generation_config.json calls an end: a chat's model may end its turns by another token than the one
that its tokenizer calls EOS.
What it leaves out: texts that end an answer (transformers' `stop_strings`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import MiniloraError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


def model_ends(model: Any) -> list[int]:
    """The ids that the model's own files call ends, as far as the model has them. A Llama of ours
    has those of both files in its config; transformers keeps generation_config.json's apart.
    """
    size = getattr(getattr(model, "config", None), "vocab_size", float("inf"))
    named = [
        getattr(getattr(model, where, None), "eos_token_id", None)
        for where in ("generation_config", "config")
    ]
    lists = [each if isinstance(each, (list, tuple)) else [each] for each in named]
    ids = (each for several in lists for each in several if each is not None)
    return list(dict.fromkeys(each for each in ids if 0 <= each < size))


def answer_ends(model: Any, tokenizer: Tokenizer) -> list[int]:
    """All ids that end an answer, in ascending order."""
    return sorted({tokenizer.eos_id, *model_ends(model)})


def end_of(ids: Sequence[int], ends: Collection[int]) -> int:
    """Where the first end stands among `ids`; their number where there is none."""
    return next((place for place, each in enumerate(ids) if each in ends), len(ids))


def require_ids(model: Any, tokenizer: Tokenizer) -> None:
    """Raise MiniloraError if the tokenizer's EOS or padding token is none of the model's ids."""
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    for role, token, number in (
        ("eos_token", tokenizer.eos, tokenizer.eos_id),
        ("pad_token", tokenizer.pad, tokenizer.pad_id),
    ):
        if size is not None and number >= size:
            raise MiniloraError(
                f"the tokenizer's {role} {token!r} has the id {number}, and the model knows 0 to "
                f"{size - 1}; name another {role} in tokenizer_config.json, or give the model a "
                "row for it (transformers' resize_token_embeddings)"
            )


def tell_end(model: Any, tokenizer: Tokenizer) -> None:
    """Tell the model the tokenizer's EOS: it stops there by itself, and so does whoever loads the
    folder that it is saved to.
    """
    # where transformers keeps what its generate obeys; a Llama of ours has it in its config
    told = getattr(model, "generation_config", None) or model.config
    now = told.eos_token_id if isinstance(told.eos_token_id, (list, tuple)) else [told.eos_token_id]
    ends = answer_ends(model, tokenizer)
    if not set(ends) <= set(now):
        told.eos_token_id = ends if len(ends) > 1 else ends[0]

"""A tokenizer.json as llama.cpp keeps it: tokens, their types, and what joins them.

What it replaces: the vocabulary part of llama.cpp's `convert_hf_to_gguf.py`, which knows a
tokenizer by a hash of its ids for one text.
How it works: llama.cpp has the rules of its tokenizers in C++ and takes only a name from the file.
So the rules in tokenizer.json are compared with the ones behind each name. Two families are
written: byte-level BPE (`gpt2`), whose name says how text is cut before it is merged, and
SentencePiece's BPE with bytes for unknown characters (`llama`), which merges whatever makes a
token, best score first. Where the rules are not the same for every text, MiniloraError says so.
What it leaves out: unigram and word-piece tokenizers.
Where it differs: llama.cpp does not normalize text, so a tokenizer that does (NFC, Qwen) gives
other ids for letters that are written as two characters; `notes` says it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import MiniloraError
from ..system.gguf_words import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from ..text.gguf_tokenizer import CUTS, UNMERGED, cutting, spaces

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

IN_TEXT = [byte for byte in range(256) if byte < 0xC0 or 0xC2 <= byte < 0xF5]  # in UTF-8
OURS = r" ?[a-z]+'?|[A-Z][a-z]*|\d|\n| ?[^\sA-Za-z\d]+|\s"  # the shipped base's
# llama.cpp's names that are written, one for each way of cutting
WRITTEN = ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2")


@dataclass
class Vocabulary:
    """What goes into a file under `tokenizer.ggml`. Token i of `tokens` has type `types[i]`."""

    model: str  # gpt2 or llama
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] | None = None
    scores: list[float] | None = None
    space_prefix: bool | None = None  # llama only: a space before each stretch of text
    notes: list[str] = field(default_factory=list)  # what the user should know


def read(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of `tokenizer` for a model with `size` rows of embedding.

    Raises MiniloraError if llama.cpp has no tokenizer that gives the same ids.
    """
    fields = json.loads(tokenizer.backend.to_str())
    model = fields["model"]
    if model["type"] != "BPE":
        raise _no_such(f"it is of type {model['type']}, and only BPE can be written")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _no_such(f"its {name} is {model[name]!r}")
    added = fields["added_tokens"]
    for token in added:
        for name in ("lstrip", "rstrip", "single_word"):
            if token[name]:
                raise _no_such(f"its token {token['content']!r} has {name}")
    tokens, types = _tokens(model["vocab"], added, size)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    cut = _cut(fields["pre_tokenizer"])
    if ("bytes", True) in cut or ("bytes", False) in cut:
        return _byte_level(fields, cut, tokens, types, merges)
    return _sentencepiece(fields, tokens, types, merges)


def _no_such(reason: str) -> MiniloraError:
    return MiniloraError(
        f"llama.cpp has no tokenizer that is the same as this model's: {reason}; serve the folder "
        "by a program that reads tokenizer.json, such as vLLM"
    )


def _tokens(vocab: dict[str, int], added: list[dict], size: int) -> tuple[list[str], list[int]]:
    """Each token's text and type by id; ids that only the embedding has are named and unused."""
    tokens, types = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    kinds = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in added}
    entries = vocab | {token["content"]: token["id"] for token in added}
    for text, number in entries.items():
        if number >= size:
            raise MiniloraError(
                f"the token {text!r} has the id {number}, and the model's embedding only {size} "
                "rows; give the tokenizer that belongs to the model"
            )
        tokens[number], types[number] = text, kinds.get(text, NORMAL)
    if len(set(tokens)) < size:
        twice = next(text for text in tokens if tokens.count(text) > 1)
        raise _no_such(f"two ids have the text {twice!r}")
    return tokens, types


def _cut(pre: dict | None) -> tuple:
    """How text is cut before merging, step by step, in a form that compares."""
    if pre is None:
        return ()
    if pre["type"] == "Sequence":
        return tuple(step for part in pre["pretokenizers"] for step in _cut(part))
    if pre["type"] == "ByteLevel" and not pre["add_prefix_space"]:
        return (("bytes", pre["use_regex"]),)
    if pre["type"] == "Digits":
        return (("digits", pre["individual_digits"]),)
    if pre["type"] == "Split" and "Regex" in pre["pattern"]:
        # every character is in some match: what lies between two matches is nothing
        whole = (pre["behavior"], pre["invert"]) in {("Isolated", False), ("Removed", True)}
        return (pre["pattern"]["Regex"],) if whole else (json.dumps(pre),)
    return (json.dumps(pre, sort_keys=True),)


def _names() -> dict[tuple, str]:
    """(how text is cut, is a whole piece that is a token taken unmerged) → llama.cpp's name."""
    found = {
        (tuple(step for part in cutting(CUTS[name]) for step in _cut(part)), name in UNMERGED): name
        for name in WRITTEN
    }
    found[((OURS, ("bytes", False)), False)] = "superbpe"  # see `_no_merge_crosses`
    return found


def _byte_level(fields: dict, cut: tuple, tokens, types, merges) -> Vocabulary:
    notes = []
    name = _names().get((cut, bool(fields["model"].get("ignore_merges"))))
    if name is None:
        raise _no_such(f"it cuts text by rules that none there has ({_shortly(cut)})")
    normalizer = fields["normalizer"]
    if normalizer is not None:
        if normalizer["type"] != "NFC":
            raise _no_such(f"it normalizes text by {_shortly(normalizer)}")
        notes.append(
            "llama.cpp does not normalize text (NFC); a letter written as two characters, "
            "letter and accent, gets other tokens there"
        )
    letters, known = byte_letters(), set(tokens)
    missing = [byte for byte in IN_TEXT if letters[byte] not in known]
    if missing and fields["model"].get("unk_token"):
        raise _no_such(f"it has one token for all unknown bytes ({missing[0]:#x} is one)")
    if missing:
        notes.append(
            f"{len(missing)} bytes have no token ({', '.join(map(hex, missing[:8]))}); text with "
            "them, such as control characters, may get other tokens in llama.cpp"
        )
    if cut[0] == OURS:
        _no_merge_crosses(merges)
    return Vocabulary(
        "gpt2", name, tokens, types, merges=[" ".join(pair) for pair in merges], notes=notes
    )


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def _no_merge_crosses(merges: list[tuple[str, str]]) -> None:
    """Raise MiniloraError unless text that is cut nowhere but around digits is merged as if it had
    been cut by OURS.

    `superbpe` cuts at digits alone. A cut between two characters matters only if a merge could
    join them. OURS cuts inside none of these, whatever stands around them: letters that begin with
    a space, a capital, or a small letter; a space and signs; signs. A word's apostrophe is cut off
    where the word began with a capital, so it may only follow letters that begin with a space.
    """
    safe = re.compile(r"Ġ?[a-z]+|Ġ[a-z]+'|[A-Z][a-z]*|Ġ?[!-&(-/:-@\[-`{-~]+")
    for left, right in merges:
        if not safe.fullmatch(left + right):
            raise _no_such(f"its merge of {left!r} and {right!r} may cross a cut")


def _sentencepiece(fields: dict, tokens, types, merges) -> Vocabulary:
    model, normalizer = fields["model"], fields["normalizer"] or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    prefix = steps == spaces(True)
    if fields["pre_tokenizer"] is not None or steps != spaces(prefix):
        raise _no_such(
            "it puts spaces before words by rules that none there has "
            f"({_shortly(fields['pre_tokenizer'] or normalizer)})"
        )
    if any(token["normalized"] for token in fields["added_tokens"]):
        raise _no_such("it puts spaces before text that it then reads as one special token")
    known = {text: number for number, text in enumerate(tokens)}
    for byte in range(256):
        if not model.get("byte_fallback") or f"<0x{byte:02X}>" not in known:
            raise _no_such("it has no token for each of the 256 bytes")
        types[known[f"<0x{byte:02X}>"]] = BYTE
    if model.get("unk_token") in known:
        types[known[model["unk_token"]]] = UNKNOWN
    pieces = {text for text, kind in zip(tokens, types) if kind == NORMAL}
    scores = _scores(pieces, merges)
    return Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        scores=[scores.get(text, 0.0) for text in tokens],
        space_prefix=prefix,
    )


def _scores(pieces: set[str], merges: list[tuple[str, str]]) -> dict[str, float]:
    """A score for each piece, so that the best score first is the first merge first.

    llama.cpp merges any two neighbours that make a piece. That is the same if every such pair is a
    merge, and the pairs that make one piece stand together in the list. Raises MiniloraError
    otherwise.
    """
    # special tokens are taken out of the text before, so nothing ever merges to one, or with one
    merges = [
        (left, right)
        for left, right in merges
        if left + right in pieces and _symbol(left, pieces) and _symbol(right, pieces)
    ]
    pairs = {
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if _symbol(piece[:at], pieces) and _symbol(piece[at:], pieces)
    }
    if pairs != set(merges):
        left, right = min(pairs ^ set(merges))
        raise _no_such(f"{left + right!r} is a token, but {left!r} and {right!r} are no merge")
    order: dict[str, float] = {}
    last = ""
    for left, right in merges:
        if left + right != last and left + right in order:
            raise _no_such(f"the merges that make {left + right!r} do not stand together")
        last = left + right
        order.setdefault(last, -float(len(order)))
    return order


def _symbol(text: str, pieces: set[str]) -> bool:
    """Can `text` stand by itself on the way? Any single character can."""
    return len(text) == 1 or text in pieces


def _shortly(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"

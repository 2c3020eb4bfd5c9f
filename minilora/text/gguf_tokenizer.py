"""A tokenizer out of the metadata of a GGUF, as a tokenizer.json.

What it replaces: transformers' tokenizers for `gguf_file=`.
How it works: the file has the words, their types, and the merges or scores; of the rules by which
text is cut before it is merged it has only a name (`tokenizer.ggml.pre`), and llama.cpp has the
rules. `CUTS` has them in the form of the library `tokenizers`. Two families are read: byte-level
BPE (`gpt2`) and SentencePiece's BPE (`llama`), whose merges follow from the scores.
What it leaves out: unigram and word-piece tokenizers, and rules of which no Llama here is known.
Where it differs: ids are llama.cpp's, and those of the model's own tokenizer.json. transformers
takes GPT-2's rules for every name that it does not know, SmolLM2's among them: where spaces come
before a digit, its ids are others. Before a SentencePiece text that begins with a space it puts no
second one.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import MiniloraError
from ..system.gguf_reader import AGAIN, Header, read_header
from ..system.gguf_words import CONTROL, NORMAL, SPM_IDS, UNKNOWN, UNUSED, USER_DEFINED
from ..system.json_files import shown

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
START = r"[^\r\n\p{L}\p{N}]?"
REST_SLASH = REST.replace(r"[\r\n]*", r"[\r\n/]*")
LLAMA3 = f"{CONTRACTIONS}|{WORDS}|\\p{{N}}{{1,3}}|{REST}"
QWEN2 = f"{CONTRACTIONS}|{WORDS}|\\p{{N}}|{REST}"
TEKKEN = f"{START}{UPPER}*{LOWER}+|{START}{UPPER}+{LOWER}*|\\p{{N}}|{REST_SLASH}"
GPT4O = (
    f"{START}{UPPER}*{LOWER}+{CONTRACTIONS}?|{START}{UPPER}+{LOWER}*{CONTRACTIONS}?"
    f"|\\p{{N}}{{1,3}}|{REST_SLASH}"
)
DIGITS = r"\p{N}"  # each for itself

# How text is cut, one pattern after the other, by llama.cpp's name for it.
CUTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (DIGITS, GPT2)),
    **dict.fromkeys(("exaone", "minerva-7b"), (DIGITS, GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), (LLAMA3,)),
    **dict.fromkeys(("smaug-bpe", "dbrx", "glm4"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), (QWEN2,)),
    "tekken": (TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4"), (GPT4O,)),
    "superbpe": (r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
# with BOS before a text, if the file does not say otherwise
BEGIN = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "tekken")
UNMERGED = (*BEGIN, "glm4")  # a piece that is a token is taken as it is


def build(header: Header) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tokenizer.json, tokenizer_config.json) of a GGUF.

    Raises MiniloraError for a kind of tokenizer that is not read here, and for metadata that
    contradict themselves.
    """
    get = header.fields.get
    kind = get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        told = "has no tokenizer" if kind in (None, "none", "no_vocab") else f"has {shown(kind)}"
        raise MiniloraError(
            f"{header.path} {told} (tokenizer.ggml.model), and byte-level BPE (gpt2) and "
            "SentencePiece's BPE (llama) are read here; take the model's folder with its "
            "tokenizer.json"
        )
    words, types = _words(header)
    made = (_byte_level if kind == "gpt2" else _sentencepiece)(header, words, types)
    config = _special(header, words)
    if _begins(header, kind) and config.get("bos_token"):
        made["post_processor"] = _with_bos(config["bos_token"], words)
    template = get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise _wrong(header, "tokenizer.chat_template", template)
        config["chat_template"] = template
    return made, config


def write(header: Header, folder: Path) -> None:
    """Put tokenizer.json and tokenizer_config.json into `folder`. Raises MiniloraError as `build`
    does.
    """
    for name, content in zip(("tokenizer.json", "tokenizer_config.json"), build(header)):
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


@contextlib.contextmanager
def laid_out(path: str | os.PathLike) -> Iterator[Path]:
    """A folder with the tokenizer of the GGUF `path`, as long as the block lasts."""
    header = read_header(path)
    with tempfile.TemporaryDirectory() as folder:
        write(header, Path(folder))
        yield Path(folder)


def _wrong(header: Header, key: str, value: Any) -> MiniloraError:
    return MiniloraError(f"{header.path}: {key} is {shown(value)}, which cannot be; {AGAIN}")


def _list(header: Header, key: str, kind: type, size: int | None = None) -> list:
    """A list of the metadata. Raises MiniloraError if it is missing, of another kind or length."""
    value = header.fields.get(key)
    if value is None:
        raise MiniloraError(f"{header.path}: the metadata lacks {key}; {AGAIN}")
    if not isinstance(value, list) or not all(type(each) is kind for each in value):
        raise _wrong(header, key, value)
    if size is not None and len(value) != size:
        raise MiniloraError(
            f"{header.path}: {key} has {len(value):,} elements for {size:,} tokens; {AGAIN}"
        )
    return value


def _words(header: Header) -> tuple[list[str], list[int]]:
    """The text and the type of each id."""
    words = _list(header, "tokenizer.ggml.tokens", str)
    types = [NORMAL] * len(words)
    if "tokenizer.ggml.token_type" in header.fields:
        types = _list(header, "tokenizer.ggml.token_type", int, len(words))
    table = header.tensors.get("token_embd.weight")
    rows = table.shape[0] if table else len(words)
    if not words or len(words) > rows:
        raise MiniloraError(
            f"{header.path}: there are {len(words):,} tokens, and the model has {rows:,}; {AGAIN}"
        )
    return words, types


def _vocabulary(header: Header, words: list[str], types: list[int]) -> dict[str, int]:
    """Text → id, without what converters write for rows of the table that no text has."""
    found: dict[str, int] = {}
    for number, (word, kind) in enumerate(zip(words, types)):
        if kind == UNUSED and word == f"[PAD{number}]":
            continue
        if word in found:
            if kind == UNUSED:
                continue
            raise MiniloraError(
                f"{header.path}: the tokens {found[word]} and {number} are both {shown(word)}; "
                f"{AGAIN}"
            )
        found[word] = number
    return found


def _added(vocabulary: dict[str, int], types: list[int]) -> list[dict[str, Any]]:
    """The tokens that are found in text before it is cut."""
    plain = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    return [
        {"id": number, "content": word, **plain, "special": types[number] in (CONTROL, UNKNOWN)}
        for word, number in vocabulary.items()
        if types[number] in (CONTROL, USER_DEFINED, UNKNOWN) and word
    ]


def _tokenizer(
    vocabulary: dict[str, int], types: list[int], merges: list, model: dict, **parts: Any
) -> dict[str, Any]:
    """tokenizer.json around a vocabulary."""
    made = {"version": "1.0", "truncation": None, "padding": None}
    made["added_tokens"] = _added(vocabulary, types)
    made |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    base = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None)
    base |= dict(end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, ignore_merges=False)
    made["model"] = {**base, **model, "vocab": vocabulary, "merges": merges}
    return {**made, **parts}


# ------------------------------------------------------------------------------- byte-level BPE


def cutting(patterns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Patterns of CUTS as tokenizer.json's pre-tokenizers; the last one makes letters of bytes."""
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    if patterns[0] == DIGITS:  # as SmolLM2's own file says it
        steps[0] = {"type": "Digits", "individual_digits": True}
    own = patterns[-1] == GPT2  # the rule that ByteLevel has within itself
    byte = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=own)
    return [*steps[: len(steps) - own], byte]


def _byte_level(header: Header, words: list[str], types: list[int]) -> dict[str, Any]:
    name = header.fields.get("tokenizer.ggml.pre")
    if name is None:
        raise MiniloraError(
            f"{header.path} does not say how text is cut (tokenizer.ggml.pre), as converters of "
            "early 2024 did not; convert the model again"
        )
    patterns = CUTS.get(name) if isinstance(name, str) else None
    if patterns is None:
        raise MiniloraError(
            f"{header.path} cuts text by the rules {shown(name)} (tokenizer.ggml.pre); those known "
            f"here are {', '.join(CUTS)}"
        )
    steps = cutting(patterns)
    vocabulary = _vocabulary(header, words, types)
    merges = []
    for merge in _list(header, "tokenizer.ggml.merges", str):
        at = merge.find(" ", 1)
        pair = [merge[:at], merge[at + 1 :]]
        if at < 0 or any(part not in vocabulary for part in (*pair, "".join(pair))):
            raise MiniloraError(
                f"{header.path}: tokenizer.ggml.merges holds {shown(merge)}, and not all of its "
                f"parts are tokens; {AGAIN}"
            )
        merges.append(pair)
    return _tokenizer(
        vocabulary,
        types,
        merges,
        {"ignore_merges": name in UNMERGED},
        pre_tokenizer=steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        decoder=dict(steps[-1], use_regex=True),
    )


# -------------------------------------------------------------------------- SentencePiece's BPE


def spaces(prefix: bool) -> list[dict[str, Any]]:
    """tokenizer.json's normalizers that write spaces as SentencePiece does. prefix: one before the
    text, too.
    """
    before: list[dict[str, Any]] = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    return [*before, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]


def _sentencepiece(header: Header, words: list[str], types: list[int]) -> dict[str, Any]:
    vocabulary = _vocabulary(header, words, types)
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary]
    if missing:
        raise MiniloraError(
            f"{header.path}: {len(missing)} of the 256 bytes have no token, so that some text has "
            f"no ids; {AGAIN}"
        )
    scores = _list(header, "tokenizer.ggml.scores", float, len(words))
    prefix = bool(header.fields.get("tokenizer.ggml.add_space_prefix", True))
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = [word for word, number in vocabulary.items() if types[number] == UNKNOWN]
    return _tokenizer(
        vocabulary,
        types,
        _merges(header, vocabulary, types, scores),
        {"byte_fallback": True, "fuse_unk": True, "unk_token": unknown[0] if unknown else None},
        normalizer={"type": "Sequence", "normalizers": spaces(prefix)},
        decoder={"type": "Sequence", "decoders": decoders},
    )


def _merges(
    header: Header, vocabulary: dict[str, int], types: list[int], scores: list[float]
) -> list[list[str]]:
    """What may be joined, best first: any two pieces that make a piece, by its score. transformers'
    order among equal scores.
    """
    pieces = {word: number for word, number in vocabulary.items() if types[number] == NORMAL}
    found = []
    for piece, number in pieces.items():
        if lost := next((letter for letter in piece if letter not in pieces), None):
            if len(piece) > 1:
                raise MiniloraError(
                    f"{header.path}: the token {shown(piece)} holds {shown(lost)}, which is no "
                    f"token by itself, so it could never be made; {AGAIN}"
                )
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in pieces and pair[1] in pieces]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(scores[number], len(left), len(right), [left, right]) for left, right in pairs]
    found.sort(key=lambda each: each[:3], reverse=True)
    return [pair for *_, pair in found]


# ------------------------------------------------------------------------------- special tokens


def _special(header: Header, words: list[str]) -> dict[str, Any]:
    """tokenizer_config.json: the tokens that begin, end and fill a text."""
    spm = header.fields["tokenizer.ggml.model"] == "llama"
    defaults = SPM_IDS if spm else {}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        key = f"tokenizer.ggml.{theirs}_token_id"
        number = header.fields.get(key, defaults.get(theirs))
        if number is None:
            continue
        if type(number) is not int or not 0 <= number < len(words):
            raise _wrong(header, key, number)
        config[f"{ours}_token"] = words[number]
    if "eos_token" not in config:
        raise MiniloraError(
            f"{header.path} names no end of a text (tokenizer.ggml.eos_token_id); convert it again"
        )
    config["clean_up_tokenization_spaces"] = False
    context = header.fields.get(f"{header.fields.get('general.architecture')}.context_length")
    if isinstance(context, int):
        config["model_max_length"] = context
    return config


def _begins(header: Header, kind: str) -> bool:
    """Whether a text begins with BOS where no chat template is used."""
    default = kind == "llama" or header.fields.get("tokenizer.ggml.pre") in BEGIN
    return bool(header.fields.get("tokenizer.ggml.add_bos_token", default))


def _with_bos(bos: str, words: list[str]) -> dict[str, Any]:
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    text, more = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    again = {"SpecialToken": {"id": bos, "type_id": 1}}
    number = words.index(bos)
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, again, more],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }

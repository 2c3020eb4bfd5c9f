"""What stands beside tokenizer.json: special tokens, the chat template, a tokenizer's class.

What it replaces: the same files as transformers' `AutoTokenizer` reads them.
How it works: each JSON file is compared with a schema, so that an odd value names its file and its
field. Special tokens that the settings name and tokenizer.json does not mark are marked, as
transformers does: an EOS in a text is then one token.
What it leaves out: tokenizers that are made by Python of the folder's own; a folder with
tokenizer.model or vocab.json alone is refused with the command that converts it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MiniloraError
from ..system.json_files import read_bytes, read_json, shown

REMEDY = "mend it, or copy the tokenizer's folder again"
TOKEN = {
    "type": ["string", "object", "null"],
    "required": ["content"],
    "properties": {"content": {"type": "string", "minLength": 1}},
}
LIST = {"type": ["array", "object", "null"], "items": TOKEN, "additionalProperties": TOKEN}
SCHEMA = {
    "type": "object",
    "properties": {
        "chat_template": {
            "type": ["string", "array", "object", "null"],
            "items": {
                "type": "object",
                "required": ["name", "template"],
                "properties": {"name": {"type": "string"}, "template": {"type": "string"}},
            },
            "additionalProperties": {"type": "string"},
        },
        "additional_special_tokens": LIST,
        "extra_special_tokens": LIST,
        "added_tokens_decoder": {
            "type": ["object", "null"],
            "propertyNames": {"pattern": "^[0-9]{1,10}$"},
            "additionalProperties": TOKEN | {"type": "object"},
        },
        "add_bos_token": {"type": ["boolean", "null"]},
        "add_prefix_space": {"type": ["boolean", "null"]},
        "legacy": {"type": ["boolean", "null"]},
        "tokenizer_class": {"type": ["string", "null"]},
    },
    "patternProperties": {"^(bos|eos|unk|sep|pad|cls|mask)_token$": TOKEN},
}
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# other forms of a tokenizer, and what transformers needs besides to read them
OTHERS = {
    "tokenizer.model": " sentencepiece protobuf tiktoken",
    "spiece.model": " sentencepiece protobuf",
    "tekken.json": " mistral-common",
    "vocab.json": "",
    "vocab.txt": "",
}


def require_file(folder: Path) -> Path:
    """The folder's tokenizer.json. Raises MiniloraError, with the command that makes one of another
    form where there is one.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        return path
    other = next((name for name in OTHERS if (folder / name).is_file()), None)
    if other is None:
        raise MiniloraError(f"no {path.name} in {folder}; give a model folder with its tokenizer")
    raise MiniloraError(
        f"no {path.name} in {folder}, only {other}; convert it once: pip install transformers"
        f'{OTHERS[other]}, then python -c "from transformers import AutoTokenizer as A; f = '
        f'{str(folder)!r}; A.from_pretrained(f).save_pretrained(f)"'
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """The fields of tokenizer_config.json over those of special_tokens_map.json; null is no value.

    Raises MiniloraError for a field of a kind that means nothing there.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            fields = read_json(folder / name, SCHEMA, remedy=REMEDY)
            settings.update({key: value for key, value in fields.items() if value is not None})
    return settings


def content(token: str | dict | None) -> str | None:
    """A special token's text; settings name it alone, or in an added token's record."""
    return token["content"] if isinstance(token, dict) else token


def special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens that the settings name, such as {"eos_token": "</s>"}."""
    return {name: content(settings[name]) for name in NAMED if settings.get(name)}


def mark_special(backend, settings: dict[str, Any]) -> None:
    """Mark what the settings call special and tokenizer.json does not, in transformers' order."""
    from tokenizers import AddedToken

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    records = settings.get("added_tokens_decoder", {})
    backend.add_tokens(
        [
            AddedToken(each["content"], **{flag: bool(each.get(flag)) for flag in FLAGS})
            for _, each in sorted(records.items(), key=lambda item: int(item[0]))
            if each["content"] not in known
        ]
    )
    named = [each for each in special_tokens(settings).values() if backend.token_to_id(each)
             is not None]  # fmt: skip
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key, [])
        named += [content(each) for each in (more.values() if isinstance(more, dict) else more)]
    backend.add_special_tokens([AddedToken(each, normalized=False) for each in named if each])


def as_llama(backend, settings: dict[str, Any], file: dict[str, Any], folder: Path) -> None:
    """Let a sentencepiece tokenizer of the class LlamaTokenizer put its space where transformers'
    class of that name does, which takes vocabulary and merges from tokenizer.json and the rest from
    the settings: at the beginning of a text alone, not behind each special token.
    """
    from tokenizers import decoders, pre_tokenizers

    if str(settings.get("tokenizer_class")).removesuffix("Fast") != "LlamaTokenizer":
        return
    pieces = (file.get("pre_tokenizer"), file.get("decoder"))
    if file["model"].get("type", "BPE") != "BPE" or "'ByteLevel'" in str(pieces):
        return
    config = folder / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else None
    if kind not in (None, "", "llama"):
        return  # transformers reads tokenizer.json as it is
    space = settings.get("add_prefix_space", True)
    scheme = ("always" if settings.get("legacy") else "first") if space else "never"
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * space)
    backend.model.fuse_unk = backend.model.byte_fallback = True


def opening(backend, settings: dict[str, Any], bos_id: int | None) -> list[int]:
    """What the tokenizer itself puts before a text: what its post-processor does; without one BOS,
    where the settings say `add_bos_token`.
    """
    if backend.post_processor is None:
        return [bos_id] if settings.get("add_bos_token") and bos_id is not None else []
    bare = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a").ids
    places = range(len(full) - len(bare) + 1)
    return full[: next((i for i in places if full[i : i + len(bare)] == bare), 0)]


def chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The folder's chat template, None where it has none.

    Raises MiniloraError where it has several and calls none of them the default.
    """
    found = settings.get("chat_template")
    named = {each["name"]: each["template"] for each in found} if isinstance(found, list) else found
    templates = {"default": named} if isinstance(named, str) else dict(named or {})
    files = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    if (folder / "chat_template.jinja").exists() or files:  # they go before the settings
        templates = {file.stem: _text(file) for file in files}
        if (folder / "chat_template.jinja").exists():
            templates["default"] = _text(folder / "chat_template.jinja")
    if not templates and (folder / "chat_template.json").is_file():  # of older processors
        file = folder / "chat_template.json"
        schema = {"type": "object", "required": ["chat_template"],
                  "properties": {"chat_template": {"type": "string"}}}  # fmt: skip
        templates = {"default": read_json(file, schema, remedy=REMEDY)["chat_template"]}
    if templates and "default" not in templates:
        raise MiniloraError(
            f"{folder} has chat templates named {', '.join(map(shown, sorted(templates)))}, and "
            "none named default; write the one to be used into its chat_template.jinja"
        )
    return templates.get("default")


def _text(path: Path) -> str:
    try:
        text = read_bytes(path, megabytes=1).decode("utf-8")
    except UnicodeDecodeError as error:
        raise MiniloraError(
            f"{path} holds bytes that are no UTF-8 text (byte {error.start}); {REMEDY}"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")

"""The tokenizer of a Hugging Face folder: ids, special tokens and the chat template.

What it replaces: transformers' `AutoTokenizer` and `apply_chat_template`, for a Llama's folder.
How it works: tokenizer.json is read by the `tokenizers` library; the chat template runs in jinja2's
sandbox.
What it leaves out: slow (Python) tokenizers, tools in chat templates, images. Special tokens
spelled out in a user's text are read as special tokens.
Where it differs: ids equal those of `tokenizers`, chat texts those of transformers' templates but
for the date: a template that writes today's (Llama 3.2's) gets TODAY here, or rows would change at
midnight and a broken run could not go on with them.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import MiniloraError

# for every run and every answer; the day that Llama 3.2's template itself falls back to
TODAY = datetime.date(2024, 7, 26)

Piece = tuple[str, bool]  # text and whether it is learned


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MiniloraError(
            f"{path} cannot be read as JSON ({error}); copy the tokenizer's folder again"
        ) from error
    return value if isinstance(value, dict) else {}


class Tokenizer:
    """A `tokenizers` tokenizer with the special tokens and the chat template of its folder."""

    def __init__(
        self,
        backend,
        bos: str | None,
        eos: str,
        pad: str | None = None,
        template: str | None = None,
    ):
        self.backend = backend
        self.bos, self.eos, self.pad = bos, eos, pad or eos
        self.template = template
        self.bos_id = self._id(self.bos) if self.bos else None
        self.eos_id = self._id(self.eos)
        self.pad_id = self._id(self.pad)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        self._compiled = None

    def _id(self, token: str) -> int:
        number = self.backend.token_to_id(token)
        if number is None:
            raise MiniloraError(
                f"the special token {token!r} is not in the tokenizer's vocabulary; mend "
                "tokenizer_config.json"
            )
        return number

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> Tokenizer:
        """Read tokenizer.json and tokenizer_config.json (and chat_template.jinja) from `folder`.

        Raises MiniloraError if a file is missing or broken, or if no EOS token is named.
        """
        from tokenizers import Tokenizer as Backend

        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise MiniloraError(
                f"no tokenizer.json in {folder}; give a model folder that holds its tokenizer"
            )
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise MiniloraError(
                f"{path} is not a tokenizer file ({error}); copy it again"
            ) from error
        config: dict = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                config.update(
                    {
                        key: value
                        for key, value in _read_json(folder / name).items()
                        if value is not None
                    }
                )

        def token(key: str) -> str | None:
            value = config.get(key)
            return value.get("content") if isinstance(value, dict) else value

        if not token("eos_token"):
            raise MiniloraError(
                f"{folder / 'tokenizer_config.json'} names no eos_token; add one, or answers "
                "would never end"
            )
        template = config.get("chat_template")
        if isinstance(template, list):  # several named templates: the default one
            template = next(
                (entry.get("template") for entry in template if entry.get("name") == "default"),
                None,
            )
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        return cls(backend, token("bos_token"), token("eos_token"), token("pad_token"), template)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of `text`; BOS and EOS only where asked for, so that there are never two of
        them.
        """
        ids = self.backend.encode(text, add_special_tokens=False).ids
        return (
            ([self.bos_id] if bos and self.bos_id is not None else [])
            + ids
            + ([self.eos_id] if eos else [])
        )

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def chat(self, messages: Sequence[dict], add_generation_prompt: bool = False) -> str:
        """The conversation as one text: by the folder's chat template, or `bos … \\n … eos` where
        there is none.
        """
        if self.template is None:
            return "".join(piece for piece, _ in plain_pieces(messages, self))
        if self._compiled is None:
            self._compiled = compile_template(self.template)
        from jinja2 import TemplateError

        try:
            return self._compiled.render(
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos or "",
                eos_token=self.eos,
                pad_token=self.pad,
            )
        except TemplateError as error:
            raise MiniloraError(
                f"the tokenizer's chat template refuses these messages: {error}; check their "
                "roles and order"
            ) from error


def compile_template(template: str):
    """The template as transformers compiles it: sandboxed, blocks trimmed, with its two extra
    functions.
    """
    from jinja2 import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} … {% endgeneration %} marks the answer for a training library; the text
        is what stands in it.
        """

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = TODAY.strftime
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise MiniloraError(
            f"the tokenizer's chat template cannot be compiled: {error}; mend tokenizer_config.json"
        ) from error


def plain_pieces(messages: Sequence[dict], tokenizer: Tokenizer) -> list[Piece]:
    """The format of tokenizers without a chat template: bos PROMPT newline RESPONSE eos."""
    pieces: list[Piece] = [(tokenizer.bos or "", False)]
    for message in messages:
        if message["role"] == "assistant":
            pieces.append((message["content"] + tokenizer.eos, True))
        else:
            pieces.append((message["content"] + "\n", False))
    return pieces

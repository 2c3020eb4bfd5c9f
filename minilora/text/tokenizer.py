"""The tokenizer of a Hugging Face folder: ids, special tokens and the chat template.

What it replaces: transformers' `AutoTokenizer` and `apply_chat_template`, for a Llama's folder.
How it works: tokenizer.json is read by the `tokenizers` library (tokenizer_file.py), what stands
beside it by tokenizer_settings.py; the chat template runs in jinja2's sandbox (template.py).
What it leaves out: slow (Python) tokenizers, tools in chat templates, images. Special tokens
spelled out in a user's text are read as special tokens.
Where it differs: ids equal those of `tokenizers`, chat texts those of transformers' templates but
for the date (template.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import MiniloraError
from ..system.gguf_reader import is_gguf
from .gguf_tokenizer import laid_out
from .template import compile_template, render
from .tokenizer_file import no_panic, read_backend
from .tokenizer_settings import (
    as_llama,
    chat_template,
    mark_special,
    opening,
    read_settings,
    require_file,
    special_tokens,
)

Piece = tuple[str, bool]  # text and whether it is learned


class Tokenizer:
    """A `tokenizers` tokenizer with the special tokens and the chat template of its folder."""

    def __init__(
        self,
        backend,
        bos: str | None,
        eos: str,
        pad: str | None = None,
        template: str | None = None,
        named: Mapping[str, str] | None = None,
    ):
        """named: the special tokens that a template sees beside these three, by their names."""
        self.backend = backend
        self.bos, self.eos, self.pad = bos, eos, pad or eos
        self.template = template
        self.bos_id = self._id(self.bos) if self.bos else None
        self.eos_id = self._id(self.eos)
        self.pad_id = self._id(self.pad)
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        # what stands before a text that is no chat
        self.opening: list[int] = [] if self.bos_id is None else [self.bos_id]
        mine = {"bos_token": bos, "eos_token": eos, "pad_token": pad}
        self._named = {name: token for name, token in mine.items() if token} | dict(named or {})
        self._compiled = None
        added = backend.get_added_tokens_decoder()
        # those at which a text is cut; one with `rstrip` takes what follows along
        self.special = {n: token.content for n, token in added.items() if not token.rstrip}

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
        """Read tokenizer.json, tokenizer_config.json and the chat template from `folder`, or what
        a GGUF has of them.

        Raises MiniloraError if a file is missing or broken, or if no EOS token is named.
        """
        folder = Path(folder)
        if is_gguf(folder):
            with laid_out(folder) as made:
                return cls.from_pretrained(made)
        path = require_file(folder)
        backend, file = read_backend(path)
        settings = read_settings(folder)
        named = special_tokens(settings)
        if "eos_token" not in named:
            raise MiniloraError(
                f"{folder / 'tokenizer_config.json'} names no eos_token; add one, or answers "
                "would never end"
            )
        with no_panic(f"{path} is read"):
            as_llama(backend, settings, file, folder)
            mark_special(backend, settings)
            template = chat_template(folder, settings)
            bos, eos, pad = (named.get(f"{role}_token") for role in ("bos", "eos", "pad"))
            tokenizer = cls(backend, bos, eos, pad, template, named)
            tokenizer.opening = opening(backend, settings, tokenizer.bos_id)
        return tokenizer

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of `text`; BOS and EOS only where asked for, so that there are never two of
        them. No BOS where the tokenizer itself puts none before a text.
        """
        with no_panic("a text is encoded"):
            ids = self.backend.encode(text, add_special_tokens=False).ids
        return (self.opening if bos else []) + ids + ([self.eos_id] if eos else [])

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text that is no chat, as transformers' `tokenizer(text)` gives them: with
        BOS where the tokenizer itself puts one, and one BOS where the text brings its own.
        """
        ids = self.encode(text)
        known = ids[: len(self.opening)] == self.opening
        return self.one_bos(ids if known else self.opening + ids)

    def one_bos(self, ids: list[int]) -> list[int]:
        """The row with one BOS where several stand at its beginning."""
        while self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            ids = ids[1:]
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        with no_panic("ids are decoded"):
            return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def chat(self, messages: Sequence[dict], add_generation_prompt: bool = False) -> str:
        """The conversation as one text: by the folder's chat template, or `bos … \\n … eos` where
        there is none.
        """
        if self.template is None:
            return "".join(piece for piece, _ in plain_pieces(messages, self))
        if self._compiled is None:
            self._compiled = compile_template(self.template)
        return render(
            self._compiled, messages, add_generation_prompt=add_generation_prompt, **self._named
        )


def plain_pieces(messages: Sequence[dict], tokenizer: Tokenizer) -> list[Piece]:
    """The format of tokenizers without a chat template: bos PROMPT newline RESPONSE eos."""
    pieces: list[Piece] = [(tokenizer.bos or "", False)]
    for message in messages:
        if message["role"] == "assistant":
            pieces.append((message["content"] + tokenizer.eos, True))
        else:
            pieces.append((message["content"] + "\n", False))
    return pieces

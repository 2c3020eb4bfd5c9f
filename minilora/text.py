"""From lines of JSON to rows of token ids: tokenizer, prompt format, loss mask, padding and
packing.

What it replaces: transformers' `AutoTokenizer` and `apply_chat_template`, TRL's data collators and
packing.
How it works: an example is first cut into pieces of text, each marked *learned* or *given*. The
pieces are encoded one by one, so no token ever straddles the border between prompt and response,
and the ids that a prompt has in training are the ids it has in `generate`. The label of a given
token is -100 (cross-entropy skips it); every learned answer ends with EOS, and that EOS is learned
even where the padding token is the same token: padding is masked by length, not by id.
What it leaves out: slow (Python) tokenizers, tools in chat templates, images. `pack` cuts a stream
of documents into equal rows without a mask between the documents. Special tokens spelled out in a
user's text are read as special tokens.
Where numerics differ: ids equal those of `tokenizers`, chat texts those of transformers' templates
but for the date: a template that writes today's (Llama 3.2's) gets TODAY here, or rows would change
at midnight and a broken run could not go on with them.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import MiniloraError

IGNORE = -100  # the label that torch's cross_entropy skips
# for every run and every answer; the day that Llama 3.2's template itself falls back to
TODAY = datetime.date(2024, 7, 26)
SHAPES = "`prompt` and `response`, `messages`, or `text`"

Row = tuple[list[int], list[int]]  # ids and labels, of equal length, not shifted
Piece = tuple[str, bool]  # text and whether it is learned


# ------------------------------------------------------------------------------------ the tokenizer


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
            return "".join(piece for piece, _ in _plain_pieces(messages, self))
        if self._compiled is None:
            self._compiled = _compile(self.template)
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


def _compile(template: str):
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


# -------------------------------------------------------------------------------- files of examples


def _problem(example) -> str | None:
    """What is wrong with one parsed line, or None."""
    if not isinstance(example, dict):
        return (
            f"is a JSON {type(example).__name__}, not an object; write one {{...}} per line with "
            f"{SHAPES}"
        )
    if "prompt" in example or "response" in example:
        wanted = ("prompt", "response")
    elif "messages" in example:
        return _problem_in_messages(example["messages"])
    elif "text" in example:
        wanted = ("text",)
    else:
        return f"has the fields {sorted(example)}; it needs {SHAPES}"
    for field in wanted:
        if field not in example:
            return f"lacks the field `{field}`; it needs {SHAPES}"
        if not _is_text(example[field]):
            return f"has a `{field}` that is not a text; write it as a JSON string of valid Unicode"
    if not example[wanted[-1]]:
        return f"has an empty `{wanted[-1]}`; there is nothing to learn from it, remove the line"
    return None


def _is_text(value) -> bool:
    """True for a string that UTF-8 can hold: JSON lets half a surrogate pair through."""
    return isinstance(value, str) and not any(
        "\ud800" <= character <= "\udfff" for character in value
    )


def _problem_in_messages(messages) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "has `messages` that are not a list with at least one message"
    for message in messages:
        if not isinstance(message, dict) or not all(
            _is_text(message.get(field)) for field in ("role", "content")
        ):
            return "has a message without `role` and `content` as texts"
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        return (
            "has `messages` that do not end with an answer of the role `assistant`; add the "
            "answer to be learned"
        )
    return None


def read_examples(path: str | os.PathLike) -> list[dict]:
    """The examples of a JSONL file, in order; empty lines are skipped.

    Raises MiniloraError that names file and line for what is no JSON, lacks a field, or is empty.
    """
    path = Path(path)
    if path.is_dir():
        raise MiniloraError(f"{path} is a folder; name the .jsonl file in it")
    if not path.is_file():
        raise MiniloraError(
            f"no data at {path}; give a .jsonl file or a folder with train.jsonl, valid.jsonl "
            "and test.jsonl"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise MiniloraError(
            f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise MiniloraError(
            f"cannot read {path}: {error.strerror}; check its permissions"
        ) from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise MiniloraError(
                f"{path}, line {number} is not JSON ({error}); write one JSON object per line"
            ) from error
        if problem := _problem(example):
            raise MiniloraError(f"{path}, line {number} {problem}")
        examples.append(example)
    if not examples:
        raise MiniloraError(f"{path} is empty; write one JSON object per line with {SHAPES}")
    return examples


def read_split(path: str | os.PathLike, split: str) -> list[dict]:
    """The examples of `split` ("train", "valid", "test") in a data folder; a file is taken as it
    is.
    """
    path = Path(path)
    if not path.is_dir():
        return read_examples(path)
    file = path / f"{split}.jsonl"
    if not file.is_file():
        there = ", ".join(sorted(f.name for f in path.glob("*.jsonl"))) or "no .jsonl file"
        raise MiniloraError(
            f"no {split}.jsonl in {path} (there is {there}); add it or name another folder"
        )
    return read_examples(file)


# ----------------------------------------------------------------------- examples to ids and labels


def _plain_pieces(messages: Sequence[dict], tokenizer: Tokenizer) -> list[Piece]:
    """The format of tokenizers without a chat template: bos PROMPT newline RESPONSE eos."""
    pieces: list[Piece] = [(tokenizer.bos or "", False)]
    for message in messages:
        if message["role"] == "assistant":
            pieces.append((message["content"] + tokenizer.eos, True))
        else:
            pieces.append((message["content"] + "\n", False))
    return pieces


def _template_pieces(messages: Sequence[dict], tokenizer: Tokenizer) -> list[Piece]:
    """Split the template's text at each answer; where it rewrites earlier turns, only the last
    answer is learned.
    """
    whole = tokenizer.chat(messages)
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for chosen in (answers, answers[-1:]):
        pieces: list[Piece] = []
        done = 0
        for i in chosen:
            given = tokenizer.chat(messages[:i], add_generation_prompt=True)
            through = tokenizer.chat(messages[: i + 1])
            if not (whole.startswith(through) and through.startswith(given) and len(given) >= done):
                break
            pieces += [(given[done:], False), (through[len(given) :], True)]
            done = len(through)
        else:
            return pieces
    raise MiniloraError(
        "the chat template does not put the answer after the generation prompt, so prompt and "
        "answer cannot be told apart; "
        "give data with `text`, or another tokenizer"
    )


def messages_of(example: dict) -> list[dict]:
    """The example as a conversation; raises MiniloraError for a bare `text`, which has no
    question.
    """
    if "messages" in example:
        return example["messages"]
    if "prompt" in example:
        answer = (
            [{"role": "assistant", "content": example["response"]}] if "response" in example else []
        )
        return [{"role": "user", "content": example["prompt"]}, *answer]
    raise MiniloraError(
        "an example with only `text` has no question to answer; give `prompt` and `response`, "
        "or `messages`"
    )


def _pieces(messages: Sequence[dict], tokenizer: Tokenizer) -> list[Piece]:
    return (
        _plain_pieces(messages, tokenizer)
        if tokenizer.template is None
        else _template_pieces(messages, tokenizer)
    )


def _learned_ids(text: str, tokenizer: Tokenizer) -> Row:
    """Ids and labels of an answer: learned up to and with its EOS; what a template adds behind it
    is given.
    """
    ids = tokenizer.encode(text)
    if tokenizer.eos_id not in ids:
        ids.append(tokenizer.eos_id)
    end = len(ids) - ids[::-1].index(tokenizer.eos_id)  # just behind the last EOS
    return ids, ids[:end] + [IGNORE] * (len(ids) - end)


def encode_example(example: dict, tokenizer: Tokenizer, max_length: int | None = None) -> Row:
    """`(ids, labels)` of one example, of equal length and not shifted; labels are -100 on
    everything given.

    A row longer than `max_length` loses the oldest tokens of its prompt (BOS stays); a bare `text`
    loses its end. Raises MiniloraError if the answer alone is too long: cutting it would teach the
    model to stop in the middle.
    """
    if "text" in example and "prompt" not in example and "messages" not in example:
        ids = tokenizer.encode(example["text"], bos=True, eos=True)[:max_length]
        given = 1 if tokenizer.bos_id is not None else 0
        return ids, [IGNORE] * given + ids[given:]
    ids, labels = [], []
    for text, learned in _pieces(messages_of(example), tokenizer):
        new_ids, new_labels = (
            _learned_ids(text, tokenizer) if learned else (tokenizer.encode(text), None)
        )
        ids += new_ids
        labels += new_labels or [IGNORE] * len(new_ids)
    if max_length is None or len(ids) <= max_length:
        return ids, labels
    head = 1 if tokenizer.bos_id is not None and ids[0] == tokenizer.bos_id else 0
    first = next(i for i, label in enumerate(labels) if label != IGNORE)
    cut = len(ids) - max_length
    if "messages" not in example and head + cut >= first:
        needed = len(ids) - first + head + 1
        raise MiniloraError(
            f"the answer {example['response'][:30]!r}… needs {needed} tokens, the limit is "
            f"{max_length}; "
            f"raise --seq to {needed} or more, or shorten the answer"
        )
    ids, labels = ids[:head] + ids[head + cut :], labels[:head] + labels[head + cut :]
    if all(label == IGNORE for label in labels):
        raise MiniloraError(
            f"no answer is left of a conversation cut to {max_length} tokens; raise --seq"
        )
    return ids, labels


def encode_rows(
    examples: Sequence[dict], tokenizer: Tokenizer, max_length: int | None = None
) -> list[Row]:
    """`encode_example` for each; an error says which example it was, counted from 1."""
    rows = []
    for number, example in enumerate(examples, start=1):
        try:
            rows.append(encode_example(example, tokenizer, max_length))
        except MiniloraError as error:
            raise MiniloraError(f"example {number}: {error}") from error
    return rows


def encode_prompt(prompt: str | Sequence[dict], tokenizer: Tokenizer) -> list[int]:
    """The ids after which the model is to answer: a question, or a conversation that ends with the
    user's turn.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return tokenizer.encode(tokenizer.chat(messages, add_generation_prompt=True))


def question_and_answer(example: dict, tokenizer: Tokenizer) -> tuple[list[int], str]:
    """The prompt's ids and the text that should follow, for scoring."""
    messages = messages_of(example)
    return encode_prompt(messages[:-1], tokenizer), messages[-1]["content"]


# ---------------------------------------------------------------------------------- rows to tensors


def collate(rows: Sequence[Row], pad_id: int):
    """Pad on the right to the longest row: `ids, labels, attention_mask`, all (B, T) int64."""
    import torch

    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)  # (B, T)
    labels = torch.full((len(rows), width), IGNORE, dtype=torch.long)  # (B, T)
    mask = torch.zeros((len(rows), width), dtype=torch.long)  # (B, T)
    for i, (row_ids, row_labels) in enumerate(rows):
        ids[i, : len(row_ids)] = torch.tensor(row_ids)
        labels[i, : len(row_ids)] = torch.tensor(row_labels)
        mask[i, : len(row_ids)] = 1
    return ids, labels, mask


def pack(rows: Iterable[Row], length: int) -> list[Row]:
    """Join the rows into one stream and cut it into rows of `length`; the last may be shorter. No
    token is lost.
    """
    if length < 2:
        raise MiniloraError(
            f"packing to a length of {length} leaves nothing to predict; give 2 or more"
        )
    rows = list(rows)
    ids = [token for row_ids, _ in rows for token in row_ids]
    labels = [label for _, row_labels in rows for label in row_labels]
    return [(ids[i : i + length], labels[i : i + length]) for i in range(0, len(ids), length)]

"""The tokenizer of the shipped base: byte-level BPE, trained on this corpus.

What it replaces: a downloaded vocabulary.
How it works: text is cut into pieces (a lower-case word with the space before it, a capitalised
word alone, one digit, one sign), bytes are merged inside a piece only. A capitalised word never
takes the space with it, so a name is the same tokens after a space, after a quote and at the start
of an answer: copying it is copying.
What it leaves out: other scripts get no merges; their bytes still go through.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from .families import documents
from .stories import Document

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"]
PIECES = r" ?[a-z]+'?|[A-Z][a-z]*|\d|\n| ?[^\sA-Za-z\d]+|\s"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ "
    "message['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def plain(document: Document) -> str:
    """The document's characters without its special tokens: what the merges are learned from."""
    return "\n".join(text for _, text in document)


def train_tokenizer(size: int, count: int = 30_000, seed: int = 7):
    """A `tokenizers.Tokenizer` with `size` entries learned from `count` documents."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (plain(document) for _, document in islice(documents(seed), count))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer, folder: Path, length: int) -> None:
    """tokenizer.json and tokenizer_config.json, as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL[0],
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "add_bos_token": True,  # before a text that is no chat, as in the documents
        "additional_special_tokens": SPECIAL[3:],
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    )


def encode(tokenizer, document: Document) -> tuple[list[int], list[bool]]:
    """Token ids of one document and, for each, whether it belongs to an answer (its end-of-turn
    token included).

    `<|bos|> text <|eos|>` for plain text, `<|bos|><|user|>…<|assistant|>…<|eos|><|user|>…` for a
    conversation.
    """
    _, bos, eos, user, assistant = range(5)
    ids, answer = [bos], [False]
    for role, text in document:
        body = tokenizer.encode(text, add_special_tokens=False).ids
        if role == "text":
            piece = body + [eos]
        elif role == "user":
            piece = [user] + body
        else:
            piece = [assistant] + body + [eos]
        ids += piece
        answer += [role == "assistant" and i > 0 for i in range(len(piece))]
    return ids, answer

"""Small tokenizers of every kind that a Llama's folder may hold, trained on a few words."""

import json
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

WORDS = "the a red blue cat dog runs sits on mat hill why where who is was it and no yes".split()
TEXTS = [" ".join(WORDS), "[INST] USER: ASSISTANT: <|user|> ### Q A system"] * 3
SPECIAL = ["<unk>", "<s>", "</s>"]
BOS = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)]
)


def byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return made


def sentencepiece(scheme: str):
    """As Llama 2's: a space before each piece by a normalizer ("prepend"), or by a pre-tokenizer of
    that scheme ("first", "always", "never"), and bytes for unknown letters.
    """
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    some_bytes = [f"<0x{i:02X}>" for i in range(256)]
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=480, special_tokens=SPECIAL + some_bytes, show_progress=False
        ),
    )
    if scheme == "prepend":
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        made.pre_tokenizer = None
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = BOS
    content = json.loads(made.to_str())  # bytes are words like any other, not special tokens
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in SPECIAL]
    return Tokenizer.from_str(json.dumps(content))


def unigram():
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        ),
    )
    return made


KINDS = {
    "byte level": byte_level,
    "prepend": lambda: sentencepiece("prepend"),
    "first": lambda: sentencepiece("first"),
    "always": lambda: sentencepiece("always"),
    "never": lambda: sentencepiece("never"),
    "unigram": unigram,
}


def folder_of(path: Path, kind: str = "byte level", change=lambda made: None, **config) -> Path:
    """A folder with that tokenizer; change: what a script did to it before it was saved."""
    path.mkdir(parents=True, exist_ok=True)
    made = KINDS[kind]()
    change(made)
    made.save(str(path / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | named | config
    (path / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in settings.items() if value is not None})
    )
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path

"""Small tokenizers with the rules that a GGUF can name, trained on a few words."""

import json

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import Tokenizer as Backend

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>"]
TEXTS = [
    "the cat sat on the mat, and who's THERE? We've 12 of 345 cats'll",
    "\n\n  x = {'a': 1}  # déjà vu",
    "Всё смешалось в доме Облонских",
    "中文字符和日本語のテキスト",
    "مرحبا بالعالم שלום עולם",
]
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(*patterns):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, BYTES])


# as the models' own tokenizer.json has them
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
RULES = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), GPT2]),
    "llama-bpe": split(LLAMA3),
    "qwen2": split(QWEN2),
    "tekken": split(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt-4o": split(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "superbpe": split(r"\p{N}+", r"(?=(\d{3})+(?!\d))"),
}


def trained(rule, texts, size, special, **model):
    """A byte-level BPE of `size` tokens, trained on texts that were cut by `rule`."""
    backend = Backend(models.BPE(**model))
    backend.pre_tokenizer, backend.decoder = rule, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def byte_level(rule, **model):
    """A byte-level BPE, trained on a few words, with a token that was added later."""
    backend = trained(rule, TEXTS, 480, SPECIAL, **model)
    backend.add_tokens([AddedToken("<think>", normalized=False, special=False)])
    return backend


def sentencepiece():
    """A BPE with bytes for letters that it does not know, as Llama 2's."""
    backend = Backend(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=460, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    fields = json.loads(backend.to_str())
    fields["added_tokens"] = fields["added_tokens"][:3]
    return Backend.from_str(json.dumps(fields))


def of_pieces(texts=("the cat sat on the mat", "a hat", "that <s>"), prefix=True) -> Backend:
    """A SentencePiece BPE as Llama-2's: every pair of pieces that makes a piece is a merge."""
    words = [f"▁{word}" for text in texts for word in text.split()]
    parts = {w[a:b] for w in words for b in range(len(w) + 1) for a in range(b - 1)}
    special = ["<unk>", "<s>", "</s>"]
    pieces = ["▁▁", *sorted(parts - set(special), key=lambda part: (len(part), part))]
    letters = sorted(set("".join(words)))
    tokens = special + [f"<0x{byte:02X}>" for byte in range(256)] + pieces + letters
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [
        (piece[:at], piece[at:])
        for piece in [*special, *pieces]  # transformers' conversion does not leave them out
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    backend = Backend(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence(steps)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + [decoders.Strip(" ", 1, 0)] * prefix
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return backend

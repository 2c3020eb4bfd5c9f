"""A tokenizer out of a GGUF gives the ids of the tokenizer.json that was put into it, for text in
all scripts, and those of transformers' `gguf_file=` where that has the same rules.
"""

import functools
import json
import random

import pytest
from tiny_gguf import finish, gguf
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

from minilora.errors import MiniloraError
from minilora.text import gguf_tokenizer
from minilora.text.tokenizer import Tokenizer

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>"]
TEXTS = [
    "the cat sat on the mat, and who's THERE? We've 12 of 345 cats'll",
    "\n\n  x = {'a': 1}  # déjà vu",
    "Всё смешалось в доме Облонских",
    "中文字符和日本語のテキスト",
    "مرحبا بالعالم שלום עולם",
]
# letters, digits, spaces, signs, marks that join, both directions, beyond 16 bits
BLOCKS = [(0x20, 0x7E)] * 5 + [
    (0x9, 0xD), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x58F),
    (0x5D0, 0x5EA), (0x600, 0x6FF), (0x900, 0x97F), (0xB80, 0xBFF), (0xE00, 0xE7F),
    (0x10A0, 0x11FF), (0x1200, 0x137F), (0x1780, 0x17FF), (0x2000, 0x206F), (0x2150, 0x218F),
    (0x2200, 0x22FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF),
    (0x10330, 0x1034F), (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF),
    (0x20000, 0x2A6DF), (0xE000, 0xE0FF),
]  # fmt: skip
WORDS = [" ", "  ", "\n", "the", " cat", "12", " 345", "'s", "'LL", "...", "<|im_start|>", "\t"]
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(*patterns):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, BYTES])


# the rules as the models' own tokenizer.json has them
RULES = {
    "gpt-2": GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), GPT2]),
    "llama-bpe": split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
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
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|eos|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def strings(count=2000):
    pick = random.Random(0)

    def piece():
        if pick.random() < 0.3:
            return pick.choice(WORDS)
        return chr(pick.randint(*pick.choice(BLOCKS)))

    return ["".join(piece() for _ in range(pick.randint(0, 40))) for _ in range(count)]


def byte_level(rule, **model):
    """A byte-level BPE, trained on a few words that were cut by `rule`."""
    backend = Backend(models.BPE(**model))
    backend.pre_tokenizer, backend.decoder = rule, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=480, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
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


def words_of(backend):
    """(texts by id, types by id, merges) of a tokenizer.json"""
    fields = json.loads(backend.to_str())
    entries = fields["model"]["vocab"] | {t["content"]: t["id"] for t in fields["added_tokens"]}
    words = sorted(entries, key=entries.get)
    kinds = {t["content"]: 3 if t["special"] else 4 for t in fields["added_tokens"]}
    kinds |= {"<unk>": 2} | {f"<0x{byte:02X}>": 6 for byte in range(256)}
    return words, [kinds.get(word, 1) for word in words], fields["model"]["merges"]


def write(path, backend, pre=None, bos="<|bos|>", eos="<|eos|>", more=lambda writer: None):
    """The tokenizer in a GGUF, by the `gguf` package."""
    words, kinds, merges = words_of(backend)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2" if pre else "llama")
    writer.add_token_list(words), writer.add_token_types(kinds)
    if pre:
        writer.add_tokenizer_pre(pre), writer.add_token_merges([" ".join(m) for m in merges])
    else:
        order = {}
        for left, right in merges:
            order.setdefault(left + right, -float(len(order)))
        writer.add_token_scores([order.get(word, 0.0) for word in words])
    writer.add_bos_token_id(words.index(bos)), writer.add_eos_token_id(words.index(eos))
    more(writer)
    finish(writer)
    return path


def theirs(path):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def require_equal(one, other, texts):
    for text in texts:
        assert one(text) == other(text), text


@pytest.mark.parametrize("pre", RULES)
def test_ids_are_those_of_the_tokenizer_that_was_put_in(tmp_path, pre):
    backend = byte_level(RULES[pre], ignore_merges=pre in ("llama-bpe", "tekken"))
    read = Tokenizer.from_pretrained(write(tmp_path / "m.gguf", backend, pre))
    texts = strings() + TEXTS + ["a<think>b", " <|eos|> ", ""]
    require_equal(read.encode, lambda text: backend.encode(text).ids, texts)
    assert all(read.decode(read.encode(text), skip_special=False) == text for text in texts)
    assert (read.bos, read.eos, read.vocab_size) == ("<|bos|>", "<|eos|>", backend.get_vocab_size())


@pytest.mark.parity
@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "smaug-bpe", "gpt-4o"])
def test_ids_are_transformers_where_it_has_the_same_rules(tmp_path, pre):
    rule = RULES["llama-bpe" if pre == "smaug-bpe" else pre]
    path = write(tmp_path / "m.gguf", byte_level(rule), pre)
    read, peer = Tokenizer.from_pretrained(path), theirs(path)
    require_equal(read.encode, lambda t: peer.encode(t, add_special_tokens=False), strings())


@pytest.mark.parity
def test_smollm_is_transformers_where_no_digit_stands(tmp_path):
    """There it is cut by GPT-2's rules, which keep digits together and a space before them."""
    path = write(tmp_path / "m.gguf", byte_level(RULES["smollm"]), "smollm")
    read, peer = Tokenizer.from_pretrained(path), theirs(path)
    texts = [text for text in strings() if not any(letter.isnumeric() for letter in text)]
    assert len(texts) > 150
    require_equal(read.encode, lambda t: peer.encode(t, add_special_tokens=False), texts)


def test_a_piece_that_is_a_token_is_taken_unmerged_where_llama_cpp_does(tmp_path):
    backend = byte_level(RULES["llama-bpe"], ignore_merges=True)
    fields = json.loads(backend.to_str())
    fields["added_tokens"].pop()
    fields["model"]["vocab"]["zqj"] = len(fields["model"]["vocab"])  # no merges make it
    backend = Backend.from_str(json.dumps(fields))
    whole = backend.encode("zqj").ids
    assert len(whole) == 1
    read = {
        pre: Tokenizer.from_pretrained(write(tmp_path / f"{pre}.gguf", backend, pre))
        for pre in ("llama-bpe", "smaug-bpe")
    }
    assert read["llama-bpe"].encode("zqj") == whole and len(read["smaug-bpe"].encode("zqj")) == 3


def test_sentencepiece_ids_are_those_of_the_tokenizer_that_was_put_in(tmp_path):
    backend = sentencepiece()
    read = Tokenizer.from_pretrained(write(tmp_path / "m.gguf", backend, None, "<s>", "</s>"))
    texts = strings() + TEXTS + ["  two spaces", "</s> end", ""]
    require_equal(read.encode, lambda text: backend.encode(text).ids, texts)
    assert all(read.decode(read.encode(text)) == text for text in TEXTS)


@pytest.mark.parity
def test_sentencepiece_ids_are_transformers_where_no_space_begins(tmp_path):
    path = write(tmp_path / "m.gguf", sentencepiece(), None, "<s>", "</s>")
    read, peer = Tokenizer.from_pretrained(path), theirs(path)
    texts = [text for text in strings() if text[:1] not in (" ", "▁") and "<" not in text]
    assert len(texts) > 1000
    require_equal(read.encode, lambda t: peer.encode(t, add_special_tokens=False), texts)


def test_a_sentencepiece_file_may_ask_for_no_space_in_front(tmp_path):
    backend = sentencepiece()
    told = dict(more=lambda writer: writer.add_add_space_prefix(False))
    path = write(tmp_path / "m.gguf", backend, None, "<s>", "</s>", **told)
    backend.normalizer = normalizers.Replace(" ", "▁")
    read = Tokenizer.from_pretrained(path)
    require_equal(read.encode, lambda text: backend.encode(text).ids, TEXTS + ["the", " the"])


@pytest.mark.parity
def test_the_chat_template_and_special_tokens_are_transformers(tmp_path):
    def more(writer):
        writer.add_chat_template(TEMPLATE), writer.add_pad_token_id(0)

    path = write(tmp_path / "m.gguf", byte_level(RULES["gpt-2"]), "gpt-2", more=more)
    read, peer = Tokenizer.from_pretrained(path), theirs(path)
    assert read.template == peer.chat_template == TEMPLATE
    assert (read.bos, read.eos, read.pad) == (peer.bos_token, peer.eos_token, peer.pad_token)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    asked = peer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert read.chat(turns, add_generation_prompt=True) == asked


@pytest.mark.parity
@pytest.mark.parametrize("told", [None, True, False])
@pytest.mark.parametrize("pre, usual", [("gpt-2", False), ("llama-bpe", True), (None, True)])
def test_transformers_puts_bos_in_front_of_the_folder_where_the_file_says_so(
    tmp_path, pre, usual, told
):
    from transformers import AutoTokenizer

    from minilora.system.gguf_reader import read_header

    def more(writer):
        if told is not None:
            writer.add_add_bos_token(told)

    backend, names = (byte_level(RULES[pre]), {}) if pre else (sentencepiece(), None)
    names = names if names is not None else {"bos": "<s>", "eos": "</s>"}
    path = write(tmp_path / "m.gguf", backend, pre, more=more, **names)
    gguf_tokenizer.write(read_header(path), tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("the cat")["input_ids"]
    plain = backend.encode("the cat").ids
    bos = [backend.token_to_id(names.get("bos", "<|bos|>"))]
    assert ids == (bos if (usual if told is None else told) else []) + plain


def test_rows_without_a_text_are_no_tokens(tmp_path):
    backend = byte_level(RULES["gpt-2"])
    words, kinds, merges = words_of(backend)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    more = [f"[PAD{number}]" for number in range(len(words), len(words) + 3)]
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words + more), writer.add_token_types(kinds + [5] * 3)
    writer.add_token_merges([" ".join(pair) for pair in merges]), writer.add_eos_token_id(2)
    finish(writer)
    read = Tokenizer.from_pretrained(tmp_path / "m.gguf")
    assert read.vocab_size == len(words)
    assert read.encode(more[0]) == backend.encode(more[0]).ids


def changed(key, value):
    """A change of one entry of the metadata, or its removal."""

    def change(fields):
        fields.pop(key) if value is None else fields.update({key: value})

    return change


def twice(fields):
    fields["tokenizer.ggml.tokens"][300] = fields["tokenizer.ggml.tokens"][301]


GGML = "tokenizer.ggml."


@pytest.mark.parametrize(
    "change, told",
    [
        (changed(GGML + "model", "t5"), 'has "t5"'),
        (changed(GGML + "model", None), "has no tokenizer"),
        (changed(GGML + "pre", None), "does not say how text is cut"),
        (changed(GGML + "pre", "kimi-k2"), 'the rules "kimi-k2"'),
        (changed(GGML + "pre", ["gpt-2"]), 'the rules ["gpt-2"]'),
        (changed(GGML + "tokens", None), "lacks tokenizer.ggml.tokens"),
        (changed(GGML + "tokens", [1, 2]), "tokenizer.ggml.tokens is [1, 2]"),
        (changed(GGML + "token_type", [1, 2]), "has 2 elements for"),
        (changed(GGML + "merges", None), "lacks tokenizer.ggml.merges"),
        (changed(GGML + "merges", ["x y z"]), "not all of its parts are tokens"),
        (changed(GGML + "merges", ["xy"]), "not all of its parts are tokens"),
        (changed(GGML + "eos_token_id", None), "names no end of a text"),
        (changed(GGML + "eos_token_id", 10**6), "eos_token_id is 1000000"),
        (changed(GGML + "bos_token_id", True), "bos_token_id is true"),
        (changed("tokenizer.chat_template", 5), "chat_template is 5"),
        (twice, "are both"),
    ],
)
def test_what_is_not_read_is_named_in_one_line(tmp_path, monkeypatch, change, told):
    from minilora.system.gguf_reader import read_header

    header = read_header(write(tmp_path / "m.gguf", byte_level(RULES["gpt-2"]), "gpt-2"))
    change(header.fields)
    with pytest.raises(MiniloraError) as caught:
        gguf_tokenizer.build(header)
    assert told in str(caught.value) and "m.gguf" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sentencepiece_vocabulary_that_loses_text_is_refused(tmp_path):
    from minilora.system.gguf_reader import read_header

    path = write(tmp_path / "m.gguf", sentencepiece(), None, "<s>", "</s>")
    header = read_header(path)
    words = header.fields["tokenizer.ggml.tokens"]
    words[words.index("<0x41>")] = "other"
    with pytest.raises(MiniloraError, match="1 of the 256 bytes"):
        gguf_tokenizer.build(header)
    header = read_header(path)
    header.fields["tokenizer.ggml.tokens"][-1] = "xŒy"
    with pytest.raises(MiniloraError, match="could never be made"):
        gguf_tokenizer.build(header)

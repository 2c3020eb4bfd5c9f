"""A tokenizer out of a GGUF gives the ids of the tokenizer.json that was put into it, for text in
all scripts, and those of transformers' `gguf_file=` where that has the same rules.
"""

import json

import pytest
from little_vocabularies import RULES, TEXTS, byte_level, sentencepiece
from strings_of_all_scripts import strings
from tiny_gguf import add_words, finish, gguf, words_of
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers

from minilora.errors import MiniloraError
from minilora.text import gguf_tokenizer
from minilora.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|eos|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(path, backend, pre=None, bos="<|bos|>", eos="<|eos|>", more=lambda writer: None):
    """The tokenizer in a GGUF, by the `gguf` package."""
    writer = gguf.GGUFWriter(path, "llama")
    add_words(writer, backend, pre, bos, eos)
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

"""The vocabulary of a GGUF file is the tokenizer's: llama.cpp's name of its rules, or a refusal."""

import json

import pytest
from exported_gguf import (
    CUTS,
    SAFE,
    TEMPLATE,
    TEXTS,
    byte_level,
    model_of,
    of_pieces,
    opened,
    value,
    written,
)
from little_vocabularies import BYTES, LLAMA3, split
from tokenizers import (
    Regex,
    pre_tokenizers,
)
from tokenizers import Tokenizer as Backend

from minilora.errors import MiniloraError
from minilora.hub import gguf_vocabulary
from minilora.text.tokenizer import Tokenizer


def test_the_vocabulary_is_the_tokenizers(tokenizer, tmp_path):
    backend = Backend.from_str(tokenizer.backend.to_str())
    backend.add_tokens(["kitten"])
    tokenizer = opened(Tokenizer(backend, "<|bos|>", "<|eos|>", "<|pad|>", TEMPLATE))
    reader = written(model_of(tokenizer), tokenizer, tmp_path / "m.gguf")
    tokens = value(reader, "tokenizer.ggml.tokens")
    vocab = tokenizer.backend.get_vocab(with_added_tokens=True)
    assert {token: number for number, token in enumerate(tokens[:-3])} == vocab
    types = value(reader, "tokenizer.ggml.token_type")
    assert types[:5] == [3] * 5 and set(types[5:-4]) == {1} and types[-4:] == [4, 5, 5, 5]
    merges = json.loads(tokenizer.backend.to_str())["model"]["merges"]
    assert value(reader, "tokenizer.ggml.merges") == [" ".join(pair) for pair in merges]
    for key, wanted in (("bos", 1), ("eos", 2), ("padding", 0)):
        assert value(reader, f"tokenizer.ggml.{key}_token_id") == wanted
    assert value(reader, "tokenizer.ggml.add_bos_token") is False
    assert value(reader, "tokenizer.chat_template") == TEMPLATE


@pytest.mark.parametrize("name", CUTS)
def test_the_cut_has_llama_cpps_name(name):
    texts = SAFE if name == "superbpe" else TEXTS
    made = byte_level(CUTS[name], texts, ignore_merges=name == "llama-bpe")
    assert gguf_vocabulary.read(made, made.vocab_size).pre == name


WRONG = {
    "a space first": dict(cut=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "words": dict(cut=pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), BYTES])),
    "another pattern": dict(cut=split(r"\p{L}+|.")),
    "matches are merged": dict(
        cut=pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA3), "merged_with_next"), BYTES]
        )
    ),
    "whole words first": dict(cut=CUTS["gpt-2"], ignore_merges=True),
    "digits in threes, unmerged": dict(cut=CUTS["qwen2"], ignore_merges=True),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_cut_that_llama_cpp_has_not_is_refused(name):
    made = byte_level(**WRONG[name])
    with pytest.raises(MiniloraError, match="llama.cpp has no tokenizer that is the same"):
        gguf_vocabulary.read(made, made.vocab_size)


CROSSING = ["n '", "' '", "1 2", "Ġ Ġ", "! '", "Ã ©", "A B"]


@pytest.mark.parametrize("pair", CROSSING, ids=range(len(CROSSING)))
def test_a_merge_across_a_cut_of_the_shipped_tokenizer_is_refused(pair):
    with pytest.raises(MiniloraError, match="may cross a cut"):
        gguf_vocabulary._no_merge_crosses([tuple(pair.split())])


def test_a_merge_within_the_pieces_of_the_shipped_tokenizer_is_taken():
    inside = ["a b", "Ġ a", "T he", "Ġan '", 'Ġ "', "! !"]
    gguf_vocabulary._no_merge_crosses([tuple(pair.split()) for pair in inside])


def changed(tokenizer, change):
    fields = json.loads(tokenizer.backend.to_str())
    change(fields)
    backend = Backend.from_str(json.dumps(fields))
    return opened(Tokenizer(backend, tokenizer.bos, tokenizer.eos, None, tokenizer.template))


@pytest.mark.parametrize(
    "told, change",
    [
        ("its dropout is 0.1", lambda f: f["model"].update(dropout=0.1)),
        ("has rstrip", lambda f: f["added_tokens"][3].update(rstrip=True)),
        ("has single_word", lambda f: f["added_tokens"][3].update(single_word=True)),
        ("it normalizes text by", lambda f: f.update(normalizer={"type": "Lowercase"})),
    ],
    ids=["dropout", "rstrip", "single word", "lower case"],
)
def test_a_tokenizer_with_other_rules_is_refused(told, change, tokenizer):
    made = changed(tokenizer, change)
    with pytest.raises(MiniloraError, match="llama.cpp has no tokenizer that is the same") as error:
        gguf_vocabulary.read(made, made.vocab_size)
    assert told in str(error.value)


def test_nfc_is_written_with_a_note(tokenizer):
    made = changed(tokenizer, lambda f: f.update(normalizer={"type": "NFC"}))
    assert "NFC" in gguf_vocabulary.read(made, made.vocab_size).notes[0]


def test_bytes_without_a_token_are_told(tokenizer):
    letters = gguf_vocabulary.byte_letters()

    def without(*bytes_):
        def change(fields):
            model = fields["model"]
            gone = {letters[byte] for byte in bytes_}
            left = [token for token in model["vocab"] if token not in gone]
            model["vocab"] = {token: number for number, token in enumerate(left)}

        return changed(tokenizer, change)

    never = without(0xC0, 0xFF)  # in no text
    assert gguf_vocabulary.read(never, never.vocab_size).notes == []
    control = without(0x04, 0xFF)
    assert "1 bytes have no token (0x4)" in gguf_vocabulary.read(control, 400).notes[0]
    one_for_all = changed(control, lambda f: f["model"].update(unk_token="<|pad|>"))
    with pytest.raises(MiniloraError, match="one token for all unknown bytes"):
        gguf_vocabulary.read(one_for_all, 400)


def test_more_tokens_than_rows_are_refused(tokenizer):
    with pytest.raises(MiniloraError, match="embedding only 100 rows"):
        gguf_vocabulary.read(tokenizer, 100)


def test_a_llama_2_tokenizer_gets_scores(tmp_path):
    made = of_pieces()
    reader = written(model_of(made), made, tmp_path / "m.gguf")
    assert value(reader, "tokenizer.ggml.model") == "llama"
    types = value(reader, "tokenizer.ggml.token_type")
    assert types[:3] == [2, 3, 3] and types[3:259] == [6] * 256
    scores = value(reader, "tokenizer.ggml.scores")
    tokens = value(reader, "tokenizer.ggml.tokens")
    merges = json.loads(made.backend.to_str())["model"]["merges"]
    made_of = [left + right for left, right in merges if left + right != "<s>"]
    ranks = [scores[tokens.index(piece)] for piece in made_of]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) == len(set(made_of))
    assert value(reader, "tokenizer.ggml.unknown_token_id") == 0
    assert value(reader, "tokenizer.ggml.add_space_prefix") is True
    assert value(reader, "tokenizer.ggml.add_bos_token") is True
    # the plain format of a tokenizer without a template
    messages = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "sat"}]
    folder = tmp_path / "t"
    folder.mkdir()
    with_template = Tokenizer(
        made.backend, made.bos, made.eos, None, value(reader, "tokenizer.chat_template")
    )
    assert with_template.chat(messages) == made.chat(messages)


METASPACE = {
    "type": "Metaspace",
    "replacement": "▁",
    "prepend_scheme": "first",
    "split": False,
}


def tear_apart(merges):
    """Put one of two ways to make a piece at the end."""
    words = ["".join(pair) for pair in merges]
    first = next(i for i, word in enumerate(words) if word == words[i + 1] != "<s>")
    merges.append(merges.pop(first))


@pytest.mark.parametrize(
    "told, change",
    [
        ("spaces before words", lambda f: f.update(pre_tokenizer=METASPACE)),
        ("are no merge", lambda f: f["model"]["merges"].pop()),
        ("do not stand together", lambda f: tear_apart(f["model"]["merges"])),
        ("256 bytes", lambda f: f["model"].update(byte_fallback=False)),
        ("one special token", lambda f: f["added_tokens"][1].update(normalized=True)),
    ],
    ids=["first", "a merge gone", "order", "no bytes", "normalized"],
)
def test_a_llama_2_tokenizer_with_other_rules_is_refused(told, change):
    made = changed(of_pieces(), change)
    with pytest.raises(MiniloraError, match=told):
        gguf_vocabulary.read(made, made.vocab_size)


def test_stops_get_the_places_there_are(tokenizer, tmp_path):
    model = model_of(tokenizer)
    reader = written(model, tokenizer, tmp_path / "a.gguf", stops=(2, 3, 4))
    found = [value(reader, f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    assert found == [2, 3, 4]
    with pytest.raises(MiniloraError, match="ends at 4 tokens"):
        written(model, tokenizer, tmp_path / "b.gguf", stops=(2, 3, 4, 0))
    assert not (tmp_path / "b.gguf").exists()


def test_a_tokenizer_that_ends_texts_itself_is_refused(tokenizer, tmp_path):
    ending = {"type": "TemplateProcessing", "pair": []}
    ending["single"] = [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<|eos|>", "type_id": 0}},
    ]
    ending["special_tokens"] = {"<|eos|>": {"id": "<|eos|>", "ids": [2], "tokens": ["<|eos|>"]}}
    made = changed(tokenizer, lambda f: f.update(post_processor=ending))
    with pytest.raises(MiniloraError, match="more than BOS around a text"):
        written(model_of(made), made, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_without_bos(tokenizer, tmp_path):
    def without(template):
        made = Tokenizer(tokenizer.backend, None, "<|eos|>", "<|pad|>", template)
        reader = written(model_of(made), made, tmp_path / f"{len(template or '')}.gguf")
        assert reader.get_field("tokenizer.ggml.bos_token_id") is None
        assert value(reader, "tokenizer.ggml.add_bos_token") is False
        return made, value(reader, "tokenizer.chat_template")

    assert without("{{ messages[0]['content'] }}")[1] == "{{ messages[0]['content'] }}"
    made, plain = without(None)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    told = Tokenizer(tokenizer.backend, None, "<|eos|>", None, plain)
    assert told.chat(messages) == made.chat(messages) and "bos_token" not in plain
    with pytest.raises(MiniloraError, match="writes bos_token, and the tokenizer has none"):
        without(TEMPLATE)

"""Rows are exact: what is learned, what is masked, what is lost (nothing)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import text
from minilora.errors import MiniloraError
from minilora.system.files import data_folder
from minilora.text import IGNORE, Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def plain(tokenizer):
    """No chat template, and PAD is EOS: the pair that makes models never stop."""
    return Tokenizer(tokenizer.backend, "<|bos|>", "<|eos|>", None, None)


def test_special_ids(tokenizer, plain):
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert plain.pad_id == plain.eos_id == 2


def test_prompt_format_is_the_shipped_one(tokenizer):
    ids, labels = text.encode_example({"prompt": "who?", "response": "the cat"}, tokenizer)
    prompt, answer = tokenizer.encode("who?"), tokenizer.encode("the cat")
    assert ids == [1, 3, *prompt, 4, *answer, 2]
    assert labels == [IGNORE] * (len(prompt) + 3) + [*answer, 2]


def test_plain_format_without_a_template(plain):
    ids, labels = text.encode_example({"prompt": "who?", "response": "the cat"}, plain)
    prompt, answer = plain.encode("who?\n"), plain.encode("the cat")
    assert ids == [1, *prompt, *answer, 2]
    assert labels == [IGNORE] * (len(prompt) + 1) + [*answer, 2]
    assert text.encode_prompt("who?", plain) == [1, *prompt]


def test_bare_text_is_learned_whole_with_its_end(tokenizer):
    ids, labels = text.encode_example({"text": "the cat sat"}, tokenizer)
    assert ids == [1, *tokenizer.encode("the cat sat"), 2]
    assert labels == [IGNORE, *ids[1:]]


def test_every_answer_of_a_conversation_is_learned(tokenizer):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    ids, labels = text.encode_example({"messages": messages}, tokenizer)
    a, b, c, d = (tokenizer.encode(letter)[0] for letter in "abcd")
    assert ids == [1, 3, a, 4, b, 2, 3, c, 4, d, 2]
    assert labels == [IGNORE] * 4 + [b, 2] + [IGNORE] * 3 + [d, 2]


def test_eos_is_learned_though_pad_is_the_same_token(plain):
    rows = [
        text.encode_example({"prompt": p, "response": "x"}, plain) for p in ("a", "a longer one")
    ]
    ids, labels, mask = text.collate(rows, plain.pad_id)
    for row, (row_ids, _) in enumerate(rows):
        assert labels[row, len(row_ids) - 1] == plain.eos_id
        assert labels[row, len(row_ids) :].eq(IGNORE).all()
        assert mask[row].sum() == len(row_ids)
        assert ids[row, : len(row_ids)].tolist() == row_ids


def test_training_and_generation_see_the_same_prompt(tokenizer):
    example = {"prompt": "the cat sat", "response": " on the mat"}
    ids, labels = text.encode_example(example, tokenizer)
    prompt, answer = text.question_and_answer(example, tokenizer)
    assert ids[: len(prompt)] == prompt and answer == " on the mat"
    assert all(label == IGNORE for label in labels[: len(prompt)]) and labels[len(prompt)] != IGNORE


@given(prompt=st.text(max_size=40), response=st.text(min_size=1, max_size=40))
def test_learned_part_decodes_to_the_answer(tokenizer, prompt, response):
    ids, labels = text.encode_example({"prompt": prompt, "response": response}, tokenizer)
    assert tokenizer.decode([label for label in labels if label != IGNORE]) == response
    assert labels[-1] == tokenizer.eos_id and len(ids) == len(labels)


@given(
    limit=st.integers(4, 60), prompt=st.text(max_size=60), response=st.text(min_size=1, max_size=20)
)
def test_a_cut_row_keeps_bos_answer_and_eos(tokenizer, limit, prompt, response):
    example = {"prompt": prompt, "response": response}
    whole, _ = text.encode_example(example, tokenizer)
    answer = tokenizer.encode(response)
    try:
        ids, labels = text.encode_example(example, tokenizer, limit)
    except MiniloraError as error:
        assert len(answer) + 3 > limit and "--seq" in str(error)
        return
    assert len(ids) <= limit and ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    assert [label for label in labels if label != IGNORE] == [*answer, tokenizer.eos_id]
    assert ids[1:] == whole[len(whole) - len(ids) + 1 :]


def test_template_text_equals_transformers(tiny_folder, tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    messages = [
        {"role": "user", "content": "who <b>?"},
        {"role": "assistant", "content": "the cat"},
        {"role": "user", "content": "é"},
    ]
    assert tokenizer.chat(messages, True) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.encode("the cat sat 123") == theirs.encode(
        "the cat sat 123", add_special_tokens=False
    )


def test_a_template_with_todays_date_gives_the_same_rows_tomorrow(tokenizer, tiny_folder):
    dated = (
        "{{ bos_token }}{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') "
        "%}{% else %}{% set day = '26 Jul 2024' %}{% endif %}{{ day }} {{ messages[0]['content'] "
        "}}"
    )
    messages = [{"role": "user", "content": "who?"}]
    ours = Tokenizer(tokenizer.backend, tokenizer.bos, tokenizer.eos, tokenizer.pad, dated).chat(
        messages
    )
    assert ours == f"{tokenizer.bos}26 Jul 2024 who?"
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tiny_folder).apply_chat_template(
        messages, chat_template=dated, tokenize=False
    )
    assert len(theirs) == len(ours) and theirs != ours  # there it is today's


def test_the_shipped_tokenizer_says_what_the_format_says():
    folder = data_folder() / "base"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("no shipped model; build it with `minilora pretrain`")
    shipped = Tokenizer.from_pretrained(folder)
    assert [shipped.backend.id_to_token(i) for i in range(5)] == [
        "<|pad|>",
        "<|bos|>",
        "<|eos|>",
        "<|user|>",
        "<|assistant|>",
    ]
    ids, labels = text.encode_example({"prompt": "Who?", "response": "Mira 12"}, shipped)
    answer = shipped.encode("Mira 12")
    assert ids == [1, 3, *shipped.encode("Who?"), 4, *answer, 2] and labels[-len(answer) - 1 :] == [
        *answer,
        2,
    ]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Mira 12"}]
    assert shipped.chat(messages) == theirs.apply_chat_template(messages, tokenize=False)
    assert shipped.encode('Mira saw 12 {"x"}') == theirs.encode(
        'Mira saw 12 {"x"}', add_special_tokens=False
    )


def test_what_stands_behind_the_last_eos_is_not_learned(tokenizer):
    template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == "
        "'assistant' %}<|eos|>\n{% endif %}{% endfor %}{% if add_generation_prompt "
        "%}<|assistant|>{% endif %}"
    )
    other = Tokenizer(tokenizer.backend, None, "<|eos|>", None, template)
    ids, labels = text.encode_example({"prompt": "a", "response": "b"}, other)
    newline = other.encode("\n")
    assert ids[-len(newline) :] == newline and labels[-len(newline) :] == [IGNORE] * len(newline)
    assert labels[-len(newline) - 1] == other.eos_id


def test_a_template_that_refuses_is_one_clear_line(tokenizer):
    other = Tokenizer(
        tokenizer.backend, None, "<|eos|>", None, "{{ raise_exception('no system role') }}"
    )
    with pytest.raises(MiniloraError, match="no system role"):
        other.chat([{"role": "system", "content": "x"}])
    with pytest.raises(MiniloraError, match="cannot be compiled"):
        Tokenizer(tokenizer.backend, None, "<|eos|>", None, "{% if %}").chat([])


def test_a_template_cannot_reach_python(tokenizer):
    other = Tokenizer(
        tokenizer.backend, None, "<|eos|>", None, "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    )
    with pytest.raises(MiniloraError):
        other.chat([{"role": "user", "content": "x"}])


rows_strategy = st.lists(
    st.lists(st.integers(0, 300), min_size=1, max_size=30), min_size=1, max_size=20
)


@given(documents=rows_strategy, length=st.integers(2, 40))
def test_packing_loses_no_token(documents, length):
    rows = [(ids, [IGNORE, *ids[1:]]) for ids in documents]
    packed = text.pack(rows, length)
    assert [token for ids, _ in packed for token in ids] == [
        token for ids in documents for token in ids
    ]
    assert [label for _, labels in packed for label in labels] == [
        label for _, labels in rows for label in labels
    ]
    assert all(len(ids) == length for ids, _ in packed[:-1]) and len(packed[-1][0]) <= length


def test_reading_all_three_shapes_and_splits(tmp_path):
    lines = [
        {"prompt": "p", "response": "r"},
        {"text": "t"},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    ]
    (tmp_path / "train.jsonl").write_text(
        "\ufeff" + "\n\n".join(json.dumps(line) for line in lines) + "\r\n", encoding="utf-8"
    )
    assert (
        text.read_split(tmp_path, "train")
        == text.read_split(tmp_path / "train.jsonl", "test")
        == lines
    )
    with pytest.raises(MiniloraError, match="train.jsonl"):
        text.read_split(tmp_path, "valid")


BAD_LINES = {
    "not json": ("{prompt: 1}", "line 2 is not JSON"),
    "a list": ("[1, 2]", "line 2 is a JSON list"),
    "no field": ('{"question": "x"}', r"\['question'\]"),
    "no response": ('{"prompt": "x"}', "lacks the field `response`"),
    "a number": ('{"prompt": 1, "response": "x"}', "`prompt` that is not a text"),
    "empty": ('{"prompt": "x", "response": ""}', "empty `response`"),
    "half a surrogate": ('{"text": "\\ud800"}', "valid Unicode"),
    "no answer": ('{"messages": [{"role": "user", "content": "x"}]}', "do not end with an answer"),
    "no content": ('{"messages": [{"role": "assistant"}]}', "without `role` and `content`"),
    "deep": ("[" * 100_000, "line 2"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(tmp_path, name):
    line, message = BAD_LINES[name]
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(MiniloraError, match=message) as caught:
        text.read_examples(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [(b"", "is empty"), (b"\n \n", "is empty"), (b'{"text": "\xff"}', "not UTF-8")],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(MiniloraError, match=message):
        text.read_examples(path)


def test_a_bad_tokenizer_is_named(tmp_path, tiny_folder):
    with pytest.raises(MiniloraError, match="no tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(MiniloraError, match="not a tokenizer file"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    with pytest.raises(MiniloraError, match="eos_token"):
        Tokenizer.from_pretrained(tmp_path)


def test_a_template_may_mark_the_answer_as_generated():
    """The tag that transformers adds to Jinja, which the shipped template uses: its text is what
    stands in it.
    """
    from minilora.text.tokenizer import compile_template

    marked = (
        "{% for m in messages %}{% generation %}<{{ m['content'] }}>{% endgeneration %}{% endfor %}"
    )
    assert (
        compile_template(marked).render(messages=[{"content": "a"}, {"content": "b"}]) == "<a><b>"
    )

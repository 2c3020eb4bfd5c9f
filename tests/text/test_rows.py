"""Rows are exact: what is learned, what is masked, what is lost (nothing)."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora import text
from minilora.errors import MiniloraError
from minilora.text import IGNORE, Tokenizer


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


WITHOUT_EOS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_eos_is_put_behind_each_answer_where_the_template_has_none(tokenizer):
    """Else the model never learns to stop."""
    other = Tokenizer(tokenizer.backend, None, "<|eos|>", None, WITHOUT_EOS)
    ids, labels = text.encode_example({"prompt": "a", "response": "b"}, other)
    a, b = (other.encode(letter)[0] for letter in "ab")
    assert ids == [3, a, 4, b, 2] and labels == [IGNORE] * 3 + [b, 2]
    turns = [{"role": role, "content": "b"} for role in ("user", "assistant") * 2]
    ids, labels = text.encode_example({"messages": turns}, other)
    assert ids == [3, b, 4, b, 2] * 2 and labels == [*[IGNORE] * 3, b, 2] * 2


def test_an_answer_that_spells_eos_is_learned_to_its_end(tokenizer):
    ids, labels = text.encode_example({"prompt": "a", "response": "b<|eos|>c"}, tokenizer)
    b, c = (tokenizer.encode(letter)[0] for letter in "bc")
    assert [label for label in labels if label != IGNORE] == [b, 2, c, 2] == ids[-4:]


@pytest.mark.parametrize("bos", ["<|bos|>", None])
def test_a_bare_text_loses_its_end_and_learns_all_but_bos(tokenizer, bos):
    other = Tokenizer(tokenizer.backend, bos, "<|eos|>")
    words = tokenizer.encode("the cat sat")
    ids, labels = text.encode_example({"text": "the cat sat"}, other)
    given = [1] if bos else []
    assert ids == [*given, *words, 2] and labels == [*[IGNORE] * len(given), *words, 2]
    assert text.encode_example({"text": "the cat sat"}, other, 3) == (ids[:3], labels[:3])


def test_without_bos_a_cut_row_keeps_nothing_in_front(tokenizer):
    other = Tokenizer(tokenizer.backend, None, "<|eos|>")
    whole, _ = text.encode_example({"prompt": "abcdefgh", "response": "x"}, other)
    ids, labels = text.encode_example({"prompt": "abcdefgh", "response": "x"}, other, 6)
    assert ids == whole[-6:] and labels == [IGNORE] * 4 + whole[-2:]


def test_the_length_that_an_error_asks_for_is_the_least_that_suffices(tokenizer):
    example = {"prompt": "abcdef", "response": "the cat sat on the mat"}
    with pytest.raises(MiniloraError, match="raise --seq to") as caught:
        text.encode_example(example, tokenizer, 5)
    needed = int(re.search(r"raise --seq to (\d+)", str(caught.value))[1])
    ids, labels = text.encode_example(example, tokenizer, needed)
    answer = tokenizer.encode(example["response"])
    assert len(ids) == needed and labels[-len(answer) - 1 :] == [*answer, 2]
    with pytest.raises(MiniloraError, match=f"needs {needed} tokens, the limit is {needed - 1}"):
        text.encode_example(example, tokenizer, needed - 1)


def chat(*contents, system=None):
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(contents)
    ]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


def test_a_conversation_loses_whole_turns_and_never_its_last_question(tokenizer):
    """The oldest first; what the system says stays. Less than the last question and its answer is
    refused, with the length that suffices.
    """
    whole, whole_labels = text.encode_example(chat("abc", "d", "e", "f"), tokenizer)
    last = text.encode_example(chat("e", "f"), tokenizer)
    assert len(last[0]) == 6 and len(whole) > 7
    for limit in (6, 7, len(whole) - 1):
        assert text.encode_example(chat("abc", "d", "e", "f"), tokenizer, limit) == last
    assert text.encode_example(chat("abc", "d", "e", "f"), tokenizer, len(whole)) == (
        whole,
        whole_labels,
    )
    ruled = text.encode_example(chat("abc", "d", "e", "f", system="s"), tokenizer, 8)
    assert ruled == text.encode_example(chat("e", "f", system="s"), tokenizer)
    with pytest.raises(MiniloraError, match="need 6 tokens, the limit is 5; raise --seq to 6"):
        text.encode_example(chat("abc", "d", "e", "f"), tokenizer, 5)


def test_an_error_names_the_example_counted_from_one(tokenizer):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "the cat sat"}]
    with pytest.raises(MiniloraError, match="^example 2: the answer 'the cat sat'"):
        text.encode_rows(rows, tokenizer, 5)
    assert text.encode_rows(rows, tokenizer) == [text.encode_example(r, tokenizer) for r in rows]


def test_a_batch_is_padded_by_length_and_not_by_id():
    """The padding id may stand in a text, where it is attended to and learned."""
    ids, labels, mask = text.collate([([1, 0, 5], [IGNORE, 0, 5]), ([7], [7])], pad_id=0)
    assert ids.tolist() == [[1, 0, 5], [7, 0, 0]]
    assert labels.tolist() == [[IGNORE, 0, 5], [7, IGNORE, IGNORE]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == labels.dtype == mask.dtype == torch.int64


def test_packed_rows_keep_labels_beside_their_ids():
    rows = [([1, 2, 3], [IGNORE, 2, 3]), ([4, 5], [IGNORE, 5])]
    assert text.pack(rows, 2) == [
        ([1, 2], [IGNORE, 2]),
        ([3, 4], [3, IGNORE]),
        ([5], [5]),
    ]
    with pytest.raises(MiniloraError, match="a length of 1 leaves nothing to predict"):
        text.pack(rows, 1)


@pytest.mark.parametrize("example", [
    {"text": "<|bos|>who<|eos|>"}, {"text": "<|bos|>who"}, {"text": "who<|eos|>"}, {"text": "who"},
    {"text": "<|bos|><|bos|>who<|eos|><|eos|>"},
])  # fmt: skip
def test_a_text_has_one_bos_and_one_eos(tokenizer, example):
    """Whatever it brings of its own, which `check` would refuse or the model learn twice."""
    assert text.encode_example(example, tokenizer) == text.encode_example(
        {"text": "who"}, tokenizer
    )
    bare = Tokenizer(tokenizer.backend, None, "<|eos|>")
    assert text.encode_example({"text": "who<|eos|>"}, bare) == text.encode_example(
        {"text": "who"}, bare
    )


@pytest.mark.parametrize("named", ["tokenizer", "plain"])
def test_an_answer_has_one_eos_and_a_prompt_one_bos(request, named):
    each = request.getfixturevalue(named)
    wanted = text.encode_example({"prompt": "who", "response": "the cat"}, each)
    for answer in ("the cat<|eos|>", "the cat<|eos|><|eos|>"):
        assert text.encode_example({"prompt": "who", "response": answer}, each) == wanted
    turns = chat("who", "the cat<|eos|>", "a", "b<|eos|><|eos|>")
    assert text.encode_example(turns, each) == text.encode_example(
        chat("who", "the cat", "a", "b"), each
    )
    bare = Tokenizer(each.backend, "<|bos|>", "<|eos|>")
    doubled = {"prompt": "<|bos|>who", "response": "the cat"}
    ids, _ = text.encode_example(doubled, bare)
    assert ids.count(bare.bos_id) == 1
    assert ids[: len(text.encode_prompt("<|bos|>who", bare))] == text.encode_prompt(
        "<|bos|>who", bare
    )
    assert text.encode_prompt("<|bos|>who", bare) == text.encode_prompt("who", bare)

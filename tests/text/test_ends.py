"""Where an answer ends: one rule, for models of either make."""

import types

import pytest

from minilora import text
from minilora.errors import MiniloraError
from minilora.text.ends import answer_ends, end_of, model_ends, require_ids, tell_end


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return text.Tokenizer.from_pretrained(tiny_folder)  # its EOS is 2, its padding 0


def ours(own, size=320):
    return types.SimpleNamespace(config=types.SimpleNamespace(eos_token_id=own, vocab_size=size))


def theirs(own, generation, size=320):
    model = ours(own, size)
    model.generation_config = types.SimpleNamespace(eos_token_id=generation)
    return model


@pytest.mark.parametrize(
    "model, ends",
    [
        (ours(None), [2]),
        (ours(2), [2]),
        (ours(7), [2, 7]),
        (ours([9, 7]), [2, 7, 9]),
        (ours([]), [2]),
        (ours((9, 2)), [2, 9]),
        (ours([319, 320, -1]), [2, 319]),
        (theirs(7, None), [2, 7]),
        (theirs(None, 7), [2, 7]),
        (theirs(7, [9, 2]), [2, 7, 9]),
        (theirs([0], 0), [0, 2]),
        (types.SimpleNamespace(), [2]),
    ],
)
def test_an_answer_ends_where_tokenizer_or_either_file_say(tokenizer, model, ends):
    """Llama 3's first release: the tokenizer knows one end, generation_config.json another."""
    assert answer_ends(model, tokenizer) == ends
    assert {*model_ends(model), tokenizer.eos_id} == set(ends)


@pytest.mark.parametrize(
    "ids, ends, place",
    [
        ([5, 2, 7, 2], [2], 1),
        ([5, 2, 7], [7, 2], 1),
        ([2], [2], 0),
        ([5, 6, 2], {2}, 2),
        ([5, 6], [2], 2),
        ([5, 6], [], 2),
        ([], [2], 0),
    ],
)
def test_the_first_end_counts(ids, ends, place):
    assert end_of(ids, ends) == place


@pytest.mark.parametrize(
    "own, joined",
    [(None, 2), (2, 2), ([2], [2]), (7, [2, 7]), ([9, 7], [2, 7, 9]), ([7, 2], [7, 2]), ([], 2)],
)
def test_a_model_learns_the_tokenizers_end_where_its_generate_looks(tokenizer, own, joined):
    model = ours(own)
    tell_end(model, tokenizer)
    assert model.config.eos_token_id == joined
    library = theirs(5, own)
    tell_end(library, tokenizer)
    assert library.config.eos_token_id == 5
    both = joined if isinstance(joined, list) else [joined]
    assert library.generation_config.eos_token_id == sorted({5, *both})


def test_what_generate_stops_at_already_stays_as_it_is_written(tokenizer):
    library = theirs(2, [7, 2])
    tell_end(library, tokenizer)
    assert library.generation_config.eos_token_id == [7, 2]


@pytest.mark.parametrize("role, pad", [("eos_token", "<|pad|>"), ("pad_token", "<|user|>")])
def test_a_token_that_the_model_has_no_row_for_is_named(tokenizer, role, pad):
    other = text.Tokenizer(tokenizer.backend, None, "<|eos|>", pad)
    number = other.eos_id if role == "eos_token" else other.pad_id
    require_ids(ours(2, number + 1), other)
    require_ids(types.SimpleNamespace(), other)
    with pytest.raises(MiniloraError) as caught:
        require_ids(ours(2, number), other)
    told = str(caught.value)
    assert f"{role} {getattr(other, role[:3])!r} has the id {number}" in told
    assert f"knows 0 to {number - 1};" in told and "resize_token_embeddings" in told

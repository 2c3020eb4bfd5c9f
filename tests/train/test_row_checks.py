"""Every row is looked at: a fault in one of many is named with its row, and sound rows pass."""

import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import lora, text, train
from minilora.llama import Llama
from minilora.text import IGNORE
from minilora.train.row_checks import RowFailed, require_borders, require_fit

BOS, EOS, TURN, SIZE, POSITIONS = 1, 2, 3, 50, 12


def model(eos=EOS, bos=BOS, **more):
    config = dict(bos_token_id=bos, eos_token_id=eos, vocab_size=SIZE)
    return types.SimpleNamespace(
        config=types.SimpleNamespace(**config | {"max_position_embeddings": POSITIONS} | more)
    )


def row(given, learned):
    """Ids and labels of one turn after another: given, learned, given, …"""
    ids, labels = [], []
    for number, part in enumerate((given, learned) if isinstance(learned[0], int) else learned):
        ids += part
        labels += part if number % 2 else [IGNORE] * len(part)
    return ids, labels


SOUND = row([BOS, 10, 11], [20, 21, EOS])
PLAIN = ([BOS, 10, 11, EOS], [IGNORE, 10, 11, EOS])  # a text
UNCUT = ([BOS, 10, 11, 12], [IGNORE, 10, 11, 12])  # one that was cut
NO_BOS = ([10, 11, 12], [10, 11, 12])


def check(rows, **config):
    train.check_rows(model(**config), rows)


FAULTS = {
    "an id too high": (([BOS, SIZE, EOS], [IGNORE, SIZE, EOS]), "holds token id 50, .* 0 to 49"),
    "an id below zero": (([BOS, -1, EOS], [IGNORE, IGNORE, EOS]), "holds token id -1"),
    "too long": (row([BOS, *range(10, 20)], [20, EOS]), "has 13 tokens, .* 12; lower --seq to 12"),
    "shifted after a sound beginning": (
        ([BOS, 10, 20, 21, EOS], [IGNORE, 10, IGNORE, EOS, EOS]),
        "shifted already",
    ),
    "shifted": (([BOS, 10, 20, EOS], [10, 20, EOS, IGNORE]), "shifted already"),
    "all masked": (([BOS, 10, EOS], [IGNORE] * 3), "has nothing to learn"),
    "one token": (([EOS], [EOS]), "has nothing to learn"),
    "two BOS": (row([BOS, BOS, 10], [20, EOS]), "starts with two BOS tokens .id 1."),
    "two BOS in a text": (([BOS, BOS, 10], [IGNORE, BOS, 10]), "two BOS"),
    "two EOS": (row([BOS, 10], [20, EOS, EOS]), "ends with two EOS tokens .id 2."),
    "two EOS in a text": (([BOS, 10, EOS, EOS], [IGNORE, 10, EOS, EOS]), "two EOS"),
    "two BOS alone": (([BOS, BOS], [IGNORE, BOS]), "two BOS"),
    "two EOS alone": (([10, EOS, EOS], [IGNORE, EOS, EOS]), "two EOS"),
    "the first token's EOS masked": (([10, EOS, 11, EOS], [10, IGNORE, 11, EOS]), "never stop"),
    "EOS masked": (([BOS, 10, 20, EOS], [IGNORE, IGNORE, 20, IGNORE]), "never stop there"),
    "the answer cut": (row([BOS, 10, 11], [20, 21]), "never stop there"),
    "EOS of a text masked": (([BOS, 10, 11, EOS], [IGNORE, 10, 11, IGNORE]), "never stop there"),
    "another end": (row([BOS, 10], [20, TURN]), "never stop there"),
    "the last turn cut": (row(None, [[BOS, 10], [20, EOS], [11], [21, 22]]), "never stop there"),
    "the last turn's EOS masked": (
        row(None, [[BOS, 10], [20, EOS], [11], [21], [EOS]]),
        "never stop there",
    ),
    "an earlier turn's EOS masked": (
        row(None, [[BOS, 10], [20], [EOS, 11], [21, EOS]]),
        "never stop there",
    ),
}


@pytest.mark.parametrize("bad, told", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("place", [0, 17, 39])
def test_one_row_of_forty_is_named(bad, told, place):
    rows = [SOUND] * 20 + [PLAIN] * 10 + [UNCUT] * 10
    check(rows)
    rows[place] = bad
    with pytest.raises(RowFailed, match=f"^row {place + 1} of the data .*{told}") as caught:
        check(rows)
    assert caught.value.number == place + 1 and "\n" not in str(caught.value)
    assert str(caught.value).endswith(caught.value.problem)


SOUND_ROWS = {
    "no BOS": NO_BOS,
    "text within a row": row([BOS, 10], [20, EOS]),
    "what a template adds behind EOS": row(None, [[BOS, 10], [20, EOS], [11]]),
    "a learned newline behind EOS": row([BOS, 10], [20, EOS, 13]),
    "an end of turn before EOS": row([BOS, 10], [20, TURN, EOS]),
    "two ends that differ": row([BOS, 10], [20, EOS, TURN, EOS]),
    "EOS in the question": row([BOS, 10, EOS, EOS, 11], [20, EOS]),
    "several turns": row(None, [[BOS, 10], [20, EOS], [11], [21, EOS]]),
    "a word masked in the middle of a text": ([BOS, 10, 11, EOS], [IGNORE, 10, IGNORE, EOS]),
    "an empty answer": row([BOS, 10], [EOS]),
    "two EOS of which one is learned": ([BOS, 10, EOS, EOS], [IGNORE, IGNORE, EOS, IGNORE]),
    "a row that is BOS and one token": ([BOS, 10], [IGNORE, 10]),
}


@pytest.mark.parametrize("good", SOUND_ROWS.values(), ids=SOUND_ROWS)
def test_sound_rows_pass(good):
    check([good])
    check([SOUND, good, PLAIN])


def test_how_many_answers_do_not_end_is_told():
    """Most lost their EOS, as by a template without one; those that keep it do not excuse them."""
    cut = row([BOS, 10, 11], [20, 21])
    with pytest.raises(RowFailed, match="row 2 of the data .*as 3 of 5 rows have"):
        check([SOUND, cut, SOUND, cut, cut])
    with pytest.raises(train.CheckFailed, match="^no answer's EOS .id 2. is learned"):
        check([cut] * 3)


@pytest.mark.parametrize("eos, passes", [(TURN, True), ([EOS, TURN], True), (EOS, False)])
def test_any_end_of_the_model_will_do(eos, passes):
    rows = [row([BOS, 10], [20, TURN]), row([BOS, 10, 11], [20, TURN])]
    if passes:
        check(rows, eos=eos)
    else:
        with pytest.raises(train.CheckFailed, match="never stop.*text.tell_end"):
            check(rows, eos=eos)


def test_a_model_without_ends_or_begins_asks_for_none():
    rows = [row([BOS, BOS, 10], [20, EOS, EOS]), row([BOS, 10], [20])]
    check(rows, eos=None, bos=None)
    train.check_rows(types.SimpleNamespace(), rows)  # a model that says nothing of itself


def test_the_rows_are_called_what_they_are():
    with pytest.raises(RowFailed, match="row 2 of the validation data") as caught:
        train.check_rows(model(), [SOUND, FAULTS["too long"][0]], "validation data")
    assert caught.value.among == "validation data"


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(10, 40), max_size=6), st.lists(st.integers(10, 40), max_size=9)
        ),
        min_size=2,
        max_size=12,
    ),
    st.integers(4, 12),
)
def test_a_packed_stream_passes(pairs, length):
    """Answers that are cut at the end of a row go on in the next."""
    rows = [row([BOS, *question], [*answer, EOS]) for question, answer in pairs]
    require_borders(model(), text.pack(rows, length), "data")


def test_a_piece_alone_passes():
    """It holds the end of another answer, or begins with one."""
    require_borders(model(), [row(None, [[BOS, 10], [20, EOS], [BOS, 11], [21]])], "data")
    require_borders(model(), [([EOS, EOS, 11, 12], [EOS, IGNORE, IGNORE, 12])], "data")


def test_a_row_alone_is_not_taken_for_a_piece_of_a_stream():
    with pytest.raises(train.CheckFailed, match="never stop"):
        check([row([BOS, 10, 11], [20, 21])])
    rows = [row([BOS, 10, 11], [20, 21]), row([BOS, 10, 12], [20, 22])]  # of one length
    with pytest.raises(train.CheckFailed, match="never stop"):
        check(rows)


def test_the_limits_are_met_and_not_passed():
    full = [0, *range(10, 20), SIZE - 1]
    require_fit(model(), [(full, full), ([], [])], "data")
    require_borders(model(), [([], []), ([BOS], [IGNORE])], "data")
    with pytest.raises(RowFailed, match="row 2 of the data has 13 tokens"):
        require_fit(model(), [(full, full), ([*full, 5], [*full, 5])], "data")


def test_a_fault_in_a_validation_row_is_named_before_anything_is_written(tiny_folder, tmp_path):
    """It would break the validation, the first or one after an hour."""
    llama = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2)
    good = text.encode_rows(
        [{"prompt": "who sat", "response": "the cat"}], text.Tokenizer.from_pretrained(tiny_folder)
    )
    bad = ([1, 320, 2], [IGNORE, 320, 2])
    with pytest.raises(RowFailed, match="row 2 of the validation data holds token id 320"):
        train.fit(llama, good, steps=1, valid=[*good, bad], out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    assert train.fit(llama, good, steps=1, valid=good, progress=False).steps == 1

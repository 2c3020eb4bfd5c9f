"""A run's memory, foreseen and measured."""

import importlib

import pytest

from minilora.recipes import memory_told
from minilora.recipes.memory_told import Foreseen, foresee, learned_at_most, longest_row
from minilora.recipes.settings import Settings
from minilora.system import heap
from minilora.system.files import data_folder
from minilora.text.rows import IGNORE


def rows(*lengths, learned=2):
    return [([5] * n, [IGNORE] * (n - learned) + [5] * learned) for n in lengths]


def test_the_longest_row_is_of_those_that_the_run_takes():
    from minilora.train.batches import Batches

    found, settings = rows(*range(10, 50)), Settings(data="x", batch=4, steps=1)
    taken = max(len(ids) for ids, _ in Batches(found, 4, 0)(0))
    assert longest_row(settings, found) == taken < 49
    assert longest_row(Settings(data="x", batch=4, steps=10), found) == 49


def test_only_learned_tokens_get_logits():
    assert learned_at_most(Settings(data="x", batch=4), rows(9, 12, learned=3)) == 12


def test_a_run_on_a_processor_is_foreseen_and_a_card_is_not():
    settings, base = Settings(data="x", steps=2), data_folder() / "base"
    assert foresee(settings, base, "cpu", rows(30, 40)).predicted > 4e8
    assert foresee(settings, base, "cuda", rows(30, 40)) == Foreseen(None, None)


def test_more_tokens_need_more():
    settings, base = Settings(data="x", steps=2, batch=16), data_folder() / "base"
    short, long = (foresee(settings, base, "cpu", rows(n)).predicted for n in (100, 500))
    assert long > short


def test_what_cannot_be_counted_is_not_told(tmp_path):
    assert foresee(Settings(data="x"), tmp_path, "cpu", rows(9)).beside() is None


def test_measured_stands_beside_predicted_unless_the_process_held_more_before(monkeypatch):
    monkeypatch.setattr(memory_told, "most_held", lambda: 2_000)
    assert Foreseen(1_500, 1_900).beside() == {"predicted": 1_900, "measured": 2_000}
    assert Foreseen(2_000, 1_900).beside() is None


@pytest.mark.parametrize("predicted, error", [(1.9e9, "-5 %"), (2.2e9, "+10 %")])
def test_the_line_tells_the_error(predicted, error):
    assert error in memory_told.line({"predicted": predicted, "measured": 2e9})


@pytest.mark.parametrize(
    "before, free, short",
    [(None, 2.6e9, True), (None, 2.8e9, False), (4e8, 2.2e9, True), (4e8, 2.4e9, False)],
)
def test_holes_are_avoided_only_where_they_may_not_fit(monkeypatch, before, free, short):
    told, asked = [], []
    monkeypatch.setattr(heap, "without_holes", lambda: asked.append(1) or True)
    memory_told.avoid_holes(Foreseen(before, 2e9), free, told.append)
    assert (asked, len(told)) == (([1], 1) if short else ([], 0))


def test_where_the_heap_cannot_be_told_or_nothing_is_known_nothing_is_said(monkeypatch):
    told = []
    monkeypatch.setattr(heap, "without_holes", lambda: False)
    for predicted, free in ((2e9, 1e9), (None, 1e9), (2e9, None)):
        memory_told.avoid_holes(Foreseen(None, predicted), free, told.append)
    assert not told


def test_a_row_that_is_learned_whole_gets_a_logit_for_all_but_its_first_token(monkeypatch):
    asked = []
    room = importlib.import_module("minilora.budget.estimate")
    monkeypatch.setattr(room, "estimate", lambda setup: asked.append(setup) or 1 / 0)
    found = rows(30, learned=30)
    assert (
        foresee(Settings(data="x", batch=4), data_folder() / "base", "cpu", found).beside() is None
    )
    assert asked[0].learned == 4 * 29

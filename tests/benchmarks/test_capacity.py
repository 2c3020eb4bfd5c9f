"""The sweep over what a LoRA learns by heart: bits from a loss, a grid that closes, a record."""

import math

import pytest

from benchmarks.tasks import capacity

KIND = next(kind for kind in capacity.kinds() if "q_proj" in kind["targets"])  # of rank 1


def tried(*losses, first=1e-3):
    """Records of one kind at neighbouring rates from `first` on."""
    start = capacity.GRID.index(first)
    return [
        {**KIND, "lr": capacity.GRID[start + i], "facts_loss": loss}
        for i, loss in enumerate(losses)
    ]


def test_rates_stand_on_the_grid_a_half_decade_apart():
    assert {rate for rates in capacity.RATES.values() for rate in rates} <= set(capacity.GRID)
    steps = [above / below for below, above in zip(capacity.GRID, capacity.GRID[1:])]
    assert all(step == pytest.approx(math.sqrt(10), rel=0.01) for step in steps)


def test_the_grid_goes_on_until_its_best_rate_lies_inside():
    assert capacity.open_ends(tried(2.0, 1.0, 3.0), KIND) == []
    assert capacity.open_ends(tried(1.0, 2.0, 3.0), KIND) == [3.16e-4]
    assert capacity.open_ends(tried(3.0, 2.0, 1.0), KIND) == [3.16e-2]
    assert capacity.open_ends(tried(3.0, 2.0, None), KIND) == []  # no number is worse than any
    others = [{**record, "rank": 99} for record in tried(0.5, first=1e-5)]
    assert capacity.best(others + tried(2.0, 1.0, 3.0), KIND) == 3.16e-3


def test_bits_are_what_the_loss_leaves_of_the_digits():
    """Seven tokens of an answer: six digits and the end."""
    whole = 6 * math.log2(10)
    assert capacity.stored(0.0, 7, 6, 300) == pytest.approx(300 * whole)
    guessed = 6 * math.log(10) / 7  # the end is known, a digit is one of ten
    assert capacity.stored(guessed, 7, 6, 300) == pytest.approx(0, abs=1e-9)
    assert capacity.stored(guessed / 2, 7, 6, 300) == pytest.approx(150 * whole)
    assert capacity.stored(9.0, 7, 6, 300) == capacity.stored(None, 7, 6, 300) == 0


@pytest.mark.slow
def test_a_run_keeps_what_it_learned_and_forgot():
    kind = next(k for k in capacity.kinds() if (k["targets"], k["rank"]) == ("all", 4))
    few = {"facts": 8, "asked": 8, "steps": 100, "batch_size": 8}
    plan = capacity.recipe(kind, 3.16e-3, 0) | few
    found = capacity.one_run(plan)
    assert {name: found[name] for name in plan} == plan
    assert found["trained"] == 4 * 20_480  # rank 4 on the base's five layers
    whole = 8 * 6 * math.log2(10)
    assert found["recall"] == 8 and 0.9 * whole < found["bits"] <= whole
    assert found["after"]["loss"] > found["before"]["loss"] > 0.5
    assert 0.9 < found["before"]["lookup"] <= 1

"""What makes a run no success though every number in it was finite, and what does not."""

import json
import math
import shutil
import warnings

import pytest
import torch

from minilora import lora, train
from minilora.llama import Llama
from minilora.text import IGNORE, Tokenizer, encode_rows
from minilora.train.divergence import Diverged, diverged

LN_V = math.log(320)  # 5.77

RUNS = {
    "learned": (2.0, 0.1, False),
    "nothing moved": (2.0, 2.0, False),
    "a little worse": (0.2, 1.1, False),
    "a nat above": (2.0, 3.1, True),
    "a nat above, from nothing": (0.01, 1.02, True),
    "just under a nat above": (2.0, 2.99, False),
    "random weights that learned little": (8.0, 7.5, False),
    "random weights that learned nothing": (7.0, 7.05, False),
    "guessing, and worse than before": (5.5, 6.2, True),
    "guessing, but better than before": (9.0, 6.2, False),
    "worse than before, but not than guessing": (5.0, 5.7, False),
    "infinite": (2.0, math.inf, True),
    "no number": (2.0, math.nan, True),
}


@pytest.mark.parametrize("before, after, lost", RUNS.values(), ids=RUNS)
def test_which_runs_diverged(before, after, lost):
    told = diverged([before, after], after, 320, 0.5)
    assert bool(told) == lost
    if lost:
        assert f"{before:.2f}" in told and f"{after:.2f}" in told and "0.5" in told
        assert "\n" not in told and ("guessing gives 5.77" in told) == (after > LN_V)


def test_without_a_vocabulary_the_distance_counts():
    assert diverged([5.5], 6.4, None, 0.5) == "" and "6.60" in diverged([5.5], 6.6, None, 0.5)


@pytest.mark.parametrize(
    "losses, after, lost",
    [
        ([0.7, *[0.3] * 9], 2.3, False),  # the rare class came first, and alone
        ([0.7, *[0.3] * 5, *[2.0] * 4], 2.3, True),
        ([0.7, *[0.3] * 4, 2.0, 0.4, 2.0, 0.4, 2.0], 2.3, True),
        ([0.7, *[2.0] * 7, *[0.3] * 3], 2.3, False),
        ([0.7, 0.3, 2.0, 2.0], 2.3, True),
        ([0.7, 2.0, 0.3], 2.3, False),
        ([0.7, 0.3, 0.3], 6.0, True),  # the last update of all
        ([0.7, 0.3, 0.3], math.inf, True),
        ([2.0], 3.1, True),
    ],
)
def test_a_row_alone_may_be_an_odd_one(losses, after, lost):
    assert bool(diverged(losses, after, 320, 0.5)) == lost


@pytest.fixture(scope="module")
def taught(tiny_folder, tmp_path_factory):
    """A model that knows something, which a run can make worse: the tiny one, trained."""
    folder = tmp_path_factory.mktemp("taught")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    torch.manual_seed(0)
    model = Llama.from_pretrained(folder)
    train.fit(model, examples_of(folder), steps=60, batch_size=8, lr=1e-2, progress=False)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def rows(taught):
    return examples_of(taught)


def examples_of(folder):
    examples = [
        {"prompt": f"who {a} {b}", "response": f"the {a} on the {b}"}
        for a in ("cat", "dog", "bird", "mat")
        for b in ("there", "who", "sat", "and")
    ]
    return encode_rows(examples, Tokenizer.from_pretrained(folder))


def fit(taught, rows, **settings):
    """The history of a run on an adapter, or on all weights, and what was warned of."""
    torch.manual_seed(0)
    model = Llama.from_pretrained(taught)
    if not settings.pop("whole", False):
        model = lora.add_lora(model, rank=4)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        history = train.fit(model, rows, progress=False, **settings)
    return history, [each for each in heard if issubclass(each.category, Diverged)]


@pytest.mark.parametrize(
    "settings",
    [
        dict(steps=1, lr=1e-3, batch_size=1),
        dict(steps=2, lr=1e-3, batch_size=4),
        dict(steps=30, lr=2e-3, batch_size=4),
        dict(steps=3, lr=1e-6, batch_size=2),
        dict(steps=20, lr=1e-2, batch_size=4, whole=True, warmup=0),
        dict(steps=12, lr=3e-3, batch_size=2, accumulate=2, valid=True),
    ],
    ids=str,
)
def test_no_wolf_is_cried_over_a_usual_run(taught, rows, settings):
    if settings.get("valid"):
        settings = settings | {"valid": rows[:3]}
    history, heard = fit(taught, rows, **settings)
    assert not history.diverged and not heard


@pytest.mark.parametrize("whole, lr", [(False, 3.0), (True, 0.3)])
def test_a_rate_far_too_high_is_told(taught, rows, whole, lr):
    history, heard = fit(taught, rows, whole=whole, lr=lr, steps=8, batch_size=4, warmup=0)
    assert all(math.isfinite(loss) for loss in history.losses)
    assert history.diverged and [str(each.message) for each in heard] == [history.diverged]
    assert f"was {history.losses[0]:.2f}" in history.diverged and str(lr)[:1] in history.diverged


def test_the_rows_of_the_first_step_are_asked_again(taught, rows, monkeypatch):
    """Other rows might be harder, which would be no fault of the run."""
    asked = []
    own = train.loop.evaluate_loss

    def note(model, rows, *settings):
        asked.append(rows)
        return own(model, rows, *settings)

    monkeypatch.setattr(train.loop, "evaluate_loss", note)
    fit(taught, rows, steps=3, batch_size=2, accumulate=2, lr=1e-3, seed=5)
    assert asked == [train.Batches(rows, 4, 5)(0)] and len(asked[0]) == 4


def test_a_run_that_is_found_ended_is_judged_again(taught, rows, tmp_path):
    settings = dict(steps=4, lr=3.0, batch_size=4, warmup=0, out=tmp_path / "run")
    first, _ = fit(taught, rows, **settings)
    again, heard = fit(taught, rows, resume=True, **settings)
    assert first.diverged == again.diverged != "" and len(heard) == 1


def test_it_is_kept_out_of_the_metrics(taught, rows, tmp_path):
    fit(taught, rows, steps=2, lr=1e-3, out=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_rows_without_learned_tokens_never_come_here(taught):
    with pytest.raises(train.CheckFailed):
        fit(taught, [([1, 5], [IGNORE] * 2)], steps=1)

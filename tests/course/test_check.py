"""The checks of the exercises: what is right, what waits, and which mistake is named."""

import sys

import numpy as np
import pytest
import torch

from minilora.course import check
from minilora.course.check import CheckFailed, difference, judge
from minilora.course.exercises import Exercise, Wrong


def _inputs(rng):
    return rng.normal(size=(2, 7)), rng.normal(size=(5, 2)), 6.0, 2


def _delta(A, B, alpha, rank):
    return alpha / rank * B @ A


TASK = Exercise(
    "99-delta",
    "The update",
    _inputs,
    _delta,
    [
        Wrong(
            "alpha instead of alpha / r",
            lambda A, B, alpha, rank: alpha * B @ A,
            "the scale is α/r",
        ),
        Wrong(
            "transposed",
            lambda A, B, alpha, rank: alpha / rank * (B @ A).T,
            "the update has W's shape, d_out × d_in",
        ),
    ],
)


def test_right_in_another_way_is_right():
    assert judge(TASK, lambda A, B, alpha, rank: (A.T @ B.T).T * alpha / rank).state == "done"
    assert (
        judge(
            TASK, lambda A, B, alpha, rank: torch.tensor(alpha / rank * B @ A, dtype=torch.float32)
        ).state
        == "done"
    )


@pytest.mark.parametrize("wrong", TASK.wrong, ids=lambda w: w.name)
def test_the_likeliest_mistake_is_named(wrong):
    verdict = judge(TASK, wrong.answer)
    assert (verdict.state, verdict.mistake) == ("wrong", wrong.name)
    assert wrong.hint in verdict.message


def test_shape_comes_before_values():
    verdict = judge(TASK, lambda A, B, alpha, rank: np.zeros((7, 5)))
    assert "the shape is (7, 5), expected (5, 7)" in verdict.message and verdict.mistake == ""


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("shape", [(1, 7), (5, 1), (7,), ()])
def test_nothing_is_broadcast(shape, listed):
    answer = np.zeros(shape)
    verdict = judge(TASK, lambda A, B, alpha, rank: answer.tolist() if listed else answer)
    assert f"the shape is {shape}, expected (5, 7)" in verdict.message


def test_an_unknown_mistake_is_shown_by_its_worst_value():
    def almost(*args):
        answer = _delta(*args)
        answer[3, 4] += 1.0
        return answer

    assert "1 of 35 values are not; at [3, 4]" in judge(TASK, almost).message


def _stub(A, B, alpha, rank):
    raise NotImplementedError


@pytest.mark.parametrize(
    "answer, told",
    [
        (_stub, "not written yet"),
        (lambda A: A, "TypeError"),
        (lambda *a: None, "is the `return` missing?"),
        (lambda *a: np.full((5, 7), np.nan), "35 of 35 values are not finite"),
        (lambda *a: "text", "expected a number or an array"),
        (lambda *a: exit(3), "SystemExit: 3"),
        (lambda *a: 1 / 0, "ZeroDivisionError"),
        (None, "TypeError"),
    ],
)
def test_nothing_makes_it_raise(answer, told, monkeypatch):
    monkeypatch.delenv("MINILORA_STRICT", raising=False)
    monkeypatch.setattr(check, "find", lambda identity: TASK)
    verdict = check.exercise("99-delta", answer)
    assert told in verdict.message
    assert verdict.state == ("waiting" if answer is _stub else "wrong")


def test_an_unknown_exercise_is_said_not_raised(monkeypatch):
    monkeypatch.delenv("MINILORA_STRICT", raising=False)
    assert "there is no exercise '99-none'" in check.exercise("99-none", _stub).message


def test_strict_raises_for_all_but_right(monkeypatch):
    monkeypatch.setattr(check, "find", lambda identity: TASK)
    monkeypatch.setenv("MINILORA_STRICT", "1")
    assert check.exercise("99-delta", _delta).state == "done"
    with pytest.raises(CheckFailed, match="not written yet"):
        check.exercise("99-delta", _stub)
    with pytest.raises(CheckFailed, match="Likeliest mistake"):
        check.exercise("99-delta", TASK.wrong[0].answer)


def test_answers_cannot_spoil_the_inputs():
    def greedy(A, B, alpha, rank):
        A *= alpha / rank
        return B @ A

    assert judge(TASK, greedy).state == "done"


def test_a_mistake_made_in_place_is_named_all_the_same():
    """The named wrong answers must see the inputs as they were."""

    def greedy(A, B, alpha, rank):
        A *= alpha
        return B @ A

    assert judge(TASK, greedy).mistake == TASK.wrong[0].name


def test_the_verdict_shows_its_state_and_escapes_text():
    shown = check.Verdict('9"9', "wrong", "<b>bold</b>")._repr_html_()
    assert 'data-state="wrong"' in shown and "❌ &lt;b&gt;bold" in shown and '"9&quot;9"' in shown


@pytest.mark.parametrize(
    "got, wanted, same",
    [
        (1, 1, True),
        (1, 2, False),
        (1.0, 1, True),
        (True, True, True),
        (0.1 + 0.2, 0.3, True),
        (0.3001, 0.3, False),
        ([1, 2], [1, 2], True),
        ((1, 2), [1, 2], True),
        ([1, 2, 3], [1, 2], False),
        ("a", "a", True),
        ("a", "b", False),
        ("1", 1, False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"b": 1}, False),
        ({"a": [1.0]}, {"a": [2.0]}, False),
        ([np.ones(2), "x"], [np.ones(2), "x"], True),
        ([np.ones(2), "x"], [np.zeros(2), "x"], False),
        (float("nan"), float("nan"), True),
        (float("inf"), float("inf"), True),
        (np.zeros(3), np.zeros(3), True),
        (1e-12, 0.0, False),
        (torch.ones(2, dtype=torch.bfloat16), np.ones(2), True),
        (torch.tensor([1, 0]), [1, 0], True),
        (np.zeros((0, 3)), np.zeros((0, 3)), True),
        (torch.ones(2, requires_grad=True), torch.ones(2), True),
        (None, 1, False),
        (None, None, True),
        ([], [], True),
    ],
)
def test_difference(got, wanted, same):
    assert (difference(got, wanted) == "") is same


def test_every_case_counts():
    """An answer that is right once, by luck, is wrong."""
    calls = []

    def once(*args):
        calls.append(args)
        return _delta(*args) if len(calls) == 1 else np.zeros((5, 7))

    assert judge(TASK, once).state == "wrong"


def test_a_mistake_is_named_only_if_it_gives_all_the_numbers():
    calls = []

    def changing(*args):
        calls.append(args)
        return TASK.wrong[0].answer(*args) if len(calls) == 1 else np.zeros((5, 7))

    verdict = judge(TASK, changing)
    assert verdict.state == "wrong" and verdict.mistake == ""


def test_an_answer_that_exits_is_a_verdict():
    assert judge(TASK, lambda *args: sys.exit(3)).message.endswith("SystemExit: 3")


def test_nan_is_never_right():
    """Beside a wanted infinity, too, where not finite is no fault in itself."""
    for got, wanted in ((np.nan, 1.0), (np.nan, np.inf), ([np.nan, 1.0], [np.inf, 1.0])):
        assert difference(np.array(got), np.array(wanted))

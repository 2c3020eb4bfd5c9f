"""Exercise 10-function counts what a function keeps for its backward pass, wherever it puts it;
numbers that are right do not excuse it.
"""

import pytest
import torch

from minilora.course import exercises
from minilora.course.check import judge

TASK = exercises.find("10-function")
MEMO = {}


def on_ctx(ctx, x, W, q):
    ctx.W = W.T
    return lambda: ctx.W.T


def in_a_tuple(ctx, x, W, q):
    ctx.kept = (W,)
    return lambda: ctx.kept[0]


def as_numpy(ctx, x, W, q):
    ctx.W = W.numpy()
    return lambda: torch.from_numpy(ctx.W)


def in_a_closure(ctx, x, W, q):
    return lambda: W


def on_q(ctx, x, W, q):
    q.decoded = W
    return lambda: q.decoded


def in_a_global(ctx, x, W, q):
    MEMO[0] = W
    return lambda: MEMO[0]


def a_copy(ctx, x, W, q):
    ctx.kept = [W.clone()]
    return lambda: ctx.kept[0]


def codes_alone(ctx, x, W, q):
    return q.dequantize


def codes_saved(ctx, x, W, q):
    ctx.save_for_backward(q.packed, q.absmax)
    return lambda: (ctx.saved_tensors, q.dequantize())[1]


def with_x(ctx, x, W, q):
    ctx.x = {"x": x[:]}
    return q.dequantize


def with_a_copy_of_x(ctx, x, W, q):
    ctx.x = x.clone()
    return q.dequantize


def keeping(way):
    class Frozen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, q):
            W = q.dequantize()
            ctx.again = way(ctx, x, W, q)
            return x @ W.T

        @staticmethod
        def backward(ctx, G):
            return G @ ctx.again(), None

    return Frozen


@pytest.mark.parametrize(
    "way", [on_ctx, in_a_tuple, as_numpy, in_a_closure, on_q, in_a_global, a_copy]
)
def test_a_decoded_weight_is_found(way):
    assert judge(TASK, keeping(way)).mistake == "the decoded weight kept"


@pytest.mark.parametrize("way", [with_x, with_a_copy_of_x])
def test_the_input_is_found(way):
    verdict = judge(TASK, keeping(way))
    assert (verdict.state, "bytes kept" in verdict.message) == ("wrong", True)


@pytest.mark.parametrize("way", [codes_alone, codes_saved])
def test_the_codes_cost_nothing(way):
    assert judge(TASK, keeping(way)).state == "done"

"""Gradients of minilora.autograd against torch's, on hand-picked operations and on random graphs.

Tolerance: 1e-11 relative to the largest gradient in fp64 (NumPy adds in another order than torch),
5e-5 in fp32.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora.autograd.tensor as ours
from minilora.autograd import Tensor

pytestmark = pytest.mark.parity  # beside the library that people use

TOLERANCE = {np.float64: 1e-11, np.float32: 5e-5}
SHAPES = [(), (1,), (3,), (4, 3), (1, 3), (4, 1), (2, 4, 3), (2, 1, 3), (3, 3), (2, 3, 4)]


def compare(ours_value, theirs_value, what, tolerance):
    ours_value, theirs_value = np.asarray(ours_value), theirs_value.detach().numpy()
    assert ours_value.shape == theirs_value.shape, what
    assert ours_value.dtype == theirs_value.dtype, what
    scale = max(1.0, np.abs(theirs_value[np.isfinite(theirs_value)]).max(initial=0.0))
    np.testing.assert_allclose(
        ours_value, theirs_value, rtol=0, atol=tolerance * scale, err_msg=what
    )


def both(arrays, expression, dtype=np.float64, repeats=1, tolerance=None):
    """Run `expression(namespace, *leaves)` in both engines, weigh its output by fixed numbers,
    compare gradients.
    """
    mine = [Tensor(a.astype(dtype), requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a.astype(dtype), requires_grad=True) for a in arrays]
    out, reference = expression(Ours, *mine), expression(Theirs, *theirs)
    tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
    compare(out.data, reference, "the value", tolerance)
    weights = np.cos(np.arange(reference.numel(), dtype=dtype)).reshape(reference.shape)
    for _ in range(repeats):
        out.backward(weights)
        reference.backward(torch.from_numpy(weights), retain_graph=True)
    for i, (a, b) in enumerate(zip(mine, theirs)):
        if b.grad is None:  # the expression did not use this leaf
            assert a.grad is None
        else:
            compare(a.grad, b.grad, f"the gradient of leaf {i}, shape {a.shape}", tolerance)


class Ours:
    cat, silu, gelu, rms_norm = ours.cat, ours.silu, ours.gelu, ours.rms_norm
    cross_entropy = ours.cross_entropy
    array = staticmethod(np.asarray)


class Theirs:
    cat, silu, gelu = torch.cat, F.silu, F.gelu
    rms_norm = staticmethod(lambda x, weight, eps: F.rms_norm(x, weight.shape, weight, eps))
    cross_entropy = staticmethod(
        # its classes are dimension 1
        lambda x, t: F.cross_entropy(x.reshape(-1, x.shape[-1]), t.reshape(-1))
    )
    array = staticmethod(torch.as_tensor)


def numbers(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


FUTURE = np.triu(np.ones((4, 4)), 1) > 0

OPERATIONS = {
    "add broadcast": ([(4, 1), (3,)], lambda n, a, b: a + b),
    "subtract, negate": ([(2, 1, 3), (4, 3)], lambda n, a, b: -(a - b)),
    "divide": ([(4, 3), (4, 1)], lambda n, a, b: a / (b * b + 1)),
    "numbers on both sides": ([(3,)], lambda n, a: 2 - a * 3 + 1 / (a * a + 2) - (a - 1) / 4),
    "power": ([(4, 3)], lambda n, a: a**3 + a**2 + a**1 + a**0 + (a * a + 1) ** -0.5),
    "vector @ vector": ([(3,), (3,)], lambda n, a, b: a @ b),
    "matrix @ vector": ([(4, 3), (3,)], lambda n, a, b: a @ b),
    "vector @ matrix": ([(4,), (4, 3)], lambda n, a, b: a @ b),
    "batch @ vector": ([(2, 5, 4, 3), (3,)], lambda n, a, b: a @ b),
    "vector @ batch": ([(4,), (2, 5, 4, 3)], lambda n, a, b: a @ b),
    "batch @ matrix": ([(2, 5, 3), (3, 6)], lambda n, a, b: a @ b),
    "matrix @ batch": ([(5, 3), (2, 3, 6)], lambda n, a, b: a @ b),
    "batch @ batch, broadcast": ([(2, 1, 4, 3), (5, 3, 6)], lambda n, a, b: a @ b),
    "sums": (
        [(2, 4, 3)],
        lambda n, a: a.sum() + a.sum(1).sum() * 2 + (a.sum((0, -1), keepdim=True) ** 2).sum(),
    ),
    "means": (
        [(2, 4, 3)],
        lambda n, a: a.mean(dim=(0, 2)) * a.mean() + a.mean(-1, keepdim=True).sum(),
    ),
    "amax": (
        [(2, 4, 3)],
        lambda n, a: a.amax(1).sum() + a.amax() * 3 + a.amax((0, 2), keepdim=True).sum(),
    ),
    "reshape, permute": (
        [(2, 4, 3)],
        lambda n, a: (a.reshape(8, 3) @ a.permute(2, 0, 1).reshape((3, -1))).exp() * 0.1,
    ),
    "transpose": ([(2, 4, 3)], lambda n, a: a.transpose(0, 2).transpose(-2, -1) ** 2),
    "T": ([(4, 3)], lambda n, a: a.T @ a),
    "mT": ([(2, 4, 3)], lambda n, a: a @ a.mT),
    "slices": ([(5, 4, 3)], lambda n, a: a[1:4, ::2] * a[0, 1] + a[..., -1:][:3, :2]),
    "embedding with repeats": ([(5, 3)], lambda n, a: a[n.array([[0, 2, 2], [4, 2, 0]])] ** 2),
    "pairs of indices": ([(5, 3)], lambda n, a: a[n.array([0, 0, 4]), n.array([1, 1, 2])] ** 2),
    "boolean index": ([(5, 3)], lambda n, a: a[n.array(np.eye(5, 3) > 0)] ** 2),
    "cat": ([(2, 3), (4, 3)], lambda n, a, b: n.cat([a, b, a], 0) ** 2),
    "cat last": ([(2, 3), (2, 1)], lambda n, a, b: n.cat([a, b * 2], -1) ** 2),
    "exp, log, tanh": ([(4, 3)], lambda n, a: (a.exp() + 1).log() * a.tanh()),
    "sigmoid, relu": ([(4, 3)], lambda n, a: a.sigmoid() * a.relu()),
    "silu, gelu": ([(4, 3)], lambda n, a: n.silu(a * 3) + n.gelu(a * 2)),
    "softmax": ([(2, 4, 3)], lambda n, a: a.softmax(-1) * a.softmax(1)),
    "log_softmax": ([(2, 4, 3)], lambda n, a: a.log_softmax(-1) * a.log_softmax(0)),
    "causal softmax": ([(4, 4)], lambda n, a: a.masked_fill(n.array(FUTURE), -np.inf).softmax(-1)),
    "rms_norm": ([(2, 4, 3), (3,)], lambda n, a, w: n.rms_norm(a, w, eps=1e-5)),
    "cross entropy": (
        [(2, 3, 5)],
        lambda n, a: n.cross_entropy(a, n.array([[0, 4, -100], [-100, 2, 2]])),
    ),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_equals_torch(name, dtype):
    shapes, expression = OPERATIONS[name]
    both(numbers(0, *shapes), expression, dtype, repeats=2)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, 80.0, -80.0, 200.0, -200.0])
def test_activations_far_out(value):
    array = np.array([value, 1.0])
    for expression in (
        lambda n, a: a.sigmoid() + n.silu(a),
        lambda n, a: n.gelu(a),
        lambda n, a: a.tanh() + a.relu(),
        lambda n, a: a.softmax(-1) + a.log_softmax(-1),
    ):
        both([array], expression)


def test_amax_shares_its_gradient_between_ties():
    both([np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])], lambda n, a: a.amax(1) * a.amax())


def test_ignored_targets_cost_nothing_even_at_minus_infinity():
    logits = np.array([[0.1, 0.2, 0.3], [-np.inf, 0.0, 1.0]])
    mine, theirs = Tensor(logits, requires_grad=True), torch.tensor(logits, requires_grad=True)
    ours.cross_entropy(mine, [1, -100]).backward()
    F.cross_entropy(theirs, torch.tensor([1, -100])).backward()
    np.testing.assert_allclose(mine.grad, theirs.grad.numpy(), atol=1e-15)


@pytest.mark.filterwarnings("error")
def test_the_slope_of_a_power_of_nought_is_nought_at_zero_too():
    x = Tensor([0.0, 2.0], requires_grad=True)
    (x**0).sum().backward()
    assert x.grad.tolist() == [0, 0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_far_out_overflows_nowhere(dtype):
    """torch's fp32 is 0 below −88 already, where e^x still is a number."""
    x = np.array([-1000, -100, -90, 90, 100, 1000], dtype)
    mine, theirs = Tensor(x, requires_grad=True).sigmoid(), torch.from_numpy(x).sigmoid()
    np.testing.assert_allclose(mine.data, theirs.numpy(), rtol=1e-6, atol=1e-38)
    assert mine.data[1] == pytest.approx(np.exp(-100.0), rel=1e-1)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_cross_entropy_without_a_target_is_nan_as_in_torch():
    assert np.isnan(ours.cross_entropy(Tensor(np.ones((2, 3))), [-100, -100]).item())


# random graphs: a program is a list of steps, each on values made before it (so values are reused
# at will)

UNARY = [
    lambda n, a: a.tanh(),
    lambda n, a: a.sigmoid(),
    lambda n, a: (a * 0.3).exp(),
    lambda n, a: (a * a + 0.5).log(),
    lambda n, a: n.silu(a),
    lambda n, a: n.gelu(a),
    lambda n, a: a.relu() + a * 0.1,
    lambda n, a: -a,
    lambda n, a: (a * a + 1) ** -0.5,
    lambda n, a: a.sum(),
    lambda n, a: a.mean(),
    lambda n, a: a.reshape(-1),
]
ON_AXIS = [
    lambda n, a, d: a.sum(d),
    lambda n, a, d: a.mean(d, keepdim=True),
    lambda n, a, d: a.amax(d),
    lambda n, a, d: a.softmax(d),
    lambda n, a, d: a.log_softmax(d),
    lambda n, a, d: n.cat([a, a.tanh()], d),
    lambda n, a, d: a.transpose(0, d),
    lambda n, a, d: a.amax(d, keepdim=True) - a,
    lambda n, a, d: a[n.array([0, -1, 0])],
    lambda n, a, d: a[-1],
]
BINARY = [
    lambda n, a, b: a + b,
    lambda n, a, b: a * b,
    lambda n, a, b: a - b,
    lambda n, a, b: a / (b * b + 1),
    lambda n, a, b: a @ b.transpose(-1, -2),
    lambda n, a, b: a.transpose(-2, -1) @ b,
]


@st.composite
def programs(draw):
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    values = [torch.zeros(shape) for shape in shapes]
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["unary", "axis", "binary", "binary"]))
        table = {"unary": UNARY, "axis": ON_AXIS, "binary": BINARY}[kind]
        function = draw(st.sampled_from(table))
        i, j = (draw(st.integers(0, len(values) - 1)) for _ in range(2))
        if kind == "axis" and values[i].ndim == 0:
            continue
        extra = draw(st.integers(-values[i].ndim, values[i].ndim - 1)) if kind == "axis" else j
        try:
            values.append(apply(Theirs, function, kind, values, i, extra))
        except (RuntimeError, IndexError):
            continue  # these shapes do not go together
        if values[-1].numel() > 400:
            values.pop()
            continue
        steps.append((function, kind, i, extra))
    return shapes, steps, draw(st.integers(0, 10_000))


def apply(namespace, function, kind, values, i, extra):
    if kind == "unary":
        return function(namespace, values[i])
    return function(namespace, values[i], extra if kind == "axis" else values[extra])


@settings(max_examples=250, deadline=None)
@given(programs())
def test_random_graphs_equal_torch(program):
    shapes, steps, seed = program

    def expression(namespace, *leaves):
        values = list(leaves)
        for function, kind, i, extra in steps:
            values.append(apply(namespace, function, kind, values, i, extra))
        total = values[0].sum()
        for value in values[1:]:
            total = total + (value * 0.5).tanh().sum()  # every value counts, however large it grew
        return total

    both(numbers(seed, *shapes), expression, repeats=2, tolerance=1e-9)

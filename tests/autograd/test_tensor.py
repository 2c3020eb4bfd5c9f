"""minilora.autograd beyond single gradients: the rules of backward, errors, the graph view, and all
rules at once beside difference quotients.
"""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

import minilora.autograd.tensor as ours
from minilora.autograd import Tensor, no_grad
from minilora.autograd.picture import draw
from minilora.errors import MiniloraError


def leaf(*shape, seed=0):
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


# backward


def test_a_value_used_twice_gets_the_sum():
    x = Tensor(3.0, requires_grad=True)
    y = x * x + x
    (y * y).backward()
    assert x.grad == 2 * 12 * 7  # d y²/dx = 2y (2x + 1)


def test_backward_twice_adds_up_as_in_torch():
    x, t = leaf(3), torch.tensor(leaf(3).data, requires_grad=True)
    y, u = (x * x).sum(), (t * t).sum()
    for _ in range(3):
        y.backward()
        u.backward(retain_graph=True)
        assert np.array_equal(x.grad, t.grad.numpy())
    x.zero_grad()
    assert x.grad is None


def test_gradients_of_two_leaves_do_not_share_memory():
    a, b = leaf(3), leaf(3)
    (a + b).sum().backward()
    a.grad *= 0
    assert (b.grad == 1).all()


def test_no_grad_and_detach_cut_the_graph():
    x = leaf(3)
    with no_grad():
        assert not (x * 2).requires_grad
        with no_grad():
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    (x * x.detach()).sum().backward()
    assert np.array_equal(x.grad, x.data)

    @no_grad()
    def forward():
        return x * 2

    assert not forward().requires_grad and (x * 2).requires_grad


def test_no_grad_ends_when_its_block_fails():
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (leaf(1) * 1).requires_grad


def test_constants_get_no_gradient_and_only_leaves_keep_one():
    x, c = leaf(3), Tensor(np.ones(3))
    y = x * c
    y.sum().backward()
    assert c.grad is None and y.grad is None and x.grad is not None
    assert x.is_leaf and not y.is_leaf


def test_a_long_chain_needs_no_recursion():
    x = y = Tensor(1.0, requires_grad=True)
    for _ in range(20_000):
        y = y + 0.001
    y.backward()
    assert x.grad == 1
    del y  # taking the chain apart must not recurse either


def test_the_graph_is_freed_with_its_result():
    import gc
    import weakref

    gc.disable()
    try:
        loss = ours.cross_entropy(ours.rms_norm(leaf(4, 3)) @ leaf(3, 5), [0, 1, 2, 3])
        inner = weakref.ref(loss._inputs[0][0])
        del loss
        assert inner() is None  # no reference cycles: memory goes back at once
    finally:
        gc.enable()


# dtypes


def test_dtypes_are_kept_and_numbers_do_not_promote():
    x = Tensor(np.ones(3, np.float32), requires_grad=True)
    results = (
        x * 2.5,
        2.5 * x,
        x / np.float64(3),
        x**0.5,
        1 - x,
        x.mean(),
        x + [1, 2, 3],
        ours.gelu(x),
        ours.silu(x),
    )
    for y in results:
        assert y.dtype == np.float32
        y.sum().backward()
    assert x.grad.dtype == np.float32
    assert Tensor([1, 2]).dtype == Tensor(1.5).dtype == Tensor(np.arange(3)).dtype == np.float32
    # an fp64 array promotes, as in torch
    assert Tensor(np.float64(1)).dtype == (x * np.ones(3)).dtype == np.float64


def test_arrays_on_the_left_work():
    x = leaf(3)
    for y, expected in (
        (np.ones(3) * x, x.data),
        (np.ones(3) - x, 1 - x.data),
        (np.eye(3) @ x, x.data),
        (np.ones(3) / x, 1 / x.data),
    ):
        assert isinstance(y, Tensor)
        np.testing.assert_allclose(y.data, expected)


def test_the_data_is_a_copy():
    array = np.ones(3)
    x = Tensor(array)
    x.data += 1
    assert (array == 1).all()


# errors


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: x + leaf(4), ["+", "(2, 3) and (4,)"]),
        (lambda x: x @ leaf(4, 2), ["@", "(2, 3) and (4, 2)"]),
        (lambda x: x.reshape(5), ["reshape", "(2, 3)"]),
        (lambda x: x.permute(0, 2), ["permute", "(2, 3)"]),
        (lambda x: x.sum(3), ["sum(dim=3)", "(2, 3)"]),
        (lambda x: x.softmax(2), ["softmax(dim=2)", "(2, 3)"]),
        (lambda x: x[5], ["[]", "(2, 3)"]),
        (lambda x: x[leaf(2)], ["[]"]),
        (lambda x: ours.cat([x, leaf(2, 4)], 0), ["cat(dim=0)", "(2, 3) and (2, 4)"]),
        (lambda x: x.masked_fill(np.ones(4, bool), 0.0), ["masked_fill", "(2, 3)"]),
        (lambda x: x ** leaf(3), ["exponent"]),
        (lambda x: x.item(), ["item()", "(2, 3)"]),
        (lambda x: x.backward(), ["(2, 3)", ".sum()"]),
        (lambda x: x.backward(np.ones(3)), ["(3,)", "(2, 3)"]),
        (lambda x: x.sum().backward(np.ones(2)), ["(2,)"]),
        (lambda x: Tensor(1.0).backward(), ["requires_grad"]),
        (lambda x: ours.cross_entropy(x, [0, 3]), ["target 3", "3 classes"]),
        (lambda x: ours.cross_entropy(x, [0, -1]), ["target -1"]),
        (lambda x: ours.cross_entropy(x, [0]), ["(2, 3)", "(1,)"]),
        (lambda x: ours.cross_entropy(x, [0.5, 1.0]), ["float64"]),
        (lambda x: Tensor([[1], [1, 2]]), ["rows of equal length"]),
        (lambda x: Tensor("many"), ["many"]),
        (lambda x: Tensor(None), ["None"]),
    ],
)
def test_errors_name_shapes_and_values(call, words):
    with pytest.raises(MiniloraError) as error:
        call(leaf(2, 3))
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


# the picture


def test_the_graph_view_names_every_value_and_escapes():
    x, w = Tensor(2.0, True, name="x"), Tensor(-3.0, True, name="<w>")
    y = (x * w + 1).tanh()
    y.name = "y"
    svg = draw(y, with_gradients=True)
    root = ET.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    texts = [t.text for t in root.iter(space + "text")]
    assert {"x", "<w>", "*", "+", "constant", "y = tanh", "2", "-3"} <= set(texts)
    assert (
        root.get("role") == "img"
        and "6 values" in root.get("aria-label")
        and root.get("data-edges") == "5"
    )
    assert "currentColor" in svg and "<w>" not in svg and "#" not in svg
    assert x.grad is None  # looking changes nothing
    (y * 1).backward()
    assert f"grad {x.grad.item():.3g}" in texts
    rects = [(float(r.get("x")), float(r.get("y"))) for r in root.iter(space + "rect")]
    assert len(set(rects)) == 6  # no two boxes in one place


def test_a_leaf_alone_and_a_graph_too_large():
    assert "constant" in draw(Tensor(1.0))
    x = leaf(2, 3)
    for _ in range(40):
        x = x * 2
    with pytest.raises(MiniloraError, match="81 values"):
        draw(x)
    assert "shape 2×3" in draw(x, most=100)


def test_a_leaf_stands_next_to_the_first_box_that_uses_it():
    a, c = Tensor(1.0, requires_grad=True, name="a"), Tensor(2.0, name="c")
    root = ET.fromstring(draw(a.exp().exp() * c))
    boxes = [element for element in root.iter() if element.tag.endswith("rect")]
    names = [e.text for e in root.iter() if e.get("font-weight") == "bold"]
    columns = {name: (int(box.get("x")) - 8) // 158 for name, box in zip(names, boxes)}
    assert columns == {"a": 0, "exp": 2, "c": 2, "*": 3}, "the second exp is named last"


# every rule at once


def slope_error() -> float:
    """The largest difference between gradients and difference quotients in a small network that
    uses every rule.
    """
    table, w, gain = leaf(4, 3, seed=1), leaf(3, 3, seed=2), leaf(3, seed=3)

    def loss():
        # (2, 3, 3), row 2 three times
        h = ours.rms_norm(table[np.array([[0, 2, 2], [1, 2, 0]])], gain)
        scores = (h @ w) @ h.mT * 0.5
        h = h + scores.masked_fill(np.triu(np.ones((3, 3)), 1) > 0, -np.inf).softmax(-1) @ h
        h = ours.cat([ours.silu(h), h.tanh() / (h * h + 1)], -1).amax(1, keepdim=True) + gain.sum()
        return ours.cross_entropy(h.transpose(0, 1).reshape(2, 6), np.array([1, -100])) + h.mean()

    loss().backward()
    worst = 0.0
    for p in (table, w, gain):
        for index in np.ndindex(p.shape):
            kept, values = p.data[index], []
            for step in (1e-6, -1e-6):
                p.data[index] = kept + step
                values.append(loss().item())
            p.data[index] = kept
            got = p.grad[index] if p.grad.shape == p.shape else np.inf
            worst = max(worst, abs(got - (values[0] - values[1]) / 2e-6))
    return worst


def test_gradients_equal_difference_quotients():
    assert slope_error() < 1e-8

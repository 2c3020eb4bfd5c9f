"""int8 against bitsandbytes' Linear8bitLt on a CPU: integers to the bit, sums within 1e-3, states
in both directions.
"""

import copy

import bitsandbytes.functional as bnbf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_peer import TINY, float_linear, inputs, relative, theirs, weights
from torch import nn

from minilora import llama
from minilora.qlora import int8

pytestmark = pytest.mark.parity  # beside the library that people use

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# a width of 1: see below
sizes = st.tuples(st.integers(1, 9), st.integers(2, 40), st.integers(1, 17))


# ---- piece by piece


def test_codes():
    for rows, width in ((1, 8), (3, 7), (5, 33), (64, 64)):
        for dtype in DTYPES:
            for threshold in (0.0, 6.0, 2.0):
                x = inputs(rows, width, dtype, outliers=2)
                codes, scale, columns = int8.quantize_rows(x, threshold)
                their_codes, their_scale, their_columns = bnbf.int8_vectorwise_quant(
                    x.half(), threshold=threshold
                )
                assert torch.equal(codes, their_codes) and torch.equal(scale, their_scale)
                assert torch.equal(
                    columns,
                    torch.empty(0, dtype=torch.int64) if their_columns is None else their_columns,
                )
                assert torch.equal(int8.outlier_columns(x, threshold), columns)


def test_weights_and_decoding():
    linear = float_linear(17, 33)
    ours, reference = int8.Int8Linear.from_linear(linear), theirs(linear)
    assert torch.equal(ours.weight, reference.weight) and torch.equal(
        ours.SCB, reference.weight.SCB
    )
    decoded = bnbf.int8_vectorwise_dequant(reference.weight.data, reference.weight.SCB)
    torch.testing.assert_close(ours.dense_weight(), decoded, rtol=2e-7, atol=0)
    assert (ours.dense_weight() - linear.weight).abs().max() <= (
        linear.weight.abs().amax(1) / 254
    ).max() * 1.06


def test_integer_product():
    for rows, width, out in ((1, 7, 5), (3, 1, 1), (5, 33, 13), (2, 3001, 4)):
        a = torch.randint(-127, 128, (rows, width), dtype=torch.int8)
        a[0] = 127  # 3001·127² is odd and beyond 2²⁴
        b = torch.full((out, width), 127, dtype=torch.int8)
        exact = torch.from_numpy(a.numpy().astype(np.int64) @ b.numpy().astype(np.int64).T)
        for product in (int8.integer_product, int8.chunked_product):
            assert torch.equal(product(a, b).long(), exact)
        assert width == 1 or torch.equal(
            int8.integer_product(a, b), torch.ops.bitsandbytes.int8_linear_matmul(a, b)
        )


def test_sums():
    for rows, width, out in ((1, 8, 4), (3, 7, 5), (33, 64, 48)):
        for dtype in DTYPES:
            for threshold in (0.0, 6.0):
                linear = float_linear(out, width)
                x = inputs(rows, width, dtype, outliers=3)
                ours, reference = (
                    int8.Int8Linear.from_linear(linear, threshold).eval(),
                    theirs(linear, threshold).eval(),
                )
                y, expected = ours(x), reference(x)
                assert y.dtype == expected.dtype and y.shape == expected.shape
                assert relative(y, expected) <= (1e-4 if dtype == torch.float32 else 1e-3)


def test_training():
    for dtype in DTYPES:
        linear = float_linear(13, 33)
        ours, reference = int8.Int8Linear.from_linear(linear).train(), theirs(linear).train()
        # train, eval, train: the gradient of x must be there each time
        for mode in (True, False, True):
            ours.train(mode), reference.train(mode)
            x, x2 = (inputs(5, 33, dtype, outliers=2).requires_grad_() for _ in range(2))
            y, expected = ours(x), reference(x2)
            grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
            y.backward(grad), expected.backward(grad)
            assert torch.equal(x.grad, x2.grad)
            if mode:
                assert torch.equal(y, expected)


def test_outliers_save_the_product():
    x, W = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)), weights(32, 128)
    W[1:3] = 0.01
    x[:, 5] *= 100
    plain, split = int8.product_error(x, W, 0.0), int8.product_error(x, W, 6.0)
    assert plain.columns == 0 and split.columns == 1 and split.share == 1 / 128
    assert split.error < 0.02 and plain.error > 3 * split.error


def test_model():
    model = llama.Llama(llama.Config(**TINY)).eval()
    before = copy.deepcopy(model)
    assert int8.quantize_model_int8(model, 6.0) is model
    kinds = {
        type(layer) for layer in model.model.layers[0].modules() if hasattr(layer, "in_features")
    }
    assert kinds == {int8.Int8Linear}
    head = getattr(model, "lm_head", None)
    assert head is None or type(head) is nn.Linear
    assert torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
    ids = torch.randint(5, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    assert 0 < relative(model(ids), before(ids)) < 0.03


# ---- random shapes


@settings(max_examples=80, deadline=None)
@given(
    sizes,
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 0.5, 3.0, 6.0]),
    st.integers(0, 9),
    st.booleans(),
)
def test_any_shape_equals_bitsandbytes(size, dtype, threshold, outliers, bias):
    rows, width, out = size
    x, linear = inputs(rows, width, dtype, outliers, seed=rows), float_linear(out, width, bias)
    ours, reference = (
        int8.Int8Linear.from_linear(linear, threshold).eval(),
        theirs(linear, threshold).eval(),
    )
    assert torch.equal(ours.weight, reference.weight)
    codes, scale, columns = int8.quantize_rows(x, threshold)
    their_codes, their_scale, their_columns = bnbf.int8_vectorwise_quant(
        x.half(), threshold=threshold
    )
    assert torch.equal(codes, their_codes) and torch.equal(scale, their_scale)
    their_integers = torch.ops.bitsandbytes.int8_linear_matmul(their_codes, reference.weight.data)
    assert torch.equal(int8.integer_product(codes, ours.weight), their_integers)
    # the constant, and the two parts each rounded once, against the size of what is added up (sums
    # may cancel)
    size = x.double().abs() @ linear.weight.double().abs().T + (
        linear.bias.double().abs() if bias else 0
    )
    error = (ours(x).double() - reference(x).double()).abs()
    assert (error <= (4e-5 + 3 * torch.finfo(dtype).eps) * size).all()


@pytest.mark.parametrize("shape", [(8,), (1, 8), (0, 8), (2, 3, 8), (2, 1, 3, 8), (1, 1, 8)])
@pytest.mark.parametrize("training", [True, False])
def test_leading_dimensions_of_any_number(shape, training):
    layer = int8.Int8Linear.from_linear(float_linear(5, 8)).train(training)
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 5)
    if x.numel() and not training:
        torch.testing.assert_close(
            y.reshape(-1, 5)[:1], layer(x.reshape(-1, 8)[:1]), rtol=1e-6, atol=1e-6
        )


def test_one_row_is_like_any_other_row():
    """bitsandbytes zeroes whole outlier columns only where there is more than one row; with one row
    it is the same thing.
    """
    layer = int8.Int8Linear.from_linear(float_linear(5, 8)).eval()
    x = torch.tensor([[7.0, 0.1, -9.0, 0.2, 0.3, 0.4, 0.5, 0.6]])
    torch.testing.assert_close(layer(x)[0], layer(x.repeat(3, 1))[2], rtol=1e-6, atol=1e-6)
    all_outliers = torch.full((1, 8), 50.0)
    torch.testing.assert_close(
        layer(all_outliers), all_outliers @ layer.dense_weight().T + layer.bias
    )


def test_zeros_infinities_and_nan():
    layer = int8.Int8Linear.from_linear(float_linear(5, 8, bias=False)).eval()
    assert torch.equal(layer(torch.zeros(2, 8)), torch.zeros(2, 5))
    x = torch.ones(2, 8)
    x[0, 3] = float("nan")
    y = layer(x)
    assert y[0].isnan().all() and y[1].isfinite().all()
    x[0, 3] = 1e30  # infinite in fp16, an outlier like any other
    torch.testing.assert_close(layer(x)[0], x[0] @ layer.dense_weight().T, rtol=1e-5, atol=0)


def test_a_single_feature_where_bitsandbytes_reads_unwritten_memory():
    layer = int8.Int8Linear.from_linear(float_linear(5, 1)).eval()
    x = torch.tensor([[1.0], [-2.0], [100.0]])
    torch.testing.assert_close(layer(x), x @ layer.dense_weight().T + layer.bias)


def test_sums_beyond_int32_stay_exact():
    width = 140_000
    a, b = (
        torch.full((1, width), 127, dtype=torch.int8),
        torch.full((2, width), 127, dtype=torch.int8),
    )
    assert int8.integer_product(a, b).tolist() == [[127 * 127 * width] * 2]


def test_the_plain_product_is_the_fallback_where_torch_has_none(monkeypatch):
    layer, x = int8.Int8Linear.from_linear(float_linear(13, 2100)).eval(), inputs(5, 2100)
    expected = layer(x)
    monkeypatch.setattr(int8, "_int_mm_fits", lambda a, b: False)
    assert torch.equal(layer(x), expected)


# ---- states


def test_states_go_both_ways():
    linear, other = float_linear(13, 33, seed=1), float_linear(13, 33, seed=2)
    ours, reference = int8.Int8Linear.from_linear(linear), theirs(other)
    ours_state, their_state = ours.state_dict(), reference.state_dict()
    assert {k: (v.dtype, v.shape) for k, v in ours_state.items()} == {
        k: (v.dtype, v.shape) for k, v in their_state.items()
    }
    x = inputs(4, 33, outliers=1)
    fresh = theirs(linear)
    fresh.load_state_dict(ours.state_dict())
    torch.testing.assert_close(fresh.eval()(x), ours.eval()(x), rtol=1e-3, atol=1e-4)
    ours.load_state_dict(their_state)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x), rtol=1e-3, atol=1e-4)
    del their_state["weight_format"]  # as older files have it
    ours.load_state_dict(their_state)


def test_casting_the_model_leaves_the_scales_alone():
    layer = int8.Int8Linear.from_linear(float_linear(5, 8))
    weight, scale = layer.weight.clone(), layer.SCB.clone()
    layer.to(torch.bfloat16)
    assert layer.dtype == torch.bfloat16 == layer.bias.dtype == layer.dense_weight().dtype
    assert (
        torch.equal(layer.weight, weight)
        and torch.equal(layer.SCB, scale)
        and layer.SCB.dtype == torch.float32
    )
    assert layer(torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    twin = copy.deepcopy(layer.float()).double()
    assert twin.dtype == torch.float64 and layer.dtype == torch.float32
    bias = layer.bias
    layer.eval()(torch.randn(2, 8, dtype=torch.bfloat16))
    assert layer.bias is bias and bias.dtype == torch.float32  # bitsandbytes casts it for good

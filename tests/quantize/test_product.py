"""Products with packed weights: the compiled one beside decode-then-multiply, within the bound that
product.py derives.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minilora.quantize import product, quantize
from minilora.quantize.product import Product
from minilora.system import cpp

pytestmark = pytest.mark.skipif(cpp.compiler() is None, reason="no C++ compiler here")

SOURCE = cpp.PACKAGE / "quantize" / "product.h"


@pytest.fixture(scope="module", params=["this processor", "any processor"])
def library(request):
    """With the instructions that torch has found, and with none but those that all have."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "any processor":
            patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
        built = cpp.build(SOURCE)
    assert built is not None
    return built


def bound(weight, x, fan_in):
    """How far two ways to add up may be apart, (rows, out)."""
    W = weight if isinstance(weight, torch.Tensor) else weight.dequantize(torch.float32)
    return 2 * (fan_in + 1) * 2.0**-24 * (x.abs() @ W.abs().T)


def made(out, fan_in, code="nf4", block=64, double=True, seed=0):
    W = torch.randn(out, fan_in, generator=torch.Generator().manual_seed(seed))
    return W if code == "fp32" else quantize(W, code, block, double)


@settings(max_examples=25)
@given(
    blocks=st.integers(1, 9),
    block=st.sampled_from([32, 64, 96, 256]),
    out=st.integers(1, 40),
    rows=st.integers(1, 8),
    code=st.sampled_from(["nf4", "fp4", "int4", "fp32"]),
    double=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_equals_decode_then_multiply(
    library, blocks, block, out, rows, code, double, bias, seed
):
    weight, dice = made(out, blocks * block, code, block, double, seed), torch.Generator()
    x = torch.randn(rows, blocks * block, generator=dice.manual_seed(seed + 1))
    asked = Product(weight, torch.randn(out, generator=dice) if bias else None)
    given, wanted = product.compiled(library, asked, x), product.plain(asked, x)
    slack = bound(weight, x, blocks * block) + 1e-6 * (0 if not bias else asked.bias.abs())
    assert ((given - wanted).abs() <= slack).all()


@pytest.mark.parametrize("fan_in", [1, 7, 63, 64, 65, 576, 1000])
def test_dense_rows_of_any_length(library, fan_in):
    x = torch.randn(3, fan_in, generator=torch.Generator().manual_seed(1))
    asked = Product(made(5, fan_in, "fp32"))
    off = (product.compiled(library, asked, x) - product.plain(asked, x)).abs()
    assert (off <= bound(asked.weight, x, fan_in)).all()


@pytest.mark.parametrize("code", ["nf4", "fp4", "int4"])
def test_each_number_is_decoded_exactly(library, code):
    """Rows of x with a single 1 read the numbers of W one by one."""
    for double in (False, True):
        weight, one = made(400, 192, code, double=double), torch.eye(192)[[0, 1, 63, 64, 190, 191]]
        wanted = one @ weight.dequantize(torch.float32).T
        assert torch.equal(product.compiled(library, Product(weight), one), wanted)


def test_the_bytes_and_scales_of_bitsandbytes_are_read(library):
    functional = pytest.importorskip("bitsandbytes.functional")
    W = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(W, quant_type="nf4", blocksize=64)
    weight = made(48, 128, double=False)
    weight.packed, weight.absmax = packed, state.absmax
    wanted = functional.dequantize_4bit(packed, state).T
    assert torch.equal(product.compiled(library, Product(weight), torch.eye(128)), wanted)


@pytest.mark.parametrize("rank", [1, 8, 70])
@pytest.mark.parametrize("code", ["nf4", "fp32"])
def test_bias_and_adapter_are_added(library, code, rank):
    dice = torch.Generator().manual_seed(rank)
    A, B = torch.randn(rank, 128, generator=dice), torch.randn(33, rank, generator=dice)
    x, bias = torch.randn(2, 128, generator=dice), torch.randn(33, generator=dice)
    asked = Product(made(33, 128, code), bias, A, B, 0.75)
    given, wanted = product.compiled(library, asked, x), product.plain(asked, x)
    assert torch.allclose(given, wanted, rtol=1e-5, atol=1e-3 * 0.1)
    assert not torch.allclose(given, product.plain(Product(asked.weight, bias), x), atol=0.1)


def test_each_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads(library):
    asked = Product(made(100, 576))
    x = torch.randn(4, 576, generator=torch.Generator().manual_seed(0))
    together, before = product.compiled(library, asked, x), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone = [product.compiled(library, asked, row[None]) for row in x]
            assert torch.equal(torch.cat(alone), together)
    finally:
        torch.set_num_threads(before)


W = torch.ones(64, 128)


@pytest.mark.parametrize(
    "asked",
    [
        Product(W.bfloat16()),
        Product(W.T),
        Product(W, bias=torch.ones(64, dtype=torch.float64)),
        Product(W, A=torch.ones(2, 128).half(), B=torch.ones(64, 2)),
        Product(W.to("meta")),
        Product(quantize(W, "int8")),
        Product(quantize(W, "nf4", 16)),
        Product(quantize(W, "nf4", 48)),
        Product(quantize(W, "nf4", "tensor")),
        Product(quantize(W, "nf4", "column")),
        Product(quantize(np.ones((64, 128), np.float16), "nf4", 33)),
    ],
    ids=lambda asked: str(getattr(asked.weight, "code", asked.weight)).split("(")[0],
)
def test_what_does_not_fit_is_left_to_others(asked):
    assert product.matrix(asked) is None

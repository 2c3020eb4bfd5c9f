"""The compiled decoder: the bits of the plain one, called when it pays, and never missed where it
cannot be had.
"""

import shutil

import numpy as np
import pytest
import torch

from minilora.quantize import codebooks, quantize
from minilora.quantize.kernels import compiled, cpu

pytestmark = pytest.mark.parity  # beside the library that people use

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(cpu, "WHOLE", 0)
    monkeypatch.setattr(compiled, "SMALLEST", 1 << 14)
    monkeypatch.setattr(compiled, "state", compiled.State())
    monkeypatch.setenv("MINILORA_COMPILE", "always")


@pytest.fixture
def uncompiled(monkeypatch):
    """The two passes as torch runs them by itself: the same arithmetic without the wait for the
    compiler.
    """
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


def case(blocks, block, code, seed=0):
    """Any bytes, and scales of every size that a tensor may have; some negative, as double
    quantization can make them.
    """
    dice = np.random.default_rng(seed)
    packed = dice.integers(0, 256, blocks * block // 2, dtype=np.uint8)
    absmax = (dice.standard_normal(blocks) * 10.0 ** dice.integers(-44, 38, blocks)).astype(
        np.float32
    )
    absmax.view(np.int32)[::2] &= -0x10000
    absmax.view(np.int32)[::2] |= 0x8000  # ties in bf16 where the level is 1
    absmax[::7] = 0
    return packed, absmax, codebooks.named(code), block


def check(given, dtype):
    packed, absmax, book, block = given
    plain, out = np.empty(2 * packed.size, np.float32), torch.empty(2 * packed.size, dtype=dtype)
    cpu.decode(packed, absmax, None, book, block, plain)
    assert compiled.supports(book, block, out)
    compiled.decode(packed, absmax, None, book, block, out)
    assert None not in compiled.state.passes.values()
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(out.view(integers), torch.from_numpy(plain).to(dtype).view(integers))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [2, 32, 64, 4096])
def test_the_passes_have_the_bits_of_the_plain_way(uncompiled, dtype, block):
    for size, code in ((compiled.SMALLEST, "nf4"), (50021, "fp4")):
        check(case(-(-size // block), block, code), dtype)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++ here: the plain way is all there is"
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_they_have_them_too_for_any_number_of_blocks(dtype):
    for blocks, code in ((256, "nf4"), (257, "fp4"), (20011, "int4")):
        check(case(blocks, 64, code, seed=blocks), dtype)
    assert len(compiled.state.passes) == 1


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_with_a_tail_decodes_the_same(uncompiled, monkeypatch, dtype, double):
    x = torch.randn(333, 201, generator=torch.Generator().manual_seed(0)).to(dtype)
    q = quantize(x, double=double)
    fast, into = q.dequantize(), q.dequantize(out=torch.empty(x.shape, dtype=dtype))
    assert list(compiled.state.passes) == [(64, dtype, torch.get_num_threads())]
    monkeypatch.setenv("MINILORA_COMPILE", "never")  # which a pass that is ready heeds, too
    monkeypatch.setattr(compiled.state, "passes", dict.fromkeys(compiled.state.passes, broken))
    assert torch.equal(q.dequantize(), fast) and torch.equal(fast, into)
    assert None not in compiled.state.passes.values()


def decoded(times=1, **more):
    q = quantize(torch.randn(256, 64, generator=torch.Generator().manual_seed(0)))
    for _ in range(times):
        values = q.dequantize(**more)
    return values


def test_the_compiler_is_called_when_it_has_paid(uncompiled, monkeypatch):
    monkeypatch.setattr(compiled, "PAYS_AFTER", 5 * 256 * 64)
    for wanted, after in (("never", None), ("auto", 6), ("always", 1)):
        compiled.forget()
        monkeypatch.setenv("MINILORA_COMPILE", wanted)
        ready = [bool(decoded() is not None and compiled.state.passes) for _ in range(8)]
        assert ready == [after is not None and call >= after for call in range(1, 9)]


def test_what_does_not_suit_is_left_to_the_plain_way(uncompiled):
    small, eight = quantize(torch.randn(100, 64)), quantize(torch.randn(256, 64), "int8")
    whole, odd = (
        quantize(torch.randn(256, 64), block="tensor"),
        quantize(torch.randn(256, 75), block=25),
    )
    for q in (small, eight, whole, odd, quantize(np.ones((256, 64), np.float32))):
        q.dequantize()
    decoded(dtype=torch.float16)
    assert not compiled.state.passes


def broken(*arguments, **options):
    raise RuntimeError("no compiler")


def wrong(packed, table, absmax, out):
    out.copy_(table[packed.int()] * (absmax * 1.0000001)[:, None, None])


@pytest.mark.parametrize(
    "where, name, what",
    [(torch, "compile", broken), (compiled, "fp32_pass", wrong)],
    ids=["no compiler", "a wrong pass"],
)
def test_without_a_compiler_or_with_a_wrong_one_the_plain_way_goes_on(
    uncompiled, monkeypatch, where, name, what
):
    monkeypatch.setattr(where, name, what)
    tries = []
    monkeypatch.setattr(
        compiled, "_compile", lambda *a, real=compiled._compile: tries.append(a) or real(*a)
    )
    values = decoded(3)
    assert len(tries) == 1 and list(compiled.state.passes.values()) == [None]
    monkeypatch.setenv("MINILORA_COMPILE", "never")
    assert torch.equal(values, decoded())


def test_a_pass_that_fails_later_is_given_up(uncompiled, monkeypatch):
    expected = decoded()
    (key,) = compiled.state.passes
    compiled.state.passes[key] = broken
    assert torch.equal(decoded(2), expected) and compiled.state.passes == {key: None}

"""The compiled decoder: the bits of the plain one, called when it pays, and never missed where it
cannot be had.
"""

import ctypes

import numpy as np
import pytest
import torch

from minilora.quantize import codebooks, quantize
from minilora.quantize.kernels import compiled, cpu
from minilora.system import cpp

needs_compiler = pytest.mark.skipif(
    cpp.compiler() is None, reason="no C++ compiler here: the plain way is all there is"
)
pytestmark = [pytest.mark.parity, needs_compiler]  # beside the library that people use

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(cpu, "WHOLE", 0)
    monkeypatch.setattr(compiled, "SMALLEST", 1 << 14)
    monkeypatch.setattr(compiled, "state", compiled.State())
    monkeypatch.setenv("MINILORA_COMPILE", "always")


@pytest.fixture(scope="module")
def built():
    return cpp.build(compiled.SOURCE)


@pytest.fixture
def once(monkeypatch, built):
    """The passes without the wait for the compiler: it is called once for all tests."""
    monkeypatch.setattr(cpp, "build", lambda source: built)


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
def test_the_passes_have_the_bits_of_the_plain_way(once, dtype, block):
    for size, code in ((compiled.SMALLEST, "nf4"), (50021, "fp4")):
        check(case(-(-size // block), block, code), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["this processor", "any processor"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_they_have_them_too_for_any_number_of_blocks(dtype, capability, monkeypatch):
    if capability == "any processor":
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    for blocks, code in ((256, "nf4"), (257, "fp4"), (20011, "int4")):
        check(case(blocks, 64, code, seed=blocks), dtype)
    assert len(compiled.state.passes) == 1


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_with_a_tail_decodes_the_same(once, monkeypatch, dtype, double):
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


def test_the_compiler_is_called_when_it_has_paid(once, monkeypatch):
    monkeypatch.setattr(compiled, "PAYS_AFTER", 5 * 256 * 64)
    for wanted, after in (("never", None), ("auto", 6), ("always", 1)):
        compiled.forget()
        monkeypatch.setenv("MINILORA_COMPILE", wanted)
        ready = [bool(decoded() is not None and compiled.state.passes) for _ in range(8)]
        assert ready == [after is not None and call >= after for call in range(1, 9)]


def test_what_does_not_suit_is_left_to_the_plain_way(once):
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


class Wrong:
    """A library whose numbers are one rounding off."""

    def __init__(self, real):
        self.real = real

    def decode_fp32(self, packed, levels, absmax, blocks, block, out, threads):
        self.real.decode_fp32(packed, levels, absmax, blocks, block, out, threads)
        bits = np.ctypeslib.as_array(
            (ctypes.c_int32 * (blocks.value * block.value)).from_address(out.value)
        )
        bits[-1] ^= 1


@pytest.mark.parametrize("library", [lambda real: None, Wrong], ids=["no compiler", "a wrong pass"])
def test_without_a_compiler_or_with_a_wrong_one_the_plain_way_goes_on(monkeypatch, built, library):
    monkeypatch.setattr(cpp, "build", lambda source: library(built))
    tries = []
    monkeypatch.setattr(
        compiled, "_compile", lambda *a, real=compiled._compile: tries.append(a) or real(*a)
    )
    values = decoded(3)
    assert len(tries) == 1 and list(compiled.state.passes.values()) == [None]
    monkeypatch.setenv("MINILORA_COMPILE", "never")
    assert torch.equal(values, decoded())


def test_a_pass_that_fails_later_is_given_up(once, monkeypatch):
    expected = decoded()
    (key,) = compiled.state.passes
    compiled.state.passes[key] = broken
    assert torch.equal(decoded(2), expected) and compiled.state.passes == {key: None}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "old, new",
    [
        ("bits + 0x7FFF + (bits >> 16 & 1)", "bits + 0x8000"),
        ("bits + 0x7FFF + (bits >> 16 & 1)", "bits"),
        ("store(to + 2 * (j + i), first[i])", "store(to + 2 * (j + i), second[i])"),
        ("decode(bytes + j, levels, absmax[b]", "decode(bytes + j, levels, absmax[0]"),
    ],
    ids=["ties up", "cut off", "halves swapped", "one scale for all"],
)
def test_a_fault_in_the_source_is_not_used(monkeypatch, tmp_path, dtype, old, new):
    text = compiled.SOURCE.read_text()
    assert old in text
    (tmp_path / "decode.h").write_text(text.replace(old, new))
    monkeypatch.setattr(compiled, "SOURCE", tmp_path / "decode.h")
    decoded(dtype=dtype)
    assert compiled.state.library is not None
    seen = dtype == torch.bfloat16 or "bits +" not in old
    assert [run is None for run in compiled.state.passes.values()] == [seen]

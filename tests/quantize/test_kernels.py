"""Every kernel gives the bits of the plain one, whatever the code, the type and the size; and none
keeps more memory than it says.
"""

import threading

import numpy as np
import pytest
import torch

from minilora.errors import MiniloraError
from minilora.quantize import codebooks, kernels, quantize
from minilora.quantize.kernels import compiled, cpu, plain, torch_ops
from minilora.system import cpp, scratch

# A new kernel is named here and in `kernels.choose`.
KERNELS = {"cpu": cpu, "compiled": compiled, "torch_ops": torch_ops}
CODES = ("nf4", "fp4", "int2", "int3", "int4", "int5", "int8", "dynamic8")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# numbers and block: one number, odd ends, a whole block, ends inside a byte, several pieces, and
# long ends, which are scaled in another way
SIZES = ((1, 64), (65, 64), (127, 64), (4096, 64), (3001, 64), (2999, 3), (2 * 4096 + 5, 4096))
SIZES += tuple((64 * blocks + 63, 64) for blocks in (4, 5, 7, 8, 10, 11, 13, 14))
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@pytest.fixture(scope="module")
def built():
    return cpp.build(compiled.SOURCE)


@pytest.fixture(params=KERNELS)
def kernel(request, monkeypatch, built):
    """Each kernel, cutting into small pieces; the compiler is called once."""
    if request.param == "compiled" and built is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(torch_ops, "PIECE", 1000)
    monkeypatch.setattr(cpu, "PIECE", 1024)
    monkeypatch.setattr(compiled, "SMALLEST", 1)
    monkeypatch.setattr(compiled, "state", compiled.State())
    monkeypatch.setattr(cpp, "build", lambda source: built)
    monkeypatch.setenv("MINILORA_COMPILE", "always")
    return KERNELS[request.param]


def same(a, b) -> bool:
    """Equal to the last bit, the sign of a zero included."""
    kind = BITS.get(a.dtype, a.dtype)
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def numbers(size, block, book, dtype):
    """On a threshold or one or two ulps beside it, at every magnitude; a block of zeros, and one of
    numbers below the smallest scale.
    """
    dice = np.random.default_rng(size + block)
    blocks = -(-size // block)
    absmax = dice.uniform(1, 2, blocks) * 2.0 ** dice.integers(-20, 14, blocks)
    absmax[::3] = 0.5  # ties are hit exactly
    absmax = np.repeat(absmax, block)[:size].astype(np.float32)
    x = dice.choice(book.thresholds[np.abs(book.thresholds) < 1], size) * absmax
    x = (x * (1 + dice.integers(-2, 3, size) * 2.0**-23)).astype(np.float32)
    x[::block] = absmax[::block]
    x[block : 2 * block] = 0
    x[2 * block : 3 * block] *= np.float32(1e-40)
    return torch.from_numpy(x).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("code", CODES)
def test_encoding_has_the_bits_of_the_plain_one(kernel, code, dtype):
    book = codebooks.named(code)
    for size, block in SIZES:
        x = numbers(size, block, book, dtype)
        for given, wanted in zip(kernel.encode(x, book, block), plain.encode(x, book, block)):
            assert same(given, wanted), (size, block)


def codes_and_scales(size, block, book, nested):
    dice = np.random.default_rng(size * block)
    codes = dice.integers(0, book.levels.size, size).astype(np.uint8)
    packed = torch.from_numpy(plain.pack(codes, book.bits, book.zero))
    blocks = -(-size // block)
    absmax = (dice.standard_normal(blocks) * 10.0 ** dice.integers(-4, 4, blocks)).astype("f4")
    absmax[::3].view(np.int32)[:] &= -0x10000
    absmax[::3].view(np.int32)[:] |= 0x8000  # ties in bf16 where the level is 1
    absmax = torch.from_numpy(absmax)
    return packed, *(plain.encode_scales(absmax) if nested else (absmax, None))


@pytest.mark.parametrize("whole", [0, 1 << 19], ids=["pieces", "whole"])
@pytest.mark.parametrize("nested", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("code", CODES)
def test_decoding_has_the_bits_of_the_plain_one(kernel, code, nested, whole, monkeypatch):
    """Into memory of each type, at its beginning and inside other memory, which stays as it was."""
    monkeypatch.setattr(cpu, "WHOLE", whole)
    book = codebooks.named(code)
    for size, block in SIZES:
        given = codes_and_scales(size, block, book, nested)
        for dtype in DTYPES:
            wanted = torch.empty(size, dtype=dtype)
            plain.decode(*given, book, block, wanted)
            for before in (0, 1, 2):
                memory = torch.full((before + size + 2,), 7.0, dtype=dtype)
                out = memory[before : before + size]
                if kernel is not compiled or kernel.supports(book, block, out):
                    kernel.decode(*given, book, block, out)
                    assert same(out, wanted), (size, block, dtype, before)
                assert (memory[:before] == 7).all() and (memory[before + size :] == 7).all()
    if kernel is compiled and book.bits == 4:
        assert len(kernel.state.passes) == 4 and None not in kernel.state.passes.values()


@pytest.mark.parametrize("count", [1, 255, 256, 257, 2000])
def test_scales_of_scales_have_the_bits_of_the_plain_ones(kernel, count):
    absmax = torch.rand(count, generator=torch.Generator().manual_seed(count))
    absmax[: count // 2] *= torch.logspace(-6, 2, count // 2)
    absmax[256:512] = absmax.mean()  # in a block of its own all is near zero
    codes, nested = kernel.encode_scales(absmax)
    wanted, theirs = plain.encode_scales(absmax)
    assert same(codes, wanted) and same(nested.absmax, theirs.absmax)
    assert nested.offset == theirs.offset
    assert same(kernel.decode_scales(codes, nested), plain.decode_scales(wanted, theirs))
    assert kernel.decode_scales(absmax, None) is absmax


def test_a_block_of_zeros_among_the_scales(kernel):
    absmax = torch.ones(512)  # less their mean nothing is left
    codes, nested = kernel.encode_scales(absmax)
    assert codes.unique().tolist() == [0] and not nested.absmax.any()


@pytest.mark.parametrize("block", [1, 64])
def test_what_is_no_number_is_refused(kernel, block):
    book = codebooks.named("nf4")
    for bad, words in ((float("nan"), "NaN"), (float("-inf"), "infinity")):
        for place in (5, 129):  # in a whole block, and in the last one
            x = torch.ones(130)
            x[place] = bad
            with pytest.raises(MiniloraError, match=words):
                kernel.encode(x, book, block)
    with pytest.raises(MiniloraError, match="int64"):
        kernel.encode(torch.arange(130), book, block)


def test_the_kernel_is_chosen_by_place_and_by_size(monkeypatch):
    book, large = codebooks.named("nf4"), torch.empty(compiled.SMALLEST)
    monkeypatch.delenv("MINILORA_COMPILE", raising=False)
    assert kernels.choose(large, book, 64) is cpu  # to encode
    assert kernels.choose(large, book, 64, large) is compiled
    assert kernels.choose(large, book, 64, large[1:]) is cpu
    assert kernels.choose(large, book, 64, large.numpy()) is cpu
    assert kernels.choose(large, book, 25, large) is cpu
    assert kernels.choose(large, codebooks.named("int8"), 64, large) is cpu
    monkeypatch.setenv("MINILORA_COMPILE", "never")
    assert kernels.choose(large, book, 64, large) is cpu
    elsewhere = torch.empty(64, device="meta")
    assert kernels.choose(elsewhere, book, 64) is torch_ops


def test_into_columns_and_other_types_the_numbers_are_rounded_once():
    """A matrix stored in bf16 whose blocks run down its columns, asked for in fp32."""
    x = torch.randn(96, 33, generator=torch.Generator().manual_seed(0))
    exact = quantize(x, block="column").dequantize()
    q = quantize(x, block="column")
    q.dtype = torch.bfloat16
    out = torch.empty(96, 33)
    assert q.dequantize(out=out) is out and torch.equal(out, exact)
    with pytest.raises(MiniloraError, match="shape"):
        q.dequantize(out=torch.empty(33, 96))
    with pytest.raises(MiniloraError, match="gaps"):
        quantize(x).dequantize(out=torch.empty(33, 96).T)


# ------------------------------------------------------------------------------------------- memory


def test_little_is_kept_after_a_large_tensor():
    """A block as long as the tensor takes as much scratch memory as the tensor; it is let go."""
    scratch.free()
    assert scratch.held() == 0
    x = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    for given in (x, x.bfloat16(), x.numpy()):
        for block in ("tensor", 1_000_003, 64):
            quantize(given, "nf4", block).dequantize()
    names = 7  # that cpu.py gives to its buffers
    assert 0 < scratch.held() <= names * cpu.HELD == 14 * 2**20
    scratch.free()
    assert scratch.held() == 0


def test_a_long_block_decodes_in_pieces():
    """Which fit the cache, and whose memory is kept."""
    assert cpu._part_of(2048 * 2048) == cpu.PIECE and cpu._part_of(70_000) == 35_000
    assert cpu._part_of(1_000_003) == 1_000_003  # a prime
    assert cpu._part_of(64) == 64 and cpu._part_of(cpu.PIECE) == cpu.PIECE
    for size in (70_000, 1_000_003):
        x = torch.randn(size, generator=torch.Generator().manual_seed(0))
        for code in ("nf4", "int3"):
            q, out = quantize(x, code, "tensor"), torch.empty(size)
            plain.decode(q.packed, q.absmax, None, q.book, q.block, out)
            assert torch.equal(q.dequantize(), out)


def test_each_thread_has_memory_of_its_own_and_it_ends_with_the_thread():
    room, seen = scratch.Scratch(most=1000), []

    def work():
        memory = room.bytes("a", 600)
        memory[:] = len(seen)
        seen.append(memory)

    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen[0][0] == 0 and seen[1][0] == 1
    assert room.held() == 0
    assert room.bytes("a", 600).base is room.bytes("a", 200).base  # kept, and grown only if needed
    assert room.held() == 600
    room.bytes("b", 1001)
    assert room.held() == 600
    room.bytes("a", 1000)
    assert room.held() == 1000
    room.free()
    assert room.held() == 0


def test_memory_goes_with_its_last_user():
    class Layer:
        pass

    room, users = scratch.Scratch(most=1000), [Layer(), Layer()]
    for user in users:
        room.serve(user)
    room.bytes("W", 500)
    del user, users[0]
    assert room.held() == 500
    users.clear()
    assert room.held() == 0


def test_what_is_compiled_is_bounded_and_can_be_forgotten(monkeypatch):
    monkeypatch.setattr(compiled, "state", compiled.State())
    monkeypatch.setattr(compiled, "_compile", lambda *key: None)
    monkeypatch.setenv("MINILORA_COMPILE", "always")
    for threads in range(40):
        compiled._pass(codebooks.named("nf4"), (64, torch.float32, threads), 10**9)
    assert len(compiled.state.passes) == compiled.MOST_PASSES
    assert (64, torch.float32, 39) in compiled.state.passes
    assert compiled.state.decoded <= compiled.PAYS_AFTER + 1
    compiled.forget()
    assert not compiled.state.passes and not compiled.state.decoded

"""minilora.optim step by step against torch.optim and bitsandbytes.

Tolerance: on fp32 and fp64 torch parameters none, every bit is compared. On NumPy parameters SGD
has torch's bits in fp32; AdamW differs in the last bit of a few elements (torch's CPU square root
is not always the nearest number).
"""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minilora import quantize
from minilora.autograd import Tensor
from minilora.errors import MiniloraError
from minilora.train import optim

pytestmark = pytest.mark.parity  # beside the library that people use

# torch rounds products and sums together only there
FUSED = torch.backends.cpu.get_cpu_capability() != "DEFAULT"


def gradients(seed, shape, steps, dtype):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield np.asarray(rng.standard_normal(shape) * rng.choice([1e-3, 1.0, 10.0]), dtype)


def trajectories(mine, theirs, *, kind, shape=(7, 13), dtype=np.float32, steps=12, seed=0):
    """Give both optimizers the same gradients; yield (our parameter, theirs) as arrays after each
    step.
    """
    start = np.asarray(np.random.default_rng(seed + 1).standard_normal(shape), dtype)
    p = (
        Tensor(start, requires_grad=True)
        if kind == "numpy"
        else torch.nn.Parameter(torch.from_numpy(start.copy()))
    )
    q = torch.nn.Parameter(torch.from_numpy(start.copy()))
    ours, reference = mine([p]), theirs([q])
    for g in gradients(seed, shape, steps, dtype):
        p.grad, q.grad = (
            (g if kind == "numpy" else torch.from_numpy(g.copy())),
            torch.from_numpy(g.copy()),
        )
        ours.step(), reference.step()
        yield (p.data if kind == "numpy" else p.detach().numpy()), q.detach().numpy()


def assert_close(pairs, tolerance):
    for step, (mine, theirs) in enumerate(pairs, 1):
        if tolerance == 0:
            assert np.array_equal(mine, theirs), (
                f"step {step}: {(mine != theirs).sum()} of {mine.size} bits differ"
            )
        else:
            np.testing.assert_allclose(
                mine, theirs, rtol=tolerance, atol=tolerance, err_msg=f"step {step}"
            )


sgd_options = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-4, 0.03, 1.0]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
        "momentum": st.sampled_from([0.0, 0.5, 0.9]),
        "dampening": st.sampled_from([0.0, 0.3]),
        "nesterov": st.booleans(),
    }
).filter(lambda o: not o["nesterov"] or (o["momentum"] and not o["dampening"]))
LOOKS_AHEAD = {
    "lr": 0.03,
    "weight_decay": 0.01,
    "momentum": 0.9,
    "dampening": 0.0,
    "nesterov": True,
}
adam_options = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([1e-4, 0.03]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.3]),
        "betas": st.sampled_from([(0.9, 0.999), (0.9, 0.95), (0.6, 0.9)]),
        "eps": st.sampled_from([1e-8, 1e-3]),
    }
)
shapes = st.sampled_from([(), (1,), (17,), (7, 13), (2, 3, 33)])
kinds = pytest.mark.parametrize("kind", ["numpy", "torch"])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["fp32", "fp64"])


def of_both(name, options):
    """The optimizer of this name, ours and torch's: parameters → the optimizer."""
    return [lambda p, room=room: getattr(room, name)(p, **options) for room in (optim, torch.optim)]


@kinds
@dtypes
@settings(max_examples=25, deadline=None)
@example(options=LOOKS_AHEAD, shape=(7, 13), seed=0)  # which few draws have
@given(options=sgd_options, shape=shapes, seed=st.integers(0, 999))
def test_sgd_and_momentum_equal_torch(kind, dtype, options, shape, seed):
    exact = kind == "torch" or (dtype == np.float32 and FUSED)
    tolerance = 0 if exact else 1e-12 if dtype == np.float64 else 1e-5
    case = dict(kind=kind, shape=shape, dtype=dtype, seed=seed)
    assert_close(trajectories(*of_both("SGD", options), **case), tolerance)


@kinds
@dtypes
@settings(max_examples=25, deadline=None)
@given(options=adam_options, shape=shapes, seed=st.integers(0, 999))
def test_adamw_equals_torch(kind, dtype, options, shape, seed):
    tolerance = 0 if kind == "torch" else 1e-12 if dtype == np.float64 else 1e-6
    case = dict(kind=kind, shape=shape, dtype=dtype, seed=seed)
    assert_close(trajectories(*of_both("AdamW", options), **case), tolerance)


@pytest.mark.skipif(not FUSED, reason="this processor has no fused multiply-add")
def test_adamw_on_numpy_has_torchs_bits_in_its_averages():
    p, q = (
        Tensor(np.ones((50, 70), np.float32), requires_grad=True),
        torch.nn.Parameter(torch.ones(50, 70)),
    )
    ours, reference = optim.AdamW([p]), torch.optim.AdamW([q])
    for g in gradients(0, (50, 70), 10, np.float32):
        p.grad, q.grad = g, torch.from_numpy(g.copy())
        ours.step(), reference.step()
    for key in ("exp_avg", "exp_avg_sq"):
        assert np.array_equal(ours.state[0][key], reference.state[q][key].numpy())
    assert (p.data != q.detach().numpy()).mean() < 0.02


# eight bits


@pytest.mark.parametrize("shape", [(64, 64), (71, 83), (5000,), (2, 3, 1024)])
def test_8bit_has_the_bits_of_bitsandbytes_with_its_bins(shape):
    bnb = pytest.importorskip("bitsandbytes")
    pairs = trajectories(
        lambda p: optim.AdamW8bit(p, 0.01, bins=65536),
        lambda p: bnb.optim.AdamW8bit(p, 0.01),
        kind="torch",
        shape=shape,
        steps=20,
    )
    assert_close(pairs, 0)


@pytest.mark.parametrize("size", [4095, 4096])
def test_the_rule_of_4096_elements(size):
    bnb = pytest.importorskip("bitsandbytes")
    p, q = (torch.nn.Parameter(torch.ones(size)) for _ in range(2))
    ours, reference = optim.AdamW8bit([p], bins=65536), bnb.optim.AdamW8bit([q])
    for g in gradients(0, (size,), 5, np.float32):
        p.grad, q.grad = torch.from_numpy(g.copy()), torch.from_numpy(g.copy())
        ours.step(), reference.step()
    assert ours.state[0]["exp_avg"].dtype == reference.state[q]["state1"].dtype
    assert ours.state[0]["exp_avg"].dtype == (torch.uint8 if size == 4096 else torch.float32)
    torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)
    assert ours.state_bytes() == (2 * (4096 + 16 * 4) if size == 4096 else 2 * 4 * 4095)


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_nearest_in_both_engines_and_bitsandbytes_map_is_ours(signed):
    functional = pytest.importorskip("bitsandbytes.functional")
    levels = functional.create_dynamic_map(signed=signed).numpy()
    assert np.array_equal(levels, quantize.dynamic_levels(signed))
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    x = x if signed else x * x
    codes, absmax = optim.encode(x, signed)
    assert absmax.shape == (4,) and absmax[3] == np.abs(x[768:]).max()  # the last block holds 232
    decoded = optim.decode(codes, absmax, signed)
    scale = np.repeat(absmax, 256)[:1000, None]
    best = np.abs(levels[None, :] * scale - x[:, None]).min(1)
    np.testing.assert_allclose(np.abs(decoded - x), best, atol=1e-6)
    theirs, theirs_absmax = optim.encode(torch.from_numpy(x), signed)
    assert np.array_equal(theirs.numpy(), codes) and np.array_equal(theirs_absmax.numpy(), absmax)
    assert np.array_equal(optim.decode(theirs, theirs_absmax, signed).numpy(), decoded)


def test_blocks_of_zeros_and_of_tiny_numbers_decode_to_zero():
    x = np.concatenate([np.zeros(256), np.full(256, 1e-42), np.ones(256)]).astype(np.float32)
    decoded = optim.decode(*optim.encode(x, False), False)
    assert not decoded[:512].any() and np.array_equal(decoded[512:], x[512:])


@pytest.mark.parametrize("bins", [None, 65536])
def test_8bit_stays_near_adamw_and_learns(bins):
    """Least squares in 4,096 numbers: both reach the bottom, the 8-bit one with a quarter of the
    memory.
    """
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((256, 64)), rng.standard_normal((64, 64))
    losses = {}
    for name, make in (
        ("adamw", optim.AdamW),
        ("8bit", lambda p, lr, **k: optim.AdamW8bit(p, lr, bins=bins, **k)),
    ):
        w = Tensor(np.zeros((64, 64), np.float32), requires_grad=True)
        optimizer = make([w], 0.05, weight_decay=0.0)
        for _ in range(150):
            loss = ((Tensor(x.astype(np.float32)) @ w - (x @ y).astype(np.float32)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
        memory = optimizer.state_bytes()
    assert memory < 2 * 4 * 4096 / 3.9
    assert losses["adamw"] < 0.001 and losses["8bit"] < 0.001  # from 64 on the way down


# state, and what cannot be


@kinds
@pytest.mark.parametrize(
    "make", [lambda p: optim.SGD(p, 0.1, momentum=0.9), optim.AdamW, optim.AdamW8bit]
)
def test_state_goes_through_a_safetensors_file_and_on_with_the_same_bits(kind, make, tmp_path):
    from safetensors import numpy as files
    from safetensors import torch as torch_files

    files = files if kind == "numpy" else torch_files
    start = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
    new = lambda a: (
        Tensor(a, True) if kind == "numpy" else torch.nn.Parameter(torch.from_numpy(np.array(a)))
    )
    array = lambda g: g if kind == "numpy" else torch.from_numpy(g)
    p = new(start)
    optimizer = make([p])
    steps = list(gradients(0, (5000,), 6, np.float32))
    for g in steps[:3]:
        p.grad = array(g)
        optimizer.step()
    files.save_file(optimizer.state_dict(), tmp_path / "state.safetensors")
    q = new(p.data if kind == "numpy" else p.detach().numpy())
    resumed = make([q])
    resumed.load_state_dict(files.load_file(tmp_path / "state.safetensors"))
    for g in steps[3:]:
        p.grad, q.grad = array(g), array(g)
        optimizer.step(), resumed.step()
    assert (p.data == q.data).all()


def test_a_parameter_without_a_gradient_stays_and_zero_grad_clears():
    p, q = Tensor([1.0, 2.0], True), Tensor([3.0], True)
    optimizer = optim.AdamW([p, q], 0.1)
    (p * p).sum().backward()
    optimizer.step()
    assert q.data == [3.0] and not optimizer.state[1] and (p.data != [1.0, 2.0]).all()
    optimizer.zero_grad()
    assert p.grad is None


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: optim.SGD([], 0.1), ["no parameters"]),
        (lambda p: optim.SGD([p, p], 0.1), ["twice"]),
        (lambda p: optim.SGD([p], -1), ["lr -1"]),
        (lambda p: optim.SGD([p], float("nan")), ["lr nan"]),
        (lambda p: optim.SGD([p], 0.1, nesterov=True), ["nesterov"]),
        (lambda p: optim.AdamW([p], betas=(0.9, 1.0)), ["beta 1.0"]),
        (lambda p: optim.AdamW([p], weight_decay=-0.1), ["weight_decay -0.1"]),
        (
            lambda p: optim.AdamW([p]).load_state_dict({"1.exp_avg": np.ones(2)}),
            ["1.exp_avg", "1 parameters"],
        ),
        (
            lambda p: optim.AdamW([p]).load_state_dict({"0.exp_avg": np.ones(3)}),
            ["0.exp_avg", "(3,)", "(2,)"],
        ),
    ],
)
def test_errors_name_the_value(make, words):
    with pytest.raises(MiniloraError) as error:
        make(Tensor([1.0, 2.0], True))
    assert all(word in str(error.value) for word in words), str(error.value)

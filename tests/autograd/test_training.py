"""Whole trainings with minilora.autograd and minilora.optim beside torch: the losses agree at every
step, and fall.

The models are written once and run in both engines, because ours uses torch's names. Tolerance on
the loss of every step: 1e-9 relative in fp64, 2e-3 in fp32 (rounding grows along a training; the
first ten steps stay within 1e-5). Then the optimizers alone, with equal gradients.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import minilora.autograd.tensor as ours
from minilora.autograd import Tensor
from minilora.train import optim

pytestmark = pytest.mark.parity  # beside the library that people use


class Ours:
    silu, rms_norm, cross_entropy = ours.silu, ours.rms_norm, ours.cross_entropy
    constant = staticmethod(np.asarray)
    leaf = staticmethod(lambda a: Tensor(a, requires_grad=True))
    sgd, adamw = optim.SGD, optim.AdamW


class Theirs:
    silu = F.silu
    rms_norm = staticmethod(lambda x, weight: F.rms_norm(x, weight.shape, weight, 1e-6))
    cross_entropy = staticmethod(
        lambda x, t: F.cross_entropy(x.reshape(-1, x.shape[-1]), t.reshape(-1))
    )
    constant = staticmethod(torch.as_tensor)
    leaf = staticmethod(lambda a: torch.tensor(a, requires_grad=True))
    sgd, adamw = torch.optim.SGD, torch.optim.AdamW


def mlp(n, weights, batch):
    """Two layers that learn XOR-like quadrants of the plane: inputs (B, 2), labels (B,) in {0,
    1}.
    """
    w1, b1, w2, b2 = weights
    x, labels = (n.constant(part) for part in batch)
    x = Tensor(x) if n is Ours else x
    return n.cross_entropy((x @ w1 + b1).tanh() @ w2 + b2, labels)


def mlp_setting(dtype):
    rng = np.random.default_rng(0)
    shapes = [(2, 16), (16,), (16, 2), (2,)]
    weights = [rng.standard_normal(s).astype(dtype) * dtype(0.5) for s in shapes]
    points = rng.standard_normal((40, 64, 2)).astype(dtype)
    return weights, [(p, (p[:, 0] * p[:, 1] > 0).astype(np.int64)) for p in points]


WIDTH, HEADS, VOCABULARY, LENGTH = 32, 4, 8, 12


def transformer(n, weights, ids):
    """One block: norm, causal attention with four heads, norm, gated MLP, tied embedding. ids (B,
    T) -> mean loss.
    """
    embed, position, norm1, qkv, out, norm2, gate, up, down, norm3 = weights
    inputs, targets = n.constant(ids[:, :-1]), n.constant(ids[:, 1:])
    batch, length = inputs.shape
    x = embed[inputs] + position[:length]  # (B, T, C)
    heads = (n.rms_norm(x, norm1) @ qkv).reshape(batch, length, 3, HEADS, WIDTH // HEADS)
    q, k, v = (heads[:, :, i].transpose(1, 2) for i in range(3))  # (B, H, T, C/H) each
    future = n.constant(np.triu(np.ones((length, length)), 1) > 0)
    scores = (q @ k.mT / (WIDTH // HEADS) ** 0.5).masked_fill(future, -np.inf)  # (B, H, T, T)
    attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH)
    x = x + attended @ out
    y = n.rms_norm(x, norm2)
    x = x + (n.silu(y @ gate) * (y @ up)) @ down
    return n.cross_entropy(n.rms_norm(x, norm3) @ embed.T, targets)


def transformer_setting(dtype, steps=120, batch=16):
    """Sequences that say the same thing twice, ABCDEF ABCDEF: the second half can only be learned
    by attention.
    """
    rng = np.random.default_rng(0)
    shapes = [
        (VOCABULARY, WIDTH),
        (LENGTH, WIDTH),
        None,
        (WIDTH, 3 * WIDTH),
        (WIDTH, WIDTH),
        None,
        (WIDTH, 2 * WIDTH),
        (WIDTH, 2 * WIDTH),
        (2 * WIDTH, WIDTH),
        None,
    ]
    weights = [
        np.ones(WIDTH, dtype) if s is None else (rng.standard_normal(s) * 0.2).astype(dtype)
        for s in shapes
    ]
    half = rng.integers(0, VOCABULARY, (steps, batch, LENGTH // 2))
    return weights, np.concatenate([half, half], axis=-1)


def losses(n, model, setting, make_optimizer):
    weights, batches = setting
    leaves = [n.leaf(w) for w in weights]
    optimizer, seen = make_optimizer(leaves), []
    for batch in batches:
        loss = model(n, leaves, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return np.array(seen)


dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["fp64", "fp32"])


def assert_together(mine, theirs, dtype):
    np.testing.assert_allclose(mine, theirs, rtol=1e-9 if dtype == np.float64 else 2e-3)
    np.testing.assert_allclose(mine[:10], theirs[:10], rtol=1e-11 if dtype == np.float64 else 1e-5)


@dtypes
def test_a_two_layer_mlp_learns_and_equals_torch_step_by_step(dtype):
    setting = mlp_setting(dtype)
    setting = setting[0], setting[1] * 5
    make = lambda n: lambda p: n.sgd(p, 0.2, momentum=0.9, nesterov=True)
    mine, theirs = (losses(n, mlp, setting, make(n)) for n in (Ours, Theirs))
    assert_together(mine, theirs, dtype)
    assert mine[0] > 0.5 and mine[-40:].mean() < 0.1


@dtypes
def test_a_one_block_transformer_learns_and_equals_torch_step_by_step(dtype):
    setting = transformer_setting(dtype)
    make = lambda n: lambda p: n.adamw(p, 1e-2, betas=(0.9, 0.95), weight_decay=0.01)
    mine, theirs = (losses(n, transformer, setting, make(n)) for n in (Ours, Theirs))
    assert_together(mine, theirs, dtype)
    # five of eleven targets are random (ln 8 = 2.08 each), six repeat what stood before and cost
    # nothing when learned
    assert mine[0] > 2.0 and mine[-20:].mean() < 1.05


def run_optimizers(mine, theirs, steps=20):
    """The largest difference after some steps with equal gradients; the learning rate is halved on
    the way.
    """
    rng = np.random.default_rng(0)
    p, q = Ours.leaf(np.ones(50)), Theirs.leaf(np.ones(50))
    ours_, reference = mine([p]), theirs([q])
    for step in range(steps):
        g = rng.standard_normal(50)
        p.grad, q.grad = g, torch.from_numpy(g.copy())
        ours_.step(), reference.step()
        if step == steps // 2:
            ours_.lr /= 2
            reference.param_groups[0]["lr"] /= 2
    return np.abs(p.data - q.detach().numpy()).max()


SGD = lambda n: lambda p: n.sgd(p, 0.1, momentum=0.9, dampening=0.5)
HEAVY = lambda n: lambda p: n.sgd(p, 0.1, momentum=0.9)
ADAMW = lambda n: lambda p: n.adamw(p, 0.1, weight_decay=0.5, eps=1e-3)


@pytest.mark.parametrize("make", [SGD, HEAVY, ADAMW], ids=["sgd", "momentum", "adamw"])
def test_steps_equal_torch(make):
    assert run_optimizers(make(Ours), make(Theirs)) < 1e-12


def as_in_the_paper(self, p, g, state):
    """AdamW's rule, as Loshchilov and Hutter write it (2019, arXiv:1711.05101, algorithm 2)."""
    beta1, beta2 = self.betas
    m = state["m"] = beta1 * state.get("m", 0 * g) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0 * g) + (1 - beta2) * g * g
    c1, c2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
    p = p * (1 - self.lr * self.weight_decay)
    return p - self.lr * (m / c1) / ((v / c2) ** 0.5 + self.eps)


def test_the_papers_formula_steps_as_torch_does(monkeypatch):
    monkeypatch.setattr(optim.AdamW, "update", as_in_the_paper)
    assert run_optimizers(ADAMW(Ours), ADAMW(Theirs)) < 1e-12

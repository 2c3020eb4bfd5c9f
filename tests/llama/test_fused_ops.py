"""The hand-written backward passes of norm, gate and frozen head against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from minilora import lora
from minilora.llama import Config, Llama, RMSNorm, rotate
from minilora.llama.fused_ops import gated, rms_norm
from minilora.llama.head_loss import frozen_head, head_loss
from minilora.train.loss import loss_sum

pytestmark = pytest.mark.parity  # beside the library that people use


def both(function, plain, inputs):
    """(output, gradients) of the two, for the same incoming gradient."""
    out, wanted = function(*inputs), plain(*inputs)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    return (out, *torch.autograd.grad(out, inputs, g)), (
        wanted,
        *torch.autograd.grad(wanted, inputs, g),
    )


@pytest.mark.parametrize("shape", [(2, 3, 64), (5, 2), (1, 7, 130)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_equals_torch(shape, dtype):
    torch.manual_seed(0)
    x, weight = (
        torch.randn(shape).to(dtype).requires_grad_(),
        torch.nn.Parameter(torch.rand(shape[-1]).to(dtype) + 0.5, False),
    )
    trained = torch.nn.Parameter(weight.detach().clone())  # takes torch's own way
    ours, plain = both(
        lambda x: rms_norm(x, weight, 1e-6), lambda x: rms_norm(x, trained, 1e-6), [x]
    )
    assert torch.equal(ours[0], plain[0]) and torch.equal(
        ours[0], rms_norm(x.detach(), weight, 1e-6)
    )
    ulp = torch.finfo(dtype).eps
    assert ours[1].dtype == dtype and torch.allclose(
        ours[1], plain[1], rtol=8 * ulp, atol=8 * ulp * max(1.0, plain[1].abs().max().item())
    )


def test_norm_by_finite_differences():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.nn.Parameter(torch.rand(5, dtype=torch.float64), False)
    # inside it is fp32
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight, 1e-6), (x,), eps=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_equals_torch_to_the_bit_and_keeps_two_tensors(dtype):
    torch.manual_seed(0)
    a, b = (
        torch.randn(2, 3, 50).to(dtype).requires_grad_(),
        torch.randn(2, 3, 50).to(dtype).requires_grad_(),
    )
    ours, plain = both(gated, lambda a, b: F.silu(a) * b, [a, b])
    assert all(torch.equal(one, other) for one, other in zip(ours, plain))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated(a, b)
    assert len(kept) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lead", [(7,), (2, 1, 7)])  # one table for all rows, or one for each
def test_rotation_equals_the_plain_one(lead, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 7, 3, 10).to(dtype).requires_grad_()
    cos, sin = torch.randn(*lead, 10).to(dtype), torch.randn(*lead, 10).to(dtype)
    plain = lambda x: x.transpose(1, 2) * cos + x.transpose(1, 2).roll(5, dims=-1) * sin  # noqa: E731
    ours, wanted = both(lambda x: rotate(x.transpose(1, 2), cos, sin), plain, [x])
    assert torch.equal(ours[0], wanted[0]) and torch.equal(
        ours[0], rotate(x.detach().transpose(1, 2), cos, sin)
    )
    ulp = torch.finfo(dtype).eps
    assert torch.allclose(
        ours[1], wanted[1], rtol=4 * ulp, atol=4 * ulp * wanted[1].abs().max().item()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 256])
def test_head_loss_equals_cross_entropy(rows, dtype, monkeypatch):
    monkeypatch.setattr("minilora.llama.head_loss.HEAD_ROWS", rows)
    monkeypatch.setattr("minilora.llama.head_loss.HEAD_PORTION", 1)
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 16).to(dtype).requires_grad_(), torch.randn(37, 16).to(dtype)
    targets = torch.randint(0, 37, (10,))
    ours = head_loss(hidden, weight, targets)
    plain = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    one, other = (torch.autograd.grad(loss * 0.5, hidden)[0] for loss in (ours, plain))
    torch.testing.assert_close(
        one,
        other,
        rtol=1e-5 if dtype == torch.float32 else 0.02,
        atol=1e-6 if dtype == torch.float32 else 0.02,
    )
    assert torch.equal(head_loss(hidden.detach(), weight, targets), ours)


def test_head_loss_of_logits_far_beyond_what_exp_can_hold():
    torch.manual_seed(0)
    hidden, weight = (100 * torch.randn(6, 8)).requires_grad_(), 10 * torch.randn(20, 8)
    targets = torch.randint(0, 20, (6,))
    ours, plain = (
        head_loss(hidden, weight, targets),
        F.cross_entropy(hidden @ weight.T, targets, reduction="sum"),
    )
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, hidden)[0] for loss in (ours, plain)), rtol=1e-4, atol=1e-4
    )


def test_head_loss_of_nothing_and_under_autocast():
    hidden, weight, targets = (
        torch.randn(6, 16, requires_grad=True),
        torch.randn(37, 16),
        torch.randint(0, 37, (6,)),
    )
    assert head_loss(hidden[:0], weight, targets[:0]).item() == 0
    with torch.autocast("cpu", torch.bfloat16):
        ours = head_loss(hidden, weight, targets)
        plain = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    assert torch.autograd.grad(ours, hidden)[0].dtype == torch.float32


def test_only_a_plain_frozen_head_is_taken():
    def llama(tie):
        return Llama(
            Config(
                vocab_size=31,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                tie_word_embeddings=tie,
            )
        )

    assert frozen_head(llama(True)) is None and frozen_head(torch.nn.Linear(3, 3)) is None
    assert frozen_head(lora.add_lora(llama(False), rank=2, targets=["lm_head"])) is None
    heard = lora.add_lora(llama(False), rank=2)
    assert frozen_head(heard) is heard.lm_head.weight
    heard.lm_head.register_forward_hook(lambda *_: None)
    assert frozen_head(heard) is None
    tied = lora.add_lora(llama(True), rank=2)
    assert frozen_head(tied) is tied.model.embed_tokens.weight
    ids = torch.randint(0, 31, (2, 5))
    total, count = loss_sum(tied, (ids, ids, None))
    torch.testing.assert_close(
        total / count, F.cross_entropy(tied(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    )
    assert type(tied.model.norm) is RMSNorm

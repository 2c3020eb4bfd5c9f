"""The loop: exact schedules, exact gradients, precisions, and settings that are refused."""

import contextlib
import json
import math
from types import SimpleNamespace

import pytest
import torch
from small_fits import moving_scale, quiet, states_equal, with_adapter

from minilora import lora, train
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.system import precision
from minilora.text import IGNORE, collate
from minilora.train import TrainConfig, loop

# -- schedule and batches


def test_learning_rate_by_hand():
    config = train.TrainConfig(steps=10, warmup=2, lr=1.0, final_lr=0.1)
    rates = [train.learning_rate(step, config) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.1 + 0.9 * 0.5)  # the middle of the cosine
    assert rates[9] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 7 / 8)))
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert train.TrainConfig(steps=10).warmup_steps == 1
    assert train.TrainConfig(steps=10_000).warmup_steps == 100


def test_an_epoch_shows_each_row_once_and_is_a_function_of_the_seed():
    rows = [([i] * (1 + i % 7), [i] * (1 + i % 7)) for i in range(103)]
    batches = train.Batches(rows, 8, seed=3)
    steps = [batches(step) for step in range(2 * batches.per_epoch)]
    for epoch in (steps[: batches.per_epoch], steps[batches.per_epoch :]):
        assert sorted(ids[0] for batch in epoch for ids, _ in batch) == list(range(103))
    assert steps[: batches.per_epoch] != steps[batches.per_epoch :]
    again = train.Batches(rows, 8, seed=3)
    assert [again(step) for step in reversed(range(len(steps)))] == steps[::-1]
    assert [train.Batches(rows, 8, seed=4)(step) for step in range(13)] != steps[:13]


def test_bucketing_saves_padding():
    torch.manual_seed(0)
    rows = [([1] * int(n), [1] * int(n)) for n in torch.randint(5, 200, (640,))]
    batches = train.Batches(rows, 16, seed=0)
    padded = sum(16 * max(len(ids) for ids, _ in batches(step)) for step in range(40))
    assert padded < 1.15 * sum(len(ids) for ids, _ in rows)  # in random order it is about 1.85


# -- the loss and its gradient


def test_the_loss_is_the_mean_over_learned_tokens(model, rows):
    ids, labels, _ = collate(rows[:5], 0)
    whole = torch.nn.functional.cross_entropy(
        model(ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
    )
    total, tokens = train.loss_sum(model, collate(rows[:5], 0))
    assert (total / tokens).item() == pytest.approx(whole.item(), abs=1e-6)
    assert train.evaluate_loss(model, rows[:5], batch_size=2) == pytest.approx(
        whole.item(), abs=1e-6
    )


class Bare(torch.nn.Module):
    """A model of another make: logits only."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, ids, attention_mask=None):
        return self.inner(ids, attention_mask)


def test_other_models_get_the_same_loss(model, rows):
    ours, theirs = (
        train.loss_sum(model, collate(rows, 0)),
        train.loss_sum(Bare(model), collate(rows, 0)),
    )
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-6) and ours[1] == theirs[1]


def gradients(model, rows, micro):
    model.zero_grad()
    loss, tokens = train.step_gradients(model, rows, train.TrainConfig(batch_size=micro))
    return (
        loss,
        tokens,
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    )


def test_accumulation_equals_one_big_batch(adapted, rows):
    for p in lora.trainable_parameters(adapted):
        torch.nn.init.normal_(p, std=0.1)
    # short answers together
    uneven = sorted(rows, key=lambda row: sum(label != IGNORE for label in row[1]))[:16]
    big_loss, big_tokens, big = gradients(adapted, uneven, 16)
    for micro in (1, 4, 5):
        loss, tokens, small = gradients(adapted, uneven, micro)
        assert loss == pytest.approx(big_loss, rel=1e-6) and tokens == big_tokens
        for name in big:
            torch.testing.assert_close(small[name], big[name], rtol=1e-4, atol=1e-6)


def test_a_mean_of_means_would_be_seen(adapted, rows):
    """The fault: each micro-batch's mean loss, averaged. It must differ by more than the tolerance
    above.
    """
    uneven = sorted(rows, key=lambda row: sum(label != IGNORE for label in row[1]))[:16]
    _, _, right = gradients(adapted, uneven, 16)
    adapted.zero_grad()
    for start in range(0, 16, 4):
        total, tokens = train.loss_sum(adapted, collate(uneven[start : start + 4], 0))
        (total / tokens / 4).backward()
    wrong = {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}
    assert any(not torch.allclose(wrong[name], right[name], rtol=1e-4, atol=1e-6) for name in right)


def test_checkpointing_changes_nothing(tiny_folder, rows):
    results = []
    for on in (False, True):
        model = with_adapter(Llama.from_pretrained(tiny_folder), dropout=0.1)
        results.append((quiet(model, rows, checkpointing=on).losses, lora.adapter_state(model)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_only_the_adapter_moves_and_the_loss_falls(adapted, rows):
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    history = quiet(adapted, rows, steps=60)
    assert history.steps == 60 and history.losses[-1] < history.losses[0] / 2
    for name, p in adapted.named_parameters():
        assert torch.equal(p, before[name]) == ("lora_" not in name)


def test_the_callers_random_numbers_and_mode_are_left_alone(adapted, rows):
    adapted.eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    quiet(adapted, rows, steps=2)
    assert torch.equal(torch.rand(3), expected) and not adapted.training


def test_bf16_autocast_trains_close_to_fp32(tiny_folder, rows):
    losses = [
        quiet(with_adapter(Llama.from_pretrained(tiny_folder)), rows, precision=p).losses
        for p in ("fp32", "bf16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[0] != losses[1]


def test_fp16_trains_close_to_fp32_and_leaves_out_what_overflows(tiny_folder, rows, monkeypatch):
    losses = [
        quiet(with_adapter(Llama.from_pretrained(tiny_folder)), rows, precision=p).losses
        for p in ("fp32", "fp16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]
    moving_scale(monkeypatch, 2.0**24)
    model, before = (with_adapter(Llama.from_pretrained(tiny_folder)) for _ in range(2))
    unmoved = []
    records = quiet(
        model,
        rows,
        precision="fp16",
        steps=16,
        on_step=lambda *_: unmoved.append(states_equal(model, before)),
    ).records
    skipped = [bool(record.get("skipped")) for record in records]
    first = skipped.index(False)
    assert first > 0 and skipped == [record["grad_norm"] is None for record in records]
    assert unmoved == [step < first for step in range(16)]
    scales = [record["loss_scale"] for record in records]
    assert (
        scales[: first + 1] == [2.0 ** (24 - i) for i in range(first + 1)]
        and 2 * scales[first] in scales[first:]
    )
    json.dumps(records, allow_nan=False)


def test_small_gradients_survive_fp16_by_the_loss_scale(tiny_folder, rows):
    """Without it most of a faint gradient is below 6e-8, fp16's smallest number, somewhere on its
    way back.
    """
    grads = {}
    for name, factor in (("fp32", 1), ("bare", 1), ("scaled", 2**16)):
        model = with_adapter(Llama.from_pretrained(tiny_folder))
        batch = train.tensors(rows[:4], model)
        with precision.autocast(model, "fp32" if name == "fp32" else "fp16"):
            loss, _ = train.loss_sum(model, batch)
        (loss * 1e-7 * factor).backward()
        grads[name] = torch.cat(
            [p.grad.flatten() / factor for p in lora.trainable_parameters(model)]
        )
    error = {
        name: float((grads[name] - grads["fp32"]).norm() / grads["fp32"].norm())
        for name in ("bare", "scaled")
    }
    assert error["scaled"] < 0.02 < 0.2 < error["bare"], error


def test_what_no_loss_scale_mends_is_said(adapted, rows, monkeypatch):
    moving_scale(monkeypatch, 1.0)
    with torch.no_grad():
        adapted.model.norm.weight.mul_(1e20)  # logits beyond fp16
    with pytest.raises(MiniloraError, match="65504: choose --precision fp32"):
        quiet(adapted, rows, precision="fp16")


@pytest.mark.parametrize(
    ("scale", "loss", "norm", "lost"),
    [
        (None, 1.0, 2.0, False),
        (None, 1.0, math.inf, True),
        (None, math.nan, 1.0, True),
        (2.0, 1.0, math.inf, False),  # the scaler leaves this step out and halves its scale
        (1.0, 1.0, math.inf, True),  # nothing is left to halve
        (1.0, 1.0, 2.0, False),
        (2.0, math.inf, math.nan, True),
    ],
)
def test_a_step_is_lost_where_no_smaller_scale_would_mend_it(scale, loss, norm, lost):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    run = SimpleNamespace(scaler=scaler, config=TrainConfig())
    with pytest.raises(MiniloraError, match="lower --lr") if lost else contextlib.nullcontext():
        loop._Loop._require_finite(run, 0, loss, norm)


def test_an_unknown_setting_is_named(adapted, rows):
    with pytest.raises(MiniloraError, match="learning_rate.*lr"):
        quiet(adapted, rows, learning_rate=1)
    for bad in (
        {"steps": 0},
        {"lr": math.nan},
        {"batch_size": 1.5},
        {"precision": "fp8"},
        {"warmup": 99},
        {"lora_plus": 0.5},
        {"lora_plus": math.nan},
    ):
        with pytest.raises(MiniloraError, match=next(iter(bad))):
            quiet(adapted, rows, **bad)
    with pytest.raises(MiniloraError, match="no rows"):
        quiet(adapted, [])


def test_lora_plus_moves_b_at_its_own_rate(tiny_folder, rows):
    """Adam's first step is lr · sign of the gradient, so its length is the rate."""
    model = with_adapter(Llama.from_pretrained(tiny_folder), init="random")
    before = lora.adapter_state(model)
    quiet(model, rows, steps=1, warmup=0, lr=1e-3, lora_plus=8, clip=0.0)
    after = lora.adapter_state(model)
    for letter, rate in (("lora_A", 1e-3), ("lora_B", 8e-3)):
        moved = max((after[key] - before[key]).abs().max().item() for key in after if letter in key)
        assert moved == pytest.approx(rate, rel=1e-3), letter


@pytest.mark.parametrize(
    "batch, accumulate, told",
    [(16, 1, (8, 2)), (7, 10, (2, 35)), (9, 2, (3, 6)), (5, 1, (1, 5)), (1, 4, None)],
)
def test_a_smaller_batch_makes_the_same_step(batch, accumulate, told):
    assert train.smaller_batch(batch, accumulate) == told


def test_a_config_with_other_steps_warms_up_over_a_twentieth_of_those():
    """The default belongs to the steps that are run, not to those that a config had before."""
    from minilora.train.config import settled

    assert settled(train.TrainConfig(), {"steps": 10}).warmup_steps == 1
    assert settled(train.TrainConfig(warmup=3), {"steps": 10}).warmup_steps == 3

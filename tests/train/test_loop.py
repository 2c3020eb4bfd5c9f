"""The loop: exact gradients, exact schedules, exact resume, and a self-check that finds each
planted trap.
"""

import contextlib
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

from minilora import lora, train
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.system import precision
from minilora.text import IGNORE, Tokenizer, collate, encode_rows
from minilora.train import TrainConfig, loop
from minilora.train.run_folder import RunFolder

EXAMPLES = [
    {"prompt": f"say {word}{'!' * (i % 5)}", "response": word * (1 + i % 3)}
    for i, word in enumerate("abcdefgh" * 3)
]


@pytest.fixture(scope="module")
def rows(tiny_folder):
    return encode_rows(EXAMPLES, Tokenizer.from_pretrained(tiny_folder))


@pytest.fixture
def model(tiny_folder):
    return Llama.from_pretrained(tiny_folder)


@pytest.fixture
def adapted(model):
    return with_adapter(model)


def with_adapter(model, **settings):
    torch.manual_seed(0)
    return lora.add_lora(model, rank=4, **settings)


def quiet(model, rows, **settings):
    return train.fit(
        model, rows, **{"steps": 8, "batch_size": 4, "lr": 1e-2, "progress": False, **settings}
    )


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


def moving_scale(monkeypatch, begin):
    """A loss scale that begins too high for fp16 and grows every third step, so that it moves
    within a few steps.
    """
    real = torch.amp.GradScaler
    monkeypatch.setattr(
        torch.amp, "GradScaler", lambda *a, **k: real(*a, init_scale=begin, growth_interval=3, **k)
    )


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


def test_lora_plus_resumes_with_the_same_bits(tiny_folder, rows, tmp_path):
    alone, broken, resumed = (with_adapter(Llama.from_pretrained(tiny_folder)) for _ in range(3))
    settings = {"steps": 4, "save_every": 1, "lora_plus": 4}
    quiet(alone, rows, out=tmp_path / "alone", **settings)
    with pytest.raises(Stop):
        quiet(broken, rows, out=tmp_path / "broken", on_step=stop_at(3), **settings)
    quiet(resumed, rows, out=tmp_path / "broken", resume=True, **settings)
    assert states_equal(alone, resumed)


# -- resume


def states_equal(a, b):
    a, b = lora.adapter_state(a), lora.adapter_state(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stop(Exception):
    pass


def stop_at(step):
    def on_step(done, loss):
        if done == step:
            raise Stop

    return on_step


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_clock(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_run_ends_with_the_same_bits(tiny_folder, rows, tmp_path, monkeypatch, precision):
    moving_scale(monkeypatch, 2.0**16)

    def fresh():
        return with_adapter(Llama.from_pretrained(tiny_folder), dropout=0.1)

    settings = {
        "steps": 20,
        "save_every": 3,
        "eval_every": 5,
        "accumulate": 2,
        "valid": rows[:4],
        "precision": precision,
    }
    alone, broken = fresh(), fresh()
    history = quiet(alone, rows, out=tmp_path / "alone", **settings)
    with pytest.raises(Stop):
        quiet(broken, rows, out=tmp_path / "broken", on_step=stop_at(11), **settings)
    # the steps, and validations at 0, 5, 10
    assert len(read(tmp_path / "broken" / "metrics.jsonl")) == 11 + 3
    resumed = fresh()
    again = quiet(resumed, rows, out=tmp_path / "broken", resume=True, **settings)
    assert states_equal(alone, resumed)
    assert again.losses == history.losses and again.valid_losses == history.valid_losses
    assert without_clock(read(tmp_path / "broken" / "metrics.jsonl")) == without_clock(
        read(tmp_path / "alone" / "metrics.jsonl")
    )
    assert len(list((tmp_path / "broken" / "state").iterdir())) == 2
    scales = {record.get("loss_scale") for record in again.records if "loss" in record}
    assert len(scales) > 2 if precision == "fp16" else scales == {None}


def test_a_run_whose_every_step_was_left_out_resumes(tiny_folder, rows, tmp_path, monkeypatch):
    moving_scale(monkeypatch, 2.0**60)
    settings = {"out": tmp_path, "steps": 4, "save_every": 2, "precision": "fp16", "warmup": 0}
    with pytest.raises(Stop):
        quiet(
            with_adapter(Llama.from_pretrained(tiny_folder)), rows, on_step=stop_at(3), **settings
        )
    history = quiet(with_adapter(Llama.from_pretrained(tiny_folder)), rows, resume=True, **settings)
    assert [record["loss_scale"] for record in history.records] == [
        2.0**60,
        2.0**59,
        2.0**58,
        2.0**57,
    ]


def damage_cut(folder):
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_bit(folder):
    path = folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def damage_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 1', '"step": 2'))


def damage_missing(folder):
    (folder / "metrics.jsonl").unlink()


def damage_empty(folder):
    (folder / "manifest.json").write_text("")


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_bit, damage_manifest, damage_missing, damage_empty, shutil.rmtree]
)
def test_a_damaged_state_is_passed_over(tiny_folder, rows, tmp_path, damage):
    settings = {"steps": 12, "save_every": 5}
    alone = with_adapter(Llama.from_pretrained(tiny_folder))
    quiet(alone, rows, out=tmp_path, **settings)
    newest = tmp_path / "state" / "step-00000012"
    assert newest.is_dir()
    damage(newest)
    lines = []
    resumed = with_adapter(Llama.from_pretrained(tiny_folder))
    history = quiet(
        resumed, rows, out=RunFolder(tmp_path, say=lines.append), resume=True, **settings
    )
    assert states_equal(alone, resumed) and history.steps == 12
    assert lines[-1] == "going on after step 10"
    assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == list(range(1, 13))


def test_a_state_of_another_adapter_is_refused(tiny_folder, rows, tmp_path):
    quiet(with_adapter(Llama.from_pretrained(tiny_folder)), rows, out=tmp_path)
    other = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2)
    with pytest.raises(MiniloraError, match="another model or adapter"):
        quiet(other, rows, out=tmp_path, resume=True)


def test_ctrl_c_saves_and_resumes(tiny_folder, rows, tmp_path):
    import signal

    def press(done, loss):
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    alone, broken, resumed = (with_adapter(Llama.from_pretrained(tiny_folder)) for _ in range(3))
    quiet(alone, rows)
    with pytest.raises(KeyboardInterrupt):
        quiet(broken, rows, out=tmp_path, on_step=press)
    assert RunFolder(tmp_path).last_good() is not None
    quiet(resumed, rows, out=tmp_path, resume=True)
    assert states_equal(alone, resumed)


@pytest.mark.parametrize("step, message", [(4, "after step 4"), (3, "loss at step 4 is .*nan")])
def test_a_diverging_run_keeps_its_last_good_state(adapted, rows, tmp_path, step, message):
    def poison(done, loss):
        if done == step:
            next(iter(lora.trainable_parameters(adapted))).data.fill_(math.nan)

    with pytest.raises(MiniloraError, match=message):
        quiet(adapted, rows, out=tmp_path, save_every=2, on_step=poison)
    assert RunFolder(tmp_path).last_good()[1]["step"] == 2


def test_others_may_read_what_a_run_writes(adapted, rows, tmp_path):
    quiet(adapted, rows, out=tmp_path / "run")
    lora.save_adapter(adapted, tmp_path / "run")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in tmp_path.rglob("*.*"))


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

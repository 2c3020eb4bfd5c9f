"""What one step does to gradients and weights, seen at the optimizer: in which order the loss scale
is taken off and the norm is cut, and what each group of parameters is told.
"""

import math

import pytest
import torch

from minilora import lora, train
from minilora.llama import Llama
from minilora.text import Tokenizer, encode_rows
from minilora.train import loop

EXAMPLES = [{"prompt": f"say {c * (1 + i % 3)}", "response": c} for i, c in enumerate("abcdefgh")]


@pytest.fixture(scope="module")
def rows(tiny_folder):
    return encode_rows(EXAMPLES, Tokenizer.from_pretrained(tiny_folder))


@pytest.fixture
def fresh(tiny_folder):
    """Makes the same adapted model each time."""

    def make():
        torch.manual_seed(0)
        return lora.add_lora(Llama.from_pretrained(tiny_folder), rank=4)

    return make


@pytest.fixture
def seen(monkeypatch):
    """The gradients' norm and the groups of each step, as AdamW meets them."""
    found = []
    real = torch.optim.AdamW.step

    def step(self, *given, **settings):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
        found.append((norm, [dict(group, params=None) for group in self.param_groups]))
        return real(self, *given, **settings)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return found


def one(model, rows, **settings):
    given = {"steps": 1, "batch_size": 8, "lr": 1e-2, "warmup": 0, "progress": False, **settings}
    return train.fit(model, rows, **given)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_cut_at_the_norm_that_they_really_have(fresh, rows, seen, precision):
    """In fp16 they carry a factor of 65,536 until the scaler takes it off: before that, their norm
    says nothing.
    """
    whole = one(fresh(), rows, precision="fp32", clip=0).records[0]["grad_norm"]
    assert whole > 0.2 and seen[0][0] == pytest.approx(whole, rel=1e-4), "0 means: not cut"
    record = one(fresh(), rows, precision=precision, clip=0.1).records[0]
    assert record["grad_norm"] == pytest.approx(whole, rel=0.02)  # as it was before the cut
    assert seen[1][0] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("lora_plus", [None, 4.0])
def test_every_group_gets_its_rate_and_its_decay(fresh, rows, seen, lora_plus):
    one(fresh(), rows, weight_decay=0.1, lora_plus=lora_plus)
    told = [(group["lr"], group["weight_decay"], group["betas"]) for group in seen[0][1]]
    rates = [1e-2] if lora_plus is None else [1e-2, 4e-2]
    assert sorted(told) == [(pytest.approx(rate), 0.1, (0.9, 0.999)) for rate in rates]


@pytest.mark.parametrize("lora_plus", [None, 4.0])
def test_decay_shrinks_the_weights_by_the_rate_times_the_decay(fresh, rows, lora_plus):
    """B is zero and keeps zero; A moves by the same step either way, so the difference is the
    decay alone.
    """
    ends = []
    for decay in (0.0, 0.5):
        model = fresh()
        one(model, rows, weight_decay=decay, lora_plus=lora_plus)
        ends.append({n: p.detach() for n, p in model.named_parameters() if "lora_A" in n})
    before = {n: p.detach() for n, p in fresh().named_parameters() if "lora_A" in n}
    assert before
    for name, start in before.items():
        torch.testing.assert_close(
            ends[0][name] - ends[1][name], 1e-2 * 0.5 * start, atol=1e-6, rtol=1e-3
        )


def test_one_step_takes_all_its_parts(fresh, rows, seen):
    """Two parts of four rows are the step of eight."""
    records = [
        one(fresh(), rows, batch_size=size, accumulate=parts).records[0]
        for size, parts in ((8, 1), (4, 2))
    ]
    assert records[0]["tokens"] == records[1]["tokens"]
    assert records[0]["loss"] == pytest.approx(records[1]["loss"], rel=1e-5)
    assert len(seen) == 2 and seen[0][0] == pytest.approx(seen[1][0], rel=1e-4)


@pytest.mark.parametrize("precision, dtype", [("fp32", None), ("bf16", torch.bfloat16)])
def test_precision_reaches_the_products(fresh, rows, monkeypatch, precision, dtype):
    from minilora.system.precision import autocast_dtype

    found = set()
    real = loop.loss_sum

    def loss_sum(model, batch):
        found.add(autocast_dtype("cpu"))
        return real(model, batch)

    monkeypatch.setattr(loop, "loss_sum", loss_sum)
    one(fresh(), rows, precision=precision)
    assert found == {dtype}


def test_adamw_gets_its_betas(fresh, rows, seen):
    one(fresh(), rows, betas=(0.8, 0.95))
    assert {group["betas"] for group in seen[0][1]} == {(0.8, 0.95)}


def test_a_validation_is_made_in_the_runs_precision_without_dropout(tiny_folder, rows, monkeypatch):
    from minilora.system.precision import autocast_dtype
    from minilora.train import loss

    found = []
    real = loss.loss_sum

    def loss_sum(model, batch):
        found.append((autocast_dtype("cpu"), model.training))
        return real(model, batch)

    monkeypatch.setattr(loss, "loss_sum", loss_sum)
    model = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=4, dropout=0.5)
    history = one(model, rows, valid=rows, precision="bf16")
    assert len(history.valid_losses) == 2 and set(found) == {(torch.bfloat16, False)}


def test_other_rows_are_another_run(fresh, rows, tmp_path):
    from minilora.errors import MiniloraError

    one(fresh(), rows, out=tmp_path / "run")
    with pytest.raises(MiniloraError, match="the rows are not those"):
        one(fresh(), rows[:-1], out=tmp_path / "run", resume=True)
    again = one(fresh(), rows, out=tmp_path / "run", resume=True)
    assert again.steps == 1

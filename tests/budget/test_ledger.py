"""The ledger of fake tensors beside the same step on real ones: every storage, every byte."""

import pytest
import torch

from benchmarks.memory.configurations import METHODS
from minilora.budget.catalog import Shape
from minilora.budget.measure.fake_run import OneBuffer, Plan, build
from minilora.budget.measure.ledger import KINDS, Watch, measure, watch_steps
from minilora.budget.setup import make
from minilora.errors import MiniloraError
from minilora.lora import fused

pytestmark = pytest.mark.parity  # beside the library that people use

SHAPE = Shape("small", hidden=64, ffn=176, layers=2, heads=4, kv_heads=2, vocab=1000)
CASES = [
    ("minilora", False, dict(attention="sdpa")),
    ("minilora", True, dict(attention="eager", foreach=False, detour="plain")),
    ("transformers", True, dict(attention="sdpa")),
    ("transformers", False, dict(attention="eager", foreach=False, detour="plain")),
]


def a_setup(method="lora", precision=None, library="minilora", checkpointing=False, **settings):
    settings = dict(rank=4, batch=2, seq=24) | settings
    return make(
        SHAPE,
        method=method,
        precision=precision,
        library=library,
        checkpointing=checkpointing,
        **settings,
    )


def real(setup):
    """The step on numbers, watched by the same counter, without fake tensors."""
    torch.manual_seed(0)
    plan = Plan(setup)
    model = build(plan)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    ledger = watch_steps(model, plan)
    assert any(
        not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.requires_grad
    ), "nothing was trained"
    return ledger


QUICK = {
    ("full", "fp32"): 0,
    ("mixed", "autocast"): 2,
    ("lora", "bf16"): 1,
    ("lora", "autocast"): 3,
    ("int8", "bf16"): 2,
    ("qlora", "bf16"): 0,
}
EVERY = [
    pytest.param(
        *pair,
        *case,
        id=f"{'-'.join(pair)}-{case[0]}-{case[2]['attention']}",
        marks=[] if QUICK.get(pair) == i else pytest.mark.slow,
    )
    for pair in METHODS
    for i, case in enumerate(CASES)
]


@pytest.mark.slow
@pytest.mark.parametrize("method, precision, library, checkpointing, settings", EVERY)
def test_fake_and_real_tensors_give_the_same_ledger(
    monkeypatch, method, precision, library, checkpointing, settings
):
    if library == "transformers":
        pytest.importorskip("transformers")
    # as on a GPU; on fake tensors nothing can be tried
    monkeypatch.setattr(fused, "adds_last", lambda *_: False)
    setup = a_setup(method, precision, library, checkpointing, **settings)
    fake, true = measure(setup), real(setup)
    assert (fake.peak, fake.phase, fake.phases, fake.kinds) == (
        true.peak,
        true.phase,
        true.phases,
        true.kinds,
    )
    if (library, setup.attention) != (
        "transformers",
        "eager",
    ):  # its causal mask is made in another way in fake mode
        assert len(fake.events) == len(true.events)
        assert sorted(size for _, size in fake.events) == sorted(size for _, size in true.events)
    if (
        not setup.autocast and setup.attention == "sdpa"
    ):  # autocast frees its copies in the order of their addresses
        assert [size for _, size in fake.events] == [size for _, size in true.events]


def test_weights_gradients_and_averages_are_what_the_parameters_say():
    found = measure(a_setup("full"))
    count = SHAPE.parameters
    at_rest = found.kinds_at(found.marks[1][0] - 1)
    assert at_rest["weights"] == 4 * count and at_rest["gradients"] == at_rest["optimizer"] == 0
    index = len(found.events) - 1
    assert found.phase_at(index) == "step" and found.kinds_at(index)[
        "optimizer"
    ] == 8 * count + 4 * len(list(build(found.plan).parameters()))
    step = next(start for start, name in found.marks[::-1] if name == "step")
    assert found.kinds_at(step)["gradients"] == 4 * count
    assert tuple(found.kinds) == KINDS and sum(found.kinds.values()) == found.peak == max(
        found.phases.values()
    )


def test_everything_of_a_step_is_freed_but_what_the_optimizer_remembers():
    found = measure(a_setup("lora", "bf16"))
    ends = [start for start, name in found.marks if name == "forward"] + [len(found.events)]
    line = found.timeline()
    # the second step leaves nothing behind but perhaps a scalar
    assert line[ends[-1] - 1] - line[ends[-2] - 1] <= 8


@pytest.mark.slow
def test_checkpointing_and_four_bits_save_memory_and_foreach_costs_the_trained_parameters():
    wide = dict(seq=128, rank=4)
    plain, recomputed = (
        measure(a_setup("lora", "bf16", **wide)),
        measure(a_setup("lora", "bf16", checkpointing=True, **wide)),
    )
    assert (
        recomputed.peak < plain.peak
        and recomputed.kinds["activations"] < plain.kinds["activations"]
    )
    assert (
        plain.kinds["weights"] - measure(a_setup("qlora", **wide)).kinds["weights"]
        == (2 - 0.5) * SHAPE.linear_parameters
    )
    each, one = (
        measure(a_setup("full-bf16", foreach=flag)).phases["step"] for flag in (True, False)
    )
    assert each - one == pytest.approx(2 * SHAPE.parameters, rel=0.01)


def test_a_storage_counts_once_however_many_tensors_see_it():
    with Watch() as watch:
        x = torch.zeros(100)
        y = x.view(10, 10).T
        del x
        assert [size for _, size in watch.events] == [400]
        z = y + 1
        del y
        assert [size for _, size in watch.events] == [400, 400, -400]
        z.resize_(5, 5)
        del z
    assert sum(size for _, size in watch.events) == 0


def test_four_bit_layers_decode_into_one_buffer_with_the_numbers_of_the_package():
    from minilora.qlora import QLinear

    linear = torch.nn.Linear(48, 32)
    plain, ours = QLinear.from_linear(linear), QLinear.from_linear(linear)
    ours.__class__ = OneBuffer
    with Watch() as watch:
        W = ours.decode(torch.bfloat16)
    assert [size for _, size in watch.events] == [2 * 48 * 32]
    assert torch.equal(W, plain.decode(torch.bfloat16))


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(method="inference"), "no training step"),
        (dict(optimizer="adamw8bit"), "adamw8bit"),
        (dict(method="qlora", block=128), "blocks of 64"),
        (dict(learned=3), "learned is 3"),
        (dict(rank=0), "rank is 0"),
        (dict(method="lorra"), "did you mean lora"),
        (dict(sequence=3), "unknown setting 'sequence'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(settings, message):
    with pytest.raises(MiniloraError, match=message) as caught:
        measure(SHAPE, **settings)
    assert "\n" not in str(caught.value)


def test_models_that_are_no_llama_are_refused():
    with pytest.raises(MiniloraError, match="gpt-3 is no Llama"):
        measure("gpt-3", method="full")


@pytest.mark.parametrize("method, checkpointing", [("lora", True), ("full-bf16", False)])
def test_one_step_with_the_averages_made_beforehand_is_like_the_second_of_two(
    method, checkpointing
):
    setup = a_setup(method, checkpointing=checkpointing)
    one, two = measure(setup, steps=1), measure(setup, steps=2)
    assert (one.peak, one.phase, one.phases, one.kinds) == (
        two.peak,
        two.phase,
        two.phases,
        two.kinds,
    )
    assert len(one.events) < 0.65 * len(two.events)

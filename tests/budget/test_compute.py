"""Operations against torch's own counter on meta tensors, and time and money by hand."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minilora.budget import catalog
from minilora.budget.catalog import Shape
from minilora.budget.forms import compute
from minilora.budget.measure.fake_run import Plan, batch_of, build, loss_of, prepared
from minilora.budget.setup import make
from minilora.errors import MiniloraError

SIDES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def counted(setup) -> int:
    """What FlopCounterMode counts in forward and backward, on tensors without numbers."""
    with torch.device("meta"):
        model, batch = build(Plan(setup)), batch_of(setup)
    with prepared(model, setup), FlopCounterMode(display=False) as counter:
        loss_of(model, setup, batch).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("seed", range(24))
def test_operations_are_those_that_torch_counts(seed):
    """The plain adapter: the counter does not see the products that the fused one adds in place."""
    dice = random.Random(seed)
    heads = dice.choice([2, 4, 6])
    shape = Shape(
        "drawn",
        heads * dice.choice([4, 8]),
        dice.choice([40, 72]),
        dice.choice([1, 2, 3]),
        heads,
        dice.choice([1, 2]),
        61,
        dice.choice([4, 8]),
        tied=dice.random() < 0.5,
    )
    targets = "all" if dice.random() < 0.3 else dice.sample(SIDES, dice.randint(1, 4))
    setup = make(
        shape,
        method=["full", "lora", "lora"][seed % 3],
        precision="fp32",
        rank=2,
        targets=targets,
        batch=dice.choice([1, 2]),
        seq=dice.choice([8, 16]),
        checkpointing=dice.random() < 0.5,
        detour="plain",
    )
    assert compute.flops(setup).total == counted(setup)


@pytest.mark.parametrize(
    "settings, ratio, watched",
    [
        (dict(method="full", precision="fp32", checkpointing=False), 3.0, True),
        (dict(method="full", precision="fp32"), 3.78, False),
        (dict(method="lora", checkpointing=False), 2.07, False),
        (dict(method="lora"), 2.86, True),
    ],
)
def test_a_step_of_7b(settings, ratio, watched):
    setup = make("llama-7b", targets="q_proj,v_proj", seq=2048, detour="plain", **settings)
    found = compute.flops(setup)
    assert found.ratio == pytest.approx(ratio, abs=0.006)
    if watched:
        assert found.total == counted(setup)
    if ratio == 3.0:
        assert found.total == pytest.approx(87.785e12, rel=1e-4)


def test_a_packed_base_computes_what_a_dense_one_does():
    for checkpointing in (False, True):
        dense, packed = (
            compute.flops("llama-7b", method=method, checkpointing=checkpointing).total
            for method in ("lora", "qlora")
        )
        assert dense == packed
    plain, fused = (
        compute.flops("llama-7b", method="lora", detour=detour).total
        for detour in ("plain", "fused")
    )
    assert plain < fused  # the fused node is computed again to its end
    assert compute.flops("gpt-3", method="full", checkpointing=False).ratio == 3
    assert (
        compute.flops("llama-7b", method="inference").total
        == compute.flops("llama-7b", method="full", checkpointing=False).forward
    )


def test_updates():
    assert compute.updates(1000, batch=16) == 63 and compute.updates(1000, 3, batch=16) == 189
    assert compute.updates(1000, 0.5, batch=10, accumulate=4, devices=2) == 7
    for wrong in (
        dict(examples=0),
        dict(examples=10, batch=0),
        dict(examples=10, epochs=0),
        dict(examples=10, epochs=float("nan")),
    ):
        with pytest.raises(MiniloraError, match="give a"):
            compute.updates(**wrong)


def test_time_and_money_by_hand():
    setup = make("llama-7b", method="lora", targets="q_proj,v_proj", batch=4, seq=2048)
    work = compute.flops(setup).total
    seconds, bound = compute.step_seconds(setup, "A100 80", 0.5)
    assert bound == "compute" and seconds == pytest.approx(work / 312e12 / 0.5)
    plan = compute.plan(
        setup, "A100 80", examples=10_000, epochs=3, accumulate=4, devices=2, utilisation=0.5
    )
    assert (
        plan.updates == 939
        and plan.seconds == pytest.approx(939 * 4 * seconds)
        and plan.days == pytest.approx(plan.seconds / 86400)
    )
    assert plan.cost == pytest.approx(
        (plan.seconds / 3600 * 2 * 1.19, plan.seconds / 3600 * 2 * 2.45)
    )
    assert compute.plan(setup, "T4", examples=10).cost is None
    seconds, bound = compute.step_seconds(
        make("llama-7b", method="full-bf16", optimizer="sgd", seq=1), "A100 80", 1.0
    )
    passes = 3 + 2  # the weights read forward, again and backward; the gradients written and read
    assert bound == "memory" and seconds == pytest.approx(passes * 2 * 6_738_415_616 / 2039e9)
    for share in (0, 1.1, -1):
        with pytest.raises(MiniloraError, match="utilisation"):
            compute.step_seconds(setup, "A100 80", share)


def test_the_rate_is_that_of_the_type():
    cards = {name: catalog.gpu(name) for name in ("T4", "H100")}
    assert compute.rate_name(make(precision="bf16", method="lora"), cards["H100"]) == "bf16"
    assert compute.rate_name(make(precision="bf16", method="lora"), cards["T4"]) == "fp16"
    assert compute.rate_name(make(method="full"), cards["H100"]) == "fp32"


def test_decoding_is_bound_by_bandwidth():
    """7B in 16 bits: 2 B for every parameter but the token table, and the cache; on a card of 1,008
    GB/s about 75 tokens a second at best.
    """
    setup = make("llama-7b", method="inference", seq=100)
    once = 2 * (6_738_415_616 - 32000 * 4096) + 2 * 2 * 32 * 100 * 4096
    assert compute.decode_rate(setup, "RTX 4090", 1.0) == pytest.approx(1008e9 / once)
    packed = compute.decode_rate(
        make("llama-7b", method="inference", base="4bit", seq=100), "RTX 4090", 1.0
    )
    assert 3.3 < packed / compute.decode_rate(setup, "RTX 4090", 1.0) < 3.9

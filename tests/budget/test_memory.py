"""What stays in memory, byte for byte against what the package and the libraries store; the budget,
and the advice.
"""

import json
import random

import pytest
import torch

from minilora.budget import advice, catalog, estimate
from minilora.budget.forms import memory
from minilora.budget.setup import make
from minilora.errors import MiniloraError
from minilora.quantize import quantize

GIB = 2**30


@pytest.mark.parametrize("code", ["nf4", "fp4", "int4", "int8"])
@pytest.mark.parametrize("double", [True, False])
def test_quantized_bytes_are_what_is_stored(code, double):
    dice = random.Random(code)
    for block in (32, 64, 128):
        for size in [
            1,
            63,
            64,
            65,
            16384,
            16385,
            dice.randrange(1, 40000),
            dice.randrange(1, 40000),
        ]:
            stored = quantize(torch.randn(size), code, block, double).nbytes
            setup = make("tiny", code=code, double=double, block=block)
            assert sum(memory.quantized_bytes(size, setup)) == stored, (size, block)


def held(model) -> dict[str, int]:
    """Bytes in parameters and buffers, tied ones once; rotary tables left out."""
    tensors = {
        t.data_ptr(): t
        for name, t in [*model.named_parameters(), *model.named_buffers()]
        if "rotary" not in name and t.numel()
    }
    return sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize("method", ["full", "full-bf16", "lora", "int8", "qlora"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_what_the_model_holds(method, tied):
    from minilora.budget.measure.fake_run import Plan, build

    shape = catalog.Shape("x", 48, 100, 2, 4, 2, 96, 14, tied=tied)
    setup = make(shape, method=method, rank=3, library="minilora", seq=16)
    model = build(Plan(setup))
    # a number in Python, not a tensor
    means = 4 * sum(each.count for each in shape.linears()) if method == "qlora" else 0
    adapter = memory.adapters(setup).bytes if setup.adapters else 0
    assert sum(part.bytes for part in memory.weights(setup).values()) + adapter - means == held(
        model
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == setup.trainable == estimate(setup).trainable
    assert memory.gradients(setup).bytes == sum(p.nbytes for p in trained)
    optimizer = torch.optim.AdamW(trained)
    for p in trained:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    averages = sum(
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    )
    assert memory.optimizer_states(setup)["optimizer states"].bytes == averages


def test_eight_bit_averages_are_what_the_optimizer_keeps():
    """Tensors below, at and above 4,096 elements, and tails of blocks; ours keeps no code book of
    its own.
    """
    from minilora.llama import Llama
    from minilora.train.optim import AdamW8bit

    shape = catalog.Shape("x", 64, 64, 1, 4, 2, 97, 14)
    model = Llama(catalog.llama_config(shape))
    optimizer = AdamW8bit(model.parameters())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    setup = make(shape, method="full", optimizer="adamw8bit")
    assert (
        memory.optimizer_states(setup)["optimizer states"].bytes - memory.CODE_BOOKS
        == optimizer.state_bytes()
    )


def test_paged_averages_may_leave_the_card():
    plain, paged = (
        memory.optimizer_states(make("llama-7b", method="full", optimizer=name))
        for name in ("adamw8bit", "paged_adamw8bit")
    )
    assert paged["paged states"].host
    assert sum(part.bytes for part in paged.values()) == plain["optimizer states"].bytes
    table = 2 * 32000 * 4096
    # all but the norms
    assert paged["paged states"].bytes == 2 * (catalog.model("llama-7b").linear_parameters + table)
    small = memory.optimizer_states(
        make("llama-7b", method="qlora", rank=8, targets="q_proj", optimizer="paged_adamw8bit")
    )
    assert small["paged states"].bytes == 0  # 8 × 4096 elements are too few to be paged


def test_published_bytes():
    """QLoRA: 4.127 bits a parameter with double quantization, and 0.373 bits saved (3.03 GB at 65B,
    as published).
    """
    for name, double in [("llama-65b", True), ("llama-65b", False)]:
        parts = memory.weights(make(name, double=double))
        bits = (
            8
            * (parts["weights"].bytes + parts["quantization constants"].bytes)
            / catalog.model(name).linear_parameters
        )
        assert bits == pytest.approx(4.127 if double else 4.5, abs=5e-4)
    assert memory.weights(make("llama-65b", method="full"))["weights"].bytes == 4 * 65_285_660_672
    # the LoRA paper's 4.7M
    assert make("gpt-3", method="lora", rank=1, targets="q_proj,v_proj").trainable == 4_718_592
    # PEFT's README
    assert make("mt0-large", method="lora", rank=8, targets="q,v").trainable == 2_359_296


@pytest.mark.parametrize(
    # peaks of transformers' Llama, batch 1, 512 tokens, as a ledger of its storages measured them
    "settings, gib",
    [
        (dict(method="lora", targets="q_proj,v_proj", checkpointing=False), 14.89),
        (dict(method="lora", targets="q_proj,v_proj"), 12.89),
        (dict(method="qlora", targets="q_proj,v_proj"), 3.96),
        (dict(method="full-bf16"), 62.76),
        (dict(method="full-bf16", foreach=False), 50.21),
        (dict(model="llama-65b", rank=64), 46.99),
        (dict(model="llama-65b", rank=64, foreach=False), 44.56),
    ],
)
def test_peaks_that_were_measured(settings, gib):
    assert estimate(**settings).peak_allocated / GIB == pytest.approx(gib, rel=0.0025)


def test_a_budget_is_whole():
    for method in ("full", "mixed", "full-bf16", "lora", "int8", "qlora", "inference"):
        budget = estimate("llama-3.2-1b", method=method, seq=256)
        assert budget.total == sum(part.bytes for part in budget.parts.values())
        assert 0 < budget.peak_allocated < budget.with_context
        assert budget.peak_allocated == max(moment.bytes for moment in budget.moments.values())
        assert all(part.formula and part.what and part.bytes >= 0 for part in budget.parts.values())
        assert budget.parameters == 1_235_814_400
        told = json.loads(json.dumps(budget.to_dict()))
        assert told["peak_allocated"] == budget.peak_allocated and told["setup"]["method"] == method
    paged = estimate("llama-7b", method="full", optimizer="paged_adamw8bit")
    assert (
        paged.host and paged.total == sum(part.bytes for part in paged.parts.values()) - paged.host
    )


def test_a_card_must_hold_workspaces_whole_segments_and_the_drivers_context():
    told = estimate("llama-7b", method="lora", rank=8)
    segments = -(-(told.peak_allocated + 2 * 8_519_680) // (2 * 2**20)) * 2 * 2**20
    assert told.needs() == told.with_context == segments + 512 * 2**20
    assert told.needs("T4") == segments + 147_744_358  # measured


def test_other_families_are_answered_roughly():
    """GPT-3 by Megatron's form: 34·s·b·h a layer; the paper's 16 bytes of state a parameter are
    exact.
    """
    whole = estimate("gpt-3", method="full", seq=2048, checkpointing=False)
    # fp32: twice the 16-bit form
    assert whole.parts["activations"].bytes == 96 * 2048 * 34 * 12288 * 2 + 4 * 2048 * 50257
    assert (
        sum(whole.parts[name].bytes for name in ("weights", "gradients", "optimizer states"))
        == 16 * 174_604_259_328
    )
    for name in ("gpt-neox-20b", "mt0-large"):
        assert (
            estimate(name, method="lora").peak_allocated
            > estimate(name, method="qlora").peak_allocated
        )


def test_autocast_copies_are_told_apart():
    """mixed: 2 B for every weight in a product; what remains is smaller than what fp32 keeps."""
    shape = catalog.model("llama-3.2-1b")
    parts = estimate(shape, method="mixed", checkpointing=False).parts
    assert parts["16-bit weight copies"].bytes == 2 * (shape.linear_parameters + shape.table)
    assert (
        parts["activations"].bytes
        < estimate(shape, method="full", checkpointing=False).parts["activations"].bytes
    )


def test_the_cache_and_one_token():
    parts = estimate("llama-2-70b", method="inference", base="4bit", batch=2, seq=1000).parts
    assert parts["KV cache"].bytes == 2 * 2 * 80 * 2000 * 1024
    assert parts["decode buffer"].bytes == 2 * 8192 * 28672
    assert "activations" not in parts


@pytest.mark.parametrize(
    "settings, said",
    [
        (dict(batch=0), "batch is 0"),
        (dict(seq=-1), "seq is -1"),
        (dict(rank=0), "rank is 0"),
        (dict(batch=True), "batch is True"),
        (dict(rank=5000), "rank 5000 is above the smaller side of q_proj"),
        (dict(model="llama-3-8b", rank=1025), "k_proj"),
        (dict(targets="q_prj"), "did you mean q_proj"),
        (dict(targets=[]), "targets are empty"),
        (dict(targets="q_proj,nothing"), "unknown target 'nothing'"),
        (dict(method="qlore"), "did you mean qlora"),
        (dict(optimizer="adam8bit"), "did you mean adamw8bit"),
        (dict(precision="bf8"), "did you mean bf16"),
        (dict(modle="x"), "did you mean"),
        (dict(batchsize=2), "did you mean batch"),
        (dict(model="lama-7b"), "did you mean llama-7b"),
        (dict(method="full", precision="bf16"), "full-bf16"),
        (dict(method="lora", base="4bit"), "keeps its base dense"),
        (dict(code="nf3"), "nf4"),
        (dict(learned=513), "learned is 513"),
        (dict(model="gpt-3", library="minilora"), "no Llama"),
    ],
)
def test_what_cannot_be_gets_one_line(settings, said):
    with pytest.raises(MiniloraError, match=said) as caught:
        estimate(**settings)
    assert "\n" not in str(caught.value)


def test_a_setup_is_changed_with_its_method():
    budget = estimate("llama-7b", method="full")
    assert (
        estimate(budget.setup, method="qlora").peak_allocated
        == estimate("llama-7b", method="qlora").peak_allocated
    )
    assert estimate(budget.setup, batch=2).setup.precision == "fp32"


@pytest.mark.parametrize(
    "card, settings, names",
    [
        (
            "T4",
            dict(model="llama-7b", batch=16, seq=2048, checkpointing=False),
            ["checkpointing", "batch"],
        ),
        ("RTX 4090", dict(model="llama-7b", method="full"), ["method"]),
        ("A100 80", dict(model="llama-65b", method="lora", rank=64, batch=4), ["method"]),
    ],
)
def test_advice_makes_it_fit(card, settings, names):
    found = advice.advise(card=card, **settings)
    assert (
        not found.fits
        and [name for change in found.combination for name in change.settings] == names
    )
    assert found.fitting.needs(card) <= catalog.gpu(card).usable < found.need
    assert found.need - found.fitting.needs(card) == sum(
        change.saves for change in found.combination
    )
    for change in found.changes:  # each saving is that of the setup estimated anew
        assert (
            change.saves
            == found.need - estimate(found.budget.setup, **change.settings).needs(card)
            > 0
        )
    # nothing in it is idle
    for left_out in found.combination if len(found.combination) > 1 else []:
        rest = {
            name: value
            for change in found.combination
            for name, value in change.settings.items()
            if change is not left_out
        }
        assert estimate(found.budget.setup, **rest).needs(card) > catalog.gpu(card).usable


@pytest.mark.parametrize("rows", [7, 30, 33])
def test_rows_are_offered_in_equal_parts_alone(rows):
    """Half of 7 would be 3, and twice 3 rows are another update."""
    parts = [
        change.settings["batch"]
        for change in advice.changes(make("llama-7b", batch=rows))
        if "batch" in change.settings
    ]
    assert parts == [n for n in range(rows - 1, 0, -1) if rows % n == 0]


def test_advice_where_nothing_is_wrong_and_where_nothing_helps():
    fine = advice.advise("llama-7b", "A100 80")
    assert fine.fits and fine.combination == [] and fine.fitting is fine.budget and not fine.notes
    assert advice.advise("llama-3.1-405b", "T4").combination is None
    assert (
        "no bf16 units" in advice.advise("llama-7b", "T4").notes[0]
        and not advice.advise("llama-7b", "T4", precision="fp16").notes
    )

"""What the closed form says autograd keeps, against the storages that autograd keeps: ours and
transformers' Llama, on a CPU.
"""

import functools
import itertools
import random

import pytest
import torch

from minilora.budget.catalog import Shape
from minilora.budget.forms import activations
from minilora.budget.measure.fake_run import Plan, batch_of, build, loss_of, prepared
from minilora.budget.setup import make

pytestmark = pytest.mark.parity  # beside the library that people use

ALLOWED = 16  # bytes: a scalar more or less
METHODS = {"full": {"fp32": "full", "bf16": "full-bf16", "autocast": "mixed"}}
SIDES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WAYS = (
    ("transformers", "minilora"),
    ("fp32", "bf16", "autocast"),
    ("sdpa", "eager"),
    ("full", "lora", "int8", "qlora"),
)
# checkpointed or not, for each of 48 ways: 240 configurations
DRAWS = (False, True, False, True, False)


def kept_by_autograd(model, setup) -> int:
    """Bytes of the storages that wait for backward after the loss, parameters and buffers of the
    model left out.
    """
    own = {
        tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]
    }
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # held, so that no address is used twice
            storages[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with (
        prepared(model, setup),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        loss = loss_of(model, setup, batch_of(setup))
    assert torch.isfinite(loss)
    return sum(size for size, _ in storages.values())


def drawn(dice: random.Random, **fixed):
    """A small setup: odd sizes, grouped heads, tied or not, some or all targets."""
    heads = dice.choice([1, 2, 4, 6])
    groups = dice.choice([n for n in (1, 2, 3, 6) if heads % n == 0])
    bias = fixed["library"] == "transformers" and dice.random() < 0.2  # then it is a Qwen2
    shape = Shape(
        "drawn",
        heads * dice.choice([3, 4, 7]),
        dice.choice([9, 20, 33]),
        dice.choice([1, 2, 3, 4]),
        heads,
        groups,
        dice.choice([17, 40, 61]),
        2 * dice.choice([1, 2, 3, 5]),
        tied=dice.random() < 0.5,
        qkv_bias=bias,
    )
    if bias:  # transformers' Qwen2 takes its heads' size from the hidden size
        shape = Shape(
            "drawn",
            heads * 6,
            shape.ffn,
            shape.layers,
            heads,
            groups,
            shape.vocab,
            6,
            tied=shape.tied,
            qkv_bias=True,
        )
    targets = "all" if dice.random() < 0.4 else dice.sample(SIDES, dice.randint(1, 4))
    rank = dice.randint(1, min(3, shape.key, shape.hidden))
    return make(
        shape,
        rank=rank,
        targets=targets,
        batch=dice.choice([1, 2, 3]),
        seq=dice.choice([2, 5, 11]),
        detour=dice.choice(["fused", "plain"]),
        device="cpu",
        **fixed,
    )


@functools.cache
def compared(library: str, precision: str, attention: str, method: str) -> list:
    """(setup, bytes by which the form is off) of the five draws of one way; measured once, for both
    tests.
    """
    found = []
    dice = random.Random(f"{library} {precision} {attention} {method}")
    named = METHODS.get(method, {}).get(precision, method)
    for checkpointing in DRAWS:
        setup = drawn(
            dice,
            library=library,
            precision=precision,
            attention=attention,
            method=named,
            checkpointing=checkpointing,
        )
        torch.manual_seed(0)
        found.append(
            (setup, activations.kept(setup).bytes - kept_by_autograd(build(Plan(setup)), setup))
        )
    return found


@pytest.mark.parametrize("method", WAYS[3])
@pytest.mark.parametrize("attention", WAYS[2])
@pytest.mark.parametrize("precision", WAYS[1])
@pytest.mark.parametrize("library", WAYS[0])
def test_what_is_kept_is_what_autograd_keeps(library, precision, attention, method):
    for setup, off in compared(library, precision, attention, method):
        assert abs(off) <= ALLOWED, (setup, off)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", WAYS[3])
@pytest.mark.parametrize("precision", WAYS[1])
@pytest.mark.parametrize("library", WAYS[0])
def test_what_a_qwen_has_beside_a_llama_is_counted(library, precision, method, checkpointing):
    """Qwen2's biases, Qwen3's norms on queries and keys: exact as without them."""
    plain = Shape("llama", 24, 20, 3, 6, 2, 40, 10)
    biased = Shape("qwen2", 24, 20, 3, 6, 2, 40, 10, qkv_bias=True)
    normed = Shape("qwen3", 24, 20, 3, 6, 2, 40, 10, qk_norm=True)
    assert biased.parameters == plain.parameters + 3 * (6 + 2 + 2) * 10
    assert normed.parameters == plain.parameters + 3 * 2 * 10
    kept = {}
    for shape in (plain, biased, normed):
        setup = make(
            shape,
            rank=2,
            targets=["q_proj", "v_proj", "down_proj"],
            batch=2,
            seq=7,
            device="cpu",
            library=library,
            precision=precision,
            method=METHODS.get(method, {}).get(precision, method),
            checkpointing=checkpointing,
        )
        torch.manual_seed(0)
        model = build(Plan(setup))
        kept[shape.name] = activations.kept(setup).bytes
        assert abs(kept[shape.name] - kept_by_autograd(model, setup)) <= ALLOWED, shape.name
        if method == "full":
            assert sum(p.numel() for p in model.parameters()) == shape.parameters
    assert kept["qwen3"] > kept["llama"] or checkpointing


def test_most_are_exact_to_the_byte():
    offs = [off for way in itertools.product(*WAYS) for _, off in compared(*way)]
    assert len(offs) == 240 and offs.count(0) >= 120, f"{offs.count(0)} of {len(offs)} exact"


def test_one_layer_more_keeps_what_the_published_form_says():
    """24h + 8f + 4a + 8 bytes a token in bf16, 4(10h + 4f + a + 2) in fp32: SDPA, as many key heads
    as heads, all trained.
    """
    for h, f, heads in [(4096, 11008, 32), (96, 250, 3)]:
        shapes = [Shape("x", h, f, layers, heads, heads, 1000) for layers in (3, 4)]
        for method, each in {
            "full-bf16": 24 * h + 8 * f + 4 * heads + 8,
            "full": 4 * (10 * h + 4 * f + heads + 2),
        }.items():
            three, four = (
                activations.kept(make(shape, method=method, seq=100, checkpointing=False)).bytes
                for shape in shapes
            )
            assert four - three == 100 * each


def test_the_formula_adds_up():
    """The text beside the bytes gives them when its letters are filled in."""
    setup = make(
        "llama-3.2-1b",
        method="lora",
        targets="q_proj,v_proj",
        batch=2,
        seq=100,
        checkpointing=False,
    )
    part = activations.kept(setup)
    sums, _, letters = part.formula.partition(", where ")
    sizes = {name: int(size) for name, size in (each.split(" = ") for each in letters.split(", "))}
    total = 0
    for section in sums.split("; "):
        name, _, sums = section.partition(": ")
        times = int(name.split(" × ")[0]) if "×" in name else 1
        for term in sums.split(" + "):
            product = 1
            for factor in term.split("·"):
                product *= sizes[factor] if factor in sizes else int(factor)
            total += times * product
    assert total == part.bytes

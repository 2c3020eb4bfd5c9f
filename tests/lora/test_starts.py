"""How adapters begin, beside PEFT: distributions, PiSSA, LoftQ, and LoRA+'s rates."""

import copy

import pytest
import torch
from lora_beside_peft import llama, logits, peft_twin, scramble, toy
from torch import nn

from minilora import lora

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def test_pissa_is_bit_equal_to_peft_and_keeps_the_output():
    base = llama()
    ours = lora.add_lora(copy.deepcopy(base), 4, 6, init="pissa")
    twin = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights="pissa"),
    )
    ids = torch.randint(0, 48, (2, 5))
    assert torch.equal(logits(ours, ids), logits(twin, ids))
    torch.testing.assert_close(logits(ours, ids), logits(base, ids), rtol=1e-3, atol=1e-4)
    layer, W = ours.model.layers[0].mlp.up_proj, base.model.layers[0].mlp.up_proj.weight
    values = torch.linalg.svdvals(layer.delta("default"))
    torch.testing.assert_close(values[:4], torch.linalg.svdvals(W)[:4], rtol=1e-4, atol=1e-5)
    assert values[4] < 1e-5


def test_loftq_begins_nearer_to_the_weight_than_quantization_alone():
    from minilora.quantize import quantize

    torch.manual_seed(0)
    W = torch.randn(64, 128)
    nf4 = torch.as_tensor(quantize(W, "nf4").dequantize())
    errors = [torch.linalg.norm(W - nf4)]
    for iterations in (1, 5):
        Q, A, B = lora.loftq(W, 8, 0.5, iterations)
        errors.append(torch.linalg.norm(W - Q - 0.5 * B @ A))
    assert errors[2] < errors[1] < 0.95 * errors[0]
    # PEFT's steps for one iteration and scale 1, written out: nf4, then the SVD of what is left;
    # another scale changes nothing
    U, S, Vh = torch.linalg.svd(W - nf4, full_matrices=False)
    for scale in (1.0, 0.5):
        Q, A, B = lora.loftq(W, 8, scale)
        assert torch.equal(Q, nf4)
        torch.testing.assert_close(
            scale * B @ A, U[:, :8] @ torch.diag(S[:8]) @ Vh[:8], rtol=1e-4, atol=1e-5
        )


def test_loraplus_groups_hold_pefts_rates():
    from peft.optimizers import create_loraplus_optimizer

    base = toy()
    targets = ["embed_tokens", "wide", "narrow"]
    ours = scramble(lora.add_lora(copy.deepcopy(base), 3, 7, targets, variant="dora"))
    twin = peft_twin(
        base, peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, use_dora=True), ours
    )
    theirs = create_loraplus_optimizer(
        twin, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=12, loraplus_weight_decay=0.1
    )
    mine = torch.optim.AdamW(lora.loraplus_groups(ours, 1e-3, 12, weight_decay=0.1))
    rates = []
    for optimizer in (mine, theirs):
        rates.append(
            sorted(
                (tuple(p.shape), g["lr"], g["weight_decay"])
                for g in optimizer.param_groups
                for p in g["params"]
            )
        )
    assert rates[0] == rates[1]


def test_starting_distributions_are_pefts():
    torch.manual_seed(0)
    model = lora.add_lora(
        nn.Sequential(nn.Linear(400, 300), nn.Embedding(500, 40)), 16, 16, ["0", "1"]
    )
    A = model[0].lora_A["default"]
    assert (
        A.abs().max() <= 1 / 400**0.5
        and A.abs().max() > 0.99 / 400**0.5
        and abs(A.std() * 400**0.5 - 3**-0.5) < 0.02
    )
    assert not model[0].lora_B["default"].any() and not model[1].lora_embedding_A["default"].any()
    assert abs(model[1].lora_embedding_B["default"].std() - 1) < 0.1
    gaussian = lora.add_lora(
        nn.Sequential(nn.Linear(400, 300)), 16, init="gaussian", targets=["0"]
    )[0]
    assert (
        abs(gaussian.lora_A["default"].std() * 16 - 1) < 0.03
        and not gaussian.lora_B["default"].any()
    )

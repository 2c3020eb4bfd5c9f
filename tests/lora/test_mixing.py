"""Several adapters on one model, beside PEFT: switched, in one batch, mixed by weight."""

import copy

import pytest
import torch
from lora_beside_peft import llama, logits, scramble

from minilora import lora

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def test_several_adapters_and_different_ones_in_a_batch():
    base = llama()
    ours = copy.deepcopy(base)
    for name, rank in (("a", 2), ("b", 3), ("c", 4)):
        scramble(lora.add_lora(ours, rank, 5, ["q_proj", "down_proj"], name=name), seed=rank)
    twin = peft.get_peft_model(
        copy.deepcopy(base),
        peft.LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj", "down_proj"]),
        "a",
    )
    for name, rank in (("b", 3), ("c", 4)):
        twin.add_adapter(
            name, peft.LoraConfig(r=rank, lora_alpha=5, target_modules=["q_proj", "down_proj"])
        )
    for name in "abc":
        peft.set_peft_model_state_dict(twin, lora.adapter_state(ours, name), adapter_name=name)
    twin.eval()
    ids = torch.randint(0, 48, (4, 6))
    for names in (["a"], ["b"], ["c"], ["a", "c"], ["c", "a", "b"]):
        lora.use_adapter(ours, names)
        twin.base_model.set_adapter(names)
        assert torch.equal(logits(ours, ids), logits(twin, ids)), names
    rows = ["b", "__base__", "a", "b"]
    with lora.mixed_batch(ours, rows):
        mixed = logits(ours, ids)
    assert torch.equal(mixed, twin(ids, adapter_names=rows).logits)
    for i, name in enumerate(rows):
        single = (
            logits(base, ids) if name == "__base__" else logits(lora.use_adapter(ours, name), ids)
        )
        torch.testing.assert_close(mixed[i], single[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["cat", "linear", "svd"])
def test_mixtures_equal_add_weighted_adapter(method):
    base = llama()
    ours = copy.deepcopy(base)
    ranks = (3, 3) if method == "linear" else (2, 4)
    targets = ["q_proj", "down_proj", "embed_tokens"]
    for name, rank in zip("ab", ranks):
        scramble(lora.add_lora(ours, rank, 5, targets, name=name), seed=ord(name))
    twin = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=ranks[0], lora_alpha=5, target_modules=targets), "a"
    )
    twin.add_adapter("b", peft.LoraConfig(r=ranks[1], lora_alpha=5, target_modules=targets))
    for name in "ab":
        peft.set_peft_model_state_dict(twin, lora.adapter_state(ours, name), adapter_name=name)
    lora.mix_adapters(ours, ["a", "b"], [0.7, -0.4], "both", method)
    twin.add_weighted_adapter(["a", "b"], [0.7, -0.4], "both", combination_type=method)
    twin.set_adapter("both")
    theirs = peft.get_peft_model_state_dict(twin, adapter_name="both")
    mine = lora.adapter_state(ours, "both")
    if method == "svd":
        ids = torch.randint(0, 48, (2, 5))
        torch.testing.assert_close(
            logits(ours, ids), logits(twin.eval(), ids), rtol=1e-4, atol=1e-5
        )
    else:
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    if method == "cat":  # exact: the mixture is the weighted sum of the changes
        layer = lora.adapted_layers(ours)["model.layers.0.self_attn.q_proj"]
        torch.testing.assert_close(
            layer.delta("both"), 0.7 * layer.delta("a") - 0.4 * layer.delta("b")
        )

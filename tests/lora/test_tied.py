"""Adapters at the two ends of a tied model: PEFT's answers, before and after saving and merging."""

import json

import pytest
import torch
from little_llamas import IDS, llama, our_llama, ours, theirs, write_adapter
from safetensors.torch import load_file, save_file

from minilora import lora
from minilora.errors import MiniloraError
from minilora.llama import Llama

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

CASES = {
    "head": dict(target_modules=["q_proj", "lm_head"]),
    "table": dict(target_modules=["q_proj", "embed_tokens"]),
    "both": dict(target_modules=["embed_tokens", "lm_head"]),
    "a pattern": dict(target_modules=".*(q_proj|lm_head)"),
    "head with DoRA": dict(target_modules=["q_proj", "lm_head"], use_dora=True),
    "head whole": dict(modules_to_save=["lm_head"]),
    "table whole": dict(modules_to_save=["embed_tokens"]),
    "both whole": dict(modules_to_save=["embed_tokens", "lm_head"]),
    "both as one": dict(target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    "head as one": dict(target_modules=["q_proj", "lm_head"], ensure_weight_tying=True),
    "a pattern as one": dict(target_modules=".*q_proj|lm_head", ensure_weight_tying=True),
    "whole as one": dict(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    "whole head as one": dict(modules_to_save=["lm_head"], ensure_weight_tying=True),
    "as one without ends": dict(ensure_weight_tying=True),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_each_end_speaks_as_in_peft(tmp_path, case, tied):
    write_adapter(llama(tied=tied), tmp_path / "theirs", **CASES[case])
    wanted = theirs(tmp_path / "theirs", tied=tied)
    for model in (our_llama(tied=tied), llama(tied=tied)):
        found = ours(tmp_path / "theirs", model)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        lora.save_adapter(model, tmp_path / "ours")
        torch.testing.assert_close(theirs(tmp_path / "ours", tied=tied), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours(tmp_path / "ours", tied=tied), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_merged_end_is_stored_apart_and_an_unmerged_one_is_tied_again(tmp_path, case):
    write_adapter(llama(tied=True), tmp_path / "a", **CASES[case])
    wanted, plain = theirs(tmp_path / "a", tied=True), our_llama(tied=True)(IDS)
    model = our_llama(tied=True)
    ours(tmp_path / "a", model)
    assert torch.equal(lora.unload(model)(IDS), plain)
    assert model.lm_head is None and model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "plain")
    ours(tmp_path / "a", model)
    lora.unload(lora.merge(model)).save_pretrained(tmp_path / "merged")
    again = Llama.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(IDS), wanted, rtol=0, atol=1e-5)
    assert torch.equal(Llama.from_pretrained(tmp_path / "plain")(IDS), plain)


@pytest.mark.parametrize("case", ["both as one", "whole as one"])
def test_where_two_numbers_are_said_to_be_one_the_heads_counts_as_in_peft(tmp_path, case):
    write_adapter(llama(tied=True), tmp_path, **CASES[case])
    file = tmp_path / "adapter_model.safetensors"
    torch.manual_seed(8)
    state = {key: torch.randn_like(value) for key, value in load_file(file).items()}
    save_file({key: value for key, value in state.items() if "base_layer" not in key}, file)
    torch.testing.assert_close(
        ours(tmp_path, tied=True), theirs(tmp_path, tied=True), atol=1e-5, rtol=0
    )


def test_a_head_of_a_tied_model_can_be_trained(tmp_path):
    model = lora.add_lora(our_llama(tied=True), 4, 6, ["q_proj", "lm_head"])
    before = model(IDS).detach()
    table = model.model.embed_tokens.weight.detach().clone()
    optimizer = torch.optim.SGD(lora.trainable_parameters(model), 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(IDS).square().mean().backward()
        optimizer.step()
    assert not torch.equal(model(IDS), before)
    assert torch.equal(model.model.embed_tokens.weight, table)
    lora.save_adapter(model, tmp_path)
    torch.testing.assert_close(theirs(tmp_path, tied=True), model(IDS), rtol=0, atol=1e-5)
    with lora.disabled(model):
        assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("init", ["pissa", "loftq"])
@pytest.mark.parametrize("end", ["lm_head", "embed_tokens"])
def test_a_shared_weight_is_not_split(tmp_path, init, end):
    """PEFT would split the head and take the table along."""
    model = our_llama(tied=True)
    with pytest.raises(MiniloraError, match=f"{end} is an embedding or shares its table"):
        lora.add_adapter(model, lora.AdapterConfig(2, targets=["q_proj", end], init=init))
    assert not lora.adapted_layers(model)
    write_adapter(llama(tied=True), tmp_path, target_modules=["q_proj", end])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": init}))
    with pytest.raises(MiniloraError, match="shares its table"):
        lora.load_adapter(model, tmp_path)
    assert not lora.adapted_layers(model) and model.lm_head is None

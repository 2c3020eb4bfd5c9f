"""Adapters on the other families that our Llama reads, and over packed bases: PEFT's answers."""

import copy
import json

import pytest
import torch
from little_llamas import IDS, SIZES, llama, our_llama, ours, theirs, write_adapter
from safetensors.torch import load_file, save_file

from minilora import lora
from minilora.llama import Llama
from minilora.qlora import quantize_model

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

FAMILIES = {
    "Qwen2": dict(),
    "Qwen3": dict(head_dim=8),
    "Mistral": dict(sliding_window=None),
}
CASES = {
    "all": dict(target_modules="all-linear", use_rslora=True),
    "DoRA": dict(target_modules=["q_proj", "k_proj", "down_proj"], use_dora=True),
    "ends": dict(target_modules=["q_proj", "lm_head", "embed_tokens"]),
    "whole": dict(modules_to_save=["norm", "lm_head"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_adapter_answers_and_merges_as_in_peft(tmp_path, family, tied, case):
    config = getattr(transformers, f"{family}Config")(
        **SIZES, **FAMILIES[family], tie_word_embeddings=tied
    )
    torch.manual_seed(0)
    base = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for parameter in base.parameters():
        if parameter.ndim == 1:  # biases and norms begin as if they were not there
            parameter.data += 0.1 * torch.randn_like(parameter)
    base.save_pretrained(tmp_path / "base")
    write_adapter(copy.deepcopy(base), tmp_path / "a", **CASES[case])
    with torch.no_grad():
        wanted = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()(IDS).logits
    model = Llama.from_pretrained(tmp_path / "base")
    torch.testing.assert_close(ours(tmp_path / "a", model), wanted, rtol=0, atol=1e-5)
    merged = lora.unload(lora.merge(model))
    torch.testing.assert_close(merged(IDS), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_head_and_copies_go_over_a_packed_base(tmp_path, tied):
    """The ends are never packed, so they do there what they do on the weights it decodes to."""
    write_adapter(llama(tied=tied), tmp_path, target_modules=["q_proj", "lm_head"])
    file = tmp_path / "adapter_model.safetensors"
    table = {"base_model.model.model.embed_tokens.weight": torch.randn(48, 24)}
    if not tied:  # of a tied pair the head's copy would come last
        save_file(load_file(file) | table, file)
    packed = quantize_model(our_llama(tied=tied), "nf4")
    decoded = our_llama(tied=tied)
    for path, layer in packed.named_modules():
        if hasattr(layer, "dense_weight"):
            decoded.get_submodule(path).weight.data = layer.dense_weight()
    torch.testing.assert_close(
        ours(tmp_path, packed), ours(tmp_path, decoded), rtol=1e-4, atol=1e-4
    )


def test_an_adapter_of_ours_is_the_same_in_peft_whatever_it_says_of_its_base(tmp_path):
    model = lora.add_lora(our_llama(tied=True), 4, 6, ["lm_head", "up_proj"], variant="rsdora")
    for parameter in lora.trainable_parameters(model):
        torch.nn.init.uniform_(parameter, 0.1, 0.3)
    lora.save_adapter(model, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert sorted(settings["target_modules"]) == ["lm_head", "up_proj"]
    torch.testing.assert_close(model(IDS), theirs(tmp_path, tied=True), rtol=0, atol=1e-5)

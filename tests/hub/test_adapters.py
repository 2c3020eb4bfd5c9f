"""Adapters of others on transformers' own model through PEFT: what our Llama answers with the same
folder, and the same refusals.
"""

import json

import pytest
import torch
from little_llamas import IDS, llama, ours, theirs, write_adapter
from safetensors.torch import load_file, save_file

from minilora import hub, lora
from minilora.errors import MiniloraError

pytest.importorskip("peft")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

FILE = "adapter_model.safetensors"
CASES = {
    "plain": dict(),
    "a pattern": dict(target_modules=r".*layers\.\d+\.mlp\..*_proj"),
    "numbers by layer": dict(
        target_modules="all-linear",
        rank_pattern={r"layers\.1\..*": 2},
        alpha_pattern={"up_proj": 3, "layers.0.mlp.down_proj": 5},
        use_rslora=True,
    ),
    "DoRA": dict(use_dora=True),
    "whole": dict(modules_to_save=["lm_head", "norm"]),
    "ends": dict(target_modules=["embed_tokens", "lm_head"]),
    "as one": dict(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_pefts_adapter_answers_as_in_peft_and_here(tmp_path, case, tied):
    write_adapter(llama(tied=tied), tmp_path, **CASES[case])
    model = hub.load_adapter(llama(tied=tied), tmp_path)
    with torch.no_grad():
        found = model(IDS).logits
    torch.testing.assert_close(found, theirs(tmp_path, tied=tied), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, ours(tmp_path, tied=tied), rtol=0, atol=1e-5)


def test_odd_names_and_copies_are_read_as_here(tmp_path):
    write_adapter(llama(), tmp_path, saving=dict(save_embedding_layers=True))
    state = load_file(tmp_path / FILE)
    state["base_model.model.lm_head.weight"] = torch.randn(48, 24)
    wanted_state = {key: value.clone() for key, value in state.items()}
    save_file(wanted_state, tmp_path / FILE)
    wanted = theirs(tmp_path)
    save_file({f"module.{key}": value for key, value in state.items()}, tmp_path / FILE)
    with torch.no_grad():
        found = hub.load_adapter(llama(), tmp_path)(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"use_rslora": "false"}, "use_rslora"),
        ({"eva_config": 5}, "eva_config"),
        ({"layers_to_transform": 0}, "layers_to_transform"),
        ({"target_modules": r"(\w|[a-z]|\.|\d)*[0-9]{3}[a-z]"}, "takes too long"),
        ({"init_lora_weights": "pissa"}, "changes the base"),
        ({"r": 3}, "has shape"),
    ],
)
def test_the_refusals_are_the_same(tmp_path, fields, message):
    write_adapter(llama(), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(MiniloraError, match=message):
        hub.load_adapter(llama(), tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    lora.save_adapter(lora.add_lora(llama(), 2, 4), tmp_path)
    hub.load_adapter(llama(), tmp_path)
    with pytest.raises(MiniloraError, match="trained on another base"):
        hub.load_adapter(llama(seed=2), tmp_path)


def test_a_pattern_that_never_ends_is_not_given_to_peft():
    with pytest.raises(MiniloraError, match="takes too long"):
        hub.prepare(llama(), 2, 4, r"(\.|\w|[a-z]|[0-9_])*[0-9]{3}[a-z_]")
    adapted = hub.prepare(llama(), 2, 4, r".*\.q_proj")
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 2

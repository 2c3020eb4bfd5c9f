"""Adapter folders that do not fit, or are damaged: refused by name, and nothing is touched."""

import json

import pytest
import torch
from adapter_folders import llama, ours_with
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minilora import lora
from minilora.errors import MiniloraError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


def rewrite(folder, change, metadata=None):
    file = folder / "adapter_model.safetensors"
    with safe_open(file, "pt") as source:
        metadata = source.metadata() if metadata is None else metadata
    save_file(change(load_file(file)), file, metadata=metadata)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def without_one(state):
    return {key: value for key, value in state.items() if key != Q0}


def with_one_more(state):
    return state | {
        "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(3, 24)
    }


@pytest.mark.parametrize(
    "change, message",
    [
        (without_one, rf"lacks {Q0}"),
        (
            with_one_more,
            r"holds base_model\.model\.model\.layers\.7\.self_attn\.q_proj\.lora_A\.weight",
        ),
        (
            lambda state: state | {Q0: torch.zeros(4, 24)},
            rf"{Q0} has shape \(4, 24\), the model needs \(3, 24\)",
        ),
        (lambda state: state | {Q0: torch.full((3, 24), torch.nan)}, rf"{Q0} holds NaN"),
        (
            lambda state: state | {Q0: torch.zeros(3, 24, dtype=torch.int32)},
            rf"{Q0} holds NaN, infinity or no floating",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_anything_is_touched(tmp_path, change, message):
    lora.save_adapter(ours_with(lora.AdapterConfig(3, 7)), tmp_path)
    rewrite(tmp_path, change)
    model = llama()
    with pytest.raises(MiniloraError, match=message):
        lora.load_adapter(model, tmp_path)
    assert not lora.adapted_layers(model) and not lora.adapters(model)
    assert all(p.requires_grad for p in model.parameters())


def test_another_base_of_the_same_shape_is_refused(tmp_path):
    lora.save_adapter(ours_with(lora.AdapterConfig(3, 7)), tmp_path)
    with pytest.raises(MiniloraError, match="another base: model.embed_tokens.weight"):
        lora.load_adapter(llama(seed=2), tmp_path)
    with pytest.raises(MiniloraError, match="has shape"):
        lora.load_adapter(llama(hidden=32), tmp_path)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        lora.load_adapter(llama().to(dtype), tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"layers_to_transform": [1]}, "layers_to_transform"),
        ({"target_modules": ["nothing"]}, "match no module"),
        ({"r": 0}, "r is 0, less than 1"),
        ({"r": "8"}, 'r is "8", where a whole number belongs'),
        ({"init_lora_weights": "olora"}, "olora"),
        (
            {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 5}},
            "loftq_iter",
        ),
        (
            {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8, "loftq_iter": 1}},
            "loftq_bits",
        ),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"target_modules": None}, "target_modules is None"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path, fields, message):
    lora.save_adapter(ours_with(lora.AdapterConfig(3, 7)), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(MiniloraError, match=message):
        lora.load_adapter(llama(), tmp_path)


def test_broken_files_are_named(tmp_path):
    with pytest.raises(MiniloraError, match="no adapter folder"):
        lora.load_adapter(llama(), tmp_path / "nowhere")
    with pytest.raises(MiniloraError, match="adapter_config.json"):
        lora.load_adapter(llama(), tmp_path)
    lora.save_adapter(ours_with(lora.AdapterConfig(3, 7)), tmp_path)
    weights, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(MiniloraError, match="cut short"):
        lora.load_adapter(llama(), tmp_path)
    weights.unlink()
    with pytest.raises(MiniloraError, match="adapter_model.safetensors"):
        lora.load_adapter(llama(), tmp_path)
    weights.write_bytes(whole)
    settings.write_text("{")
    with pytest.raises(MiniloraError, match="JSON"):
        lora.load_adapter(llama(), tmp_path)
    settings.write_text(
        '{"peft_type": "LORA", "r": 3, "lora_alpha": 7, "target_modules": "all-linear"}'
    )
    lora.load_adapter(llama(), tmp_path)

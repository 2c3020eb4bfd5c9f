"""4-bit folders that do not fit, and what a folder may be loaded for."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_lora import IDS, tiny
from torch import nn

from minilora import lora
from minilora.errors import MiniloraError
from minilora.qlora import Int8Linear, QLinear, load_quantized, quantize_model
from minilora.qlora.base import INT8, load_base, packed, quantize_base, recipe
from minilora.qlora.checkpoint import save_quantized
from minilora.qlora.int8 import quantize_model_int8


@pytest.fixture
def folder(tmp_path):
    save_quantized(quantize_model(tiny()), tmp_path / "packed")
    return tmp_path / "packed"


def rewritten(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.update(extra=torch.zeros(2)), "model.safetensors: unexpected extra;"),
        (lambda s: s.pop("model.norm.weight"), "the weights lack model.norm.weight;"),
        (lambda s: s.pop("lm_head.weight"), "the weights lack lm_head.weight;"),
    ],
)
def test_a_folder_whose_tensors_are_not_the_models_is_refused(folder, change, words):
    with pytest.raises(MiniloraError, match=words):
        load_quantized(rewritten(folder, change))


def test_a_folder_of_other_sizes_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 96
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        MiniloraError, match=r"\[64, 128\] in the file, config.json asks for \[64, 96"
    ):
        load_quantized(folder)
    config["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(MiniloraError, match=r"holds a 4-bit model\.layers\.1.*does not have"):
        load_quantized(folder)


def test_a_model_under_adapters_is_not_written(tmp_path):
    model = lora.add_lora(quantize_model(tiny()), 2)
    with pytest.raises(MiniloraError, match="adapters are on the model"):
        save_quantized(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_packed_folder_is_read_as_it_is_and_for_nothing_else(folder):
    assert packed(folder)
    assert torch.equal(load_base(folder, "cpu")(IDS), load_quantized(folder)(IDS))
    again = load_base(folder, "cpu", recipe("nf4"))  # what it is already
    assert torch.equal(again(IDS), load_quantized(folder)(IDS))
    for wish in (
        {"trained": True},
        {"quantization": recipe("fp4")},
        {"quantization": recipe("int4")},
        {"quantization": recipe(INT8)},
    ):
        with pytest.raises(MiniloraError, match=r"is in 4 bits already \(nf4\)"):
            load_base(folder, "cpu", **wish)


def test_a_plain_folder_is_quantized_by_the_recipe(tmp_path):
    tiny().save_pretrained(tmp_path)
    assert not packed(tmp_path)
    model = load_base(tmp_path, "cpu", recipe("nf4"))
    for layer in (m for m in model.modules() if isinstance(m, QLinear)):
        q = layer.quantized
        assert (str(q.code), q.block, q.nested is not None) == ("nf4", 64, True)
    assert torch.equal(model(IDS), quantize_model(tiny())(IDS))
    assert recipe(INT8) == {"code": INT8, "threshold": 6.0}
    model = load_base(tmp_path, "cpu", recipe(INT8))
    kinds = {type(m) for m in model.model.layers.modules() if hasattr(m, "in_features")}
    assert kinds == {Int8Linear} and not any(p.requires_grad for p in model.parameters())
    assert load_base(tmp_path, "cpu", trained=True).lm_head.weight.dtype == torch.float32


def test_each_setting_reaches_the_layers():
    q = quantize_base(tiny(), "fp4", block=32, double=False).model.layers[0].mlp.up_proj.quantized
    assert (str(q.code), q.block, q.nested) == ("fp4", 32, None)
    model = quantize_model_int8(tiny(), threshold=3.0, skip=("down_proj",))
    assert model.model.layers[1].mlp.up_proj.threshold == 3.0
    assert type(model.model.layers[1].mlp.down_proj) is nn.Linear
    assert not any(p.requires_grad for p in quantize_model(tiny()).parameters())


def test_a_state_of_another_size_does_not_load():
    wide, narrow = (QLinear.from_linear(nn.Linear(64, size)) for size in (48, 32))
    before = narrow.dense_weight()
    with pytest.raises(RuntimeError, match=r"weight has shape \[48, 64\], the layer needs \[32"):
        narrow.load_state_dict(wide.state_dict())
    assert torch.equal(narrow.dense_weight(), before)
    state = narrow.state_dict()
    del state["bias"]
    with pytest.raises(RuntimeError, match="bias"):
        narrow.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"weight\.quant_state"):
        narrow.load_state_dict(nn.Linear(64, 32).state_dict())


def test_loading_a_state_changes_all_that_is_decoded():
    one, other = (QLinear.from_linear(nn.Linear(64, 48)) for _ in range(2))
    one.load_state_dict(other.state_dict())
    assert torch.equal(one.dense_weight(), other.dense_weight())
    assert torch.equal(one.bias, other.bias)
    one.absmax = one.absmax + 1  # as a tool does that edits one buffer in place of another
    assert not torch.equal(one.dense_weight(), other.dense_weight())

"""An adapter is not added a second time to weights that hold it already, and to all other bases it
goes on.
"""

import copy

import pytest
import torch
from small_lora import scramble, tiny, train

from minilora import lora
from minilora.errors import MiniloraError
from minilora.lora.folder import read_tensors
from minilora.lora.merged_twice import MERGED_KEY
from minilora.qlora import quantize_model
from minilora.qlora.int8 import quantize_model_int8

BASES = {
    "dense": tiny,
    "bf16": lambda: tiny().bfloat16(),
    "nf4": lambda: quantize_model(tiny()),
    "int8": lambda: quantize_model_int8(tiny()),
}


def decoded(model):
    """A base in four bits, written out as numbers again."""
    return lora.unload(lora.merge(lora.add_lora(quantize_model(model), 2)))


@pytest.mark.parametrize("steps", [1, 12])
@pytest.mark.parametrize("save_while", ["apart", "merged"])
@pytest.mark.parametrize("base", BASES)
def test_a_merged_model_does_not_take_its_adapter_again(tmp_path, base, save_while, steps):
    model = lora.add_lora(BASES[base](), 3, 7)
    train(model, steps)
    if save_while == "merged":
        lora.merge(model)
    lora.save_adapter(model, tmp_path)
    merged = lora.unload(model if save_while == "merged" else lora.merge(model))
    for each in (merged, copy.deepcopy(merged).bfloat16()):  # as it is exported for other programs
        with pytest.raises(
            MiniloraError,
            match=r"merged into this model already: model\.layers\.0\.self_attn\.q_proj\.weight",
        ):
            lora.load_adapter(each, tmp_path)
        assert not lora.adapters(each)


@pytest.mark.parametrize("base", BASES)
def test_every_other_base_takes_it(tmp_path, base):
    model = scramble(lora.add_lora(BASES[base](), 3, 7))
    lora.save_adapter(model, tmp_path / "trained")
    lora.save_adapter(lora.add_lora(tiny(), 3, 7), tmp_path / "new")
    other = lora.unload(
        lora.merge(scramble(lora.add_lora(tiny(), 3, 7, targets=["o_proj", "down_proj"])))
    )
    half = tiny()  # as a merge makes it in every second row alone
    with torch.no_grad():
        path, layer = next(iter(lora.adapted_layers(model).items()))
        half.get_submodule(path).weight[::2] += layer.delta("default")[::2]
    for each in (*(make() for make in BASES.values()), decoded(tiny()), other, half, tiny().half()):
        lora.load_adapter(each, tmp_path / "trained")
    # with B = 0 a merge changes nothing, so nothing is lost either
    lora.load_adapter(tiny(), tmp_path / "new")
    assert MERGED_KEY in read_tensors(tmp_path / "trained" / "adapter_model.safetensors")[1]
    assert MERGED_KEY not in read_tensors(tmp_path / "new" / "adapter_model.safetensors")[1]


@pytest.mark.parametrize("settings", [{"init": "pissa"}, {"init": "loftq"}, {"variant": "dora"}])
def test_starts_that_change_the_base_are_left_alone(tmp_path, settings):
    model = lora.add_lora(tiny(), 3, 7, **settings)
    lora.save_adapter(model, tmp_path)
    fresh = lora.load_adapter(tiny(), tmp_path)
    ids = torch.tensor([[1, 5, 2, 9]])
    torch.testing.assert_close(fresh(ids), model(ids), rtol=1e-4, atol=1e-4)


def test_transformers_model_is_asked_the_same(tmp_path, tiny_folder):
    pytest.importorskip("peft")
    from minilora import hub

    ours = lora.add_lora(hub.load(tiny_folder, "lora", stack="minilora", device="cpu"), 3, 7)
    lora.save_adapter(scramble(ours), tmp_path / "adapter")
    hub.load_adapter(hub.load(tiny_folder, "lora", device="cpu"), tmp_path / "adapter")
    lora.unload(lora.merge(ours)).save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "merged" / name).write_bytes((tiny_folder / name).read_bytes())
    with pytest.raises(MiniloraError, match="merged into this model already"):
        hub.load_adapter(hub.load(tmp_path / "merged", "lora", device="cpu"), tmp_path / "adapter")

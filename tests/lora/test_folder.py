"""Adapter folders of other programs: read rightly, or said what is in them."""

import pytest
import torch
from little_llamas import IDS, llama, our_llama, ours, theirs, write_adapter
from safetensors.torch import load_file, save_file

from minilora import lora
from minilora.errors import MiniloraError

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."

SETTINGS = dict(target_modules=["q_proj", "embed_tokens"], modules_to_save=["norm"], use_dora=True)

SPELLINGS = {
    "PEFT's": lambda key: key,
    "no prefix": lambda key: key.removeprefix(PREFIX),
    "two prefixes": lambda key: PREFIX + key,
    "compiled whole": lambda key: "_orig_mod." + key,
    "compiled inside": lambda key: key.replace(PREFIX, PREFIX + "_orig_mod."),
    "compiled layers": lambda key: key.replace(".self_attn", "._orig_mod.self_attn"),
    "DDP": lambda key: "module." + key,
    "FSDP": lambda key: "_fsdp_wrapped_module." + key.replace(".mlp", "._fsdp_wrapped_module.mlp"),
    "checkpointed": lambda key: key.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
    "all": lambda key: "module._orig_mod." + key.replace(".self", "._fsdp_wrapped_module.self"),
    "inner model": lambda key: key.replace("model.model.model.", "model.model."),
}
NAMES = {
    "named in the middle": lambda key: (
        key.replace(".weight", ".default.weight") if "lora_" in key else key
    ),
    "named at the end": lambda key: f"{key}.default" if "weight" not in key else key,
    "full modules as in memory": lambda key: (
        key.replace("norm.weight", "norm.modules_to_save.default.weight")
        if "lora_" not in key
        else key
    ),
    "a magnitude's weight": lambda key: key.replace("vector", "vector.weight"),
    "a magnitude's name and weight": lambda key: key.replace("vector", "vector.mine.weight"),
}


def respell(folder, spell):
    state = load_file(folder / FILE)
    save_file({spell(key): value for key, value in state.items()}, folder / FILE)


@pytest.mark.parametrize("how", [*SPELLINGS, *NAMES])
def test_odd_names_mean_what_they_meant(tmp_path, how):
    write_adapter(llama(), tmp_path, **SETTINGS)
    state = {k: v for k, v in load_file(tmp_path / FILE).items() if "base_layer" not in k}
    save_file(state, tmp_path / FILE)
    wanted = theirs(tmp_path)
    respell(tmp_path, (SPELLINGS | NAMES)[how])
    torch.testing.assert_close(ours(tmp_path), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "spell, message",
    [
        (lambda key: key.replace("layers.1", "layers.7"), "lacks .*layers.1.self_attn"),
        (lambda key: key.replace("self_attn", "attention"), "lacks .*layers.0.self_attn"),
        (lambda key: key.replace("model.layers", "language_model.model.layers"), "lacks"),
        (lambda key: key.replace("lora_A.weight", "lora_A.one.two.weight"), "lacks"),
        (lambda key: key.replace("lora_A.weight", "lora_A.bias"), "lacks"),
    ],
)
def test_names_that_mean_nothing_are_not_guessed(tmp_path, spell, message):
    write_adapter(llama(), tmp_path)
    respell(tmp_path, spell)
    model = our_llama()
    with pytest.raises(MiniloraError, match=message):
        lora.load_adapter(model, tmp_path)
    assert not lora.adapted_layers(model)


def test_a_deeper_models_adapter_is_refused(tmp_path):
    write_adapter(llama(num_hidden_layers=3), tmp_path)
    with pytest.raises(MiniloraError, match=r"holds .*layers\.2\..* and 3 more.* no place"):
        ours(tmp_path)


def test_two_names_for_one_tensor_are_refused(tmp_path):
    write_adapter(llama(), tmp_path)
    state = load_file(tmp_path / FILE)
    key = next(iter(state))
    save_file(state | {f"module.{key}": 2 * state[key]}, tmp_path / FILE)
    with pytest.raises(MiniloraError, match=f"module.{key} both mean {key}|{key} and module"):
        ours(tmp_path)


@pytest.mark.parametrize("shape", [(0,), (0, 24), (4, 0)])
def test_tensors_of_a_sharded_run_are_named(tmp_path, shape):
    """What DeepSpeed's ZeRO-3 leaves when nobody gathers: names, and nothing in them."""
    write_adapter(llama(), tmp_path)
    state = {key: torch.zeros(shape) for key in load_file(tmp_path / FILE)}
    save_file(state, tmp_path / FILE)
    with pytest.raises(MiniloraError, match="is empty, of shape .*ZeRO-3.*gather"):
        ours(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_of_float_are_read_as_by_peft(tmp_path, dtype):
    write_adapter(llama(), tmp_path)
    state = load_file(tmp_path / FILE)
    save_file({key: value.to(dtype) for key, value in state.items()}, tmp_path / FILE)
    model = lora.load_adapter(our_llama(), tmp_path)
    assert {parameter.dtype for parameter in lora.trainable_parameters(model)} == {torch.float32}
    torch.testing.assert_close(model(IDS), theirs(tmp_path), rtol=0, atol=1e-5)


def test_what_32_bits_cannot_hold_is_infinite(tmp_path):
    write_adapter(llama(), tmp_path)
    state = {key: value.double() * 1e300 for key, value in load_file(tmp_path / FILE).items()}
    save_file(state, tmp_path / FILE)
    with pytest.raises(MiniloraError, match="NaN, infinity"):
        ours(tmp_path)


def test_a_rank_above_a_small_layer_is_read(tmp_path):
    """k_proj gives 12 numbers; an adapter of rank 16 on it is wasteful, and valid."""
    write_adapter(llama(), tmp_path, target_modules=["k_proj", "q_proj"], r=16)
    torch.testing.assert_close(ours(tmp_path), theirs(tmp_path), rtol=0, atol=1e-5)


def test_a_pickle_alone_is_not_read_and_how_to_convert_it_is_said(tmp_path, monkeypatch):
    write_adapter(llama(), tmp_path)
    wanted = theirs(tmp_path)
    torch.save(load_file(tmp_path / FILE), tmp_path / "adapter_model.bin")
    (tmp_path / FILE).unlink()
    with pytest.raises(MiniloraError, match="is a pickle, which is not read") as caught:
        ours(tmp_path)
    command = str(caught.value).partition('python -c "')[2].rpartition('"')[0]
    monkeypatch.chdir(tmp_path)
    exec(command, {})
    torch.testing.assert_close(ours(tmp_path), wanted, rtol=0, atol=1e-5)


def test_what_is_there_instead_is_named(tmp_path):
    write_adapter(llama(), tmp_path / "a")
    file = tmp_path / "a" / FILE
    file.rename(tmp_path / "a" / "pytorch_lora_weights.safetensors")
    with pytest.raises(MiniloraError, match=r"there is pytorch_lora_weights\.safetensors"):
        ours(tmp_path / "a")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(MiniloraError, match="git lfs pull"):
        ours(tmp_path / "a")
    with pytest.raises(MiniloraError, match="is a file; give the folder"):
        ours(file)
    with pytest.raises(
        MiniloraError, match=f"subfolders a; give one of them, such as {tmp_path}/a"
    ):
        ours(tmp_path)


@pytest.mark.parametrize(
    "module", ["layers", "rotary", "", "model.layers.0", "layers.0.mlp", "up_proj"]
)
def test_a_module_to_save_that_cannot_be_copied_is_refused_before_anything_is_touched(
    tmp_path, module
):
    import json

    write_adapter(llama(), tmp_path)
    file = tmp_path / "adapter_config.json"
    settings = json.loads(file.read_text()) | {"modules_to_save": [module, "mlp"]}
    file.write_text(json.dumps(settings))
    model = our_llama()
    with pytest.raises(MiniloraError):
        lora.load_adapter(model, tmp_path)
    assert not lora.adapted_layers(model) and all(p.requires_grad for p in model.parameters())

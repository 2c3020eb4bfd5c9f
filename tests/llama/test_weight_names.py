"""Which tensors a checkpoint may hold: names, types, and one of two tables that are tied."""

import pytest
import torch
from safetensors.torch import load_file
from their_checkpoints import change, equal, refusal, same, store

from minilora.llama import Llama
from minilora.llama.checkpoint import EMBEDDING, HEAD
from minilora.llama.weight_files import SINGLE, own_name

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.mark.parity
def test_either_of_two_tied_tables_is_enough(make, family):
    folder = make(model_type=family, tie_word_embeddings=True)
    state = load_file(folder / SINGLE)
    assert HEAD not in state
    store(folder, state | {HEAD: state[EMBEDDING].clone()})
    assert same(folder)
    store(folder, {HEAD if name == EMBEDDING else name: state[name] for name in state})
    assert same(folder)


def test_two_tied_tables_that_differ_are_refused(make):
    folder = make(tie_word_embeddings=True)
    state = load_file(folder / SINGLE)
    store(folder, state | {HEAD: state[EMBEDDING] + 1})
    assert "set tie_word_embeddings to false" in refusal(folder)
    change(folder, tie_word_embeddings=False)  # as the line says
    assert same(folder)
    store(folder, state | {HEAD: torch.randn(70, 32)})
    change(folder, tie_word_embeddings=True)
    assert "lm_head.weight has shape [70, 32], config.json asks for [61, 32]" in refusal(folder)


def test_a_head_that_is_missing_is_not_drawn_at_random(make):
    folder = make(model_type="qwen2")
    state = load_file(folder / SINGLE)
    del state[HEAD]
    store(folder, state)
    assert "lack lm_head.weight; if its head is its embedding" in refusal(folder)
    store(folder, state | {"score.weight": torch.ones(2, 32)})
    assert "it is a classifier" in refusal(folder)


@pytest.mark.parity
@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_saved_without_its_head_lacks_a_prefix(make, family, tied):
    """`LlamaModel.save_pretrained` writes such names; transformers reads them back."""
    folder = make(model_type=family, tie_word_embeddings=tied)
    state = load_file(folder / SINGLE)
    store(folder, {name.removeprefix("model."): tensor for name, tensor in state.items()})
    assert same(folder)


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "_fsdp_wrapped_module.{}",
    ],
)
def test_the_names_of_wrappers_are_taken_off(make, wrapped):
    """transformers warns and draws every weight at random."""
    folder = make(model_type="qwen3")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    state = load_file(folder / SINGLE)
    store(folder, {wrapped.format(name): tensor for name, tensor in state.items()})
    assert equal(Llama.from_pretrained(folder), theirs)


def test_wrappers_inside_a_name_are_taken_off():
    assert (
        own_name("model.layers.0._orig_mod.self_attn._checkpoint_wrapped_module.q_proj.weight")
        == "model.layers.0.self_attn.q_proj.weight"
    )
    assert own_name("layers.1.mlp.up_proj.weight") == "model.layers.1.mlp.up_proj.weight"
    assert own_name("lm_head.weight") == HEAD and own_name("norm.weight") == "model.norm.weight"


def test_two_names_of_one_tensor_are_refused(make):
    folder = make()
    state = load_file(folder / SINGLE)
    store(folder, state | {"module." + EMBEDDING: state[EMBEDDING].clone()})
    assert "stands in model.safetensors too" in refusal(folder)


@pytest.mark.parity
def test_frequencies_that_old_versions_saved_do_not_count(make):
    folder = make()
    state = load_file(folder / SINGLE)
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    store(folder, state | buffers | {"model.rotary_emb.inv_freq": torch.full((4,), 9.0)})
    assert same(folder)
    store(folder, state | {"model.layers.0.self_attn.rotary.inv_freq": torch.ones(4)})
    assert "unexpected model.layers.0.self_attn.rotary.inv_freq" in refusal(folder)


def test_an_adapter_in_a_models_place_is_named(make):
    folder = make()
    store(folder, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(1)})
    assert "an adapter's weights; give them as --adapter" in refusal(folder)


def test_a_name_that_spoils_the_line_is_cut(make):
    folder = make()
    state = load_file(folder / SINGLE)
    store(folder, state | {"a\nb\x1b[31m" + "x" * 5000: torch.ones(1)})
    assert "unexpected a b" in refusal(folder)


@pytest.mark.parity
@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64]
)
def test_every_float_is_read_and_types_may_be_mixed(make, family, dtype):
    folder = make(model_type=family)
    state = load_file(folder / SINGLE)
    store(folder, {name: t.to(dtype) if "proj" in name else t for name, t in state.items()})
    assert same(folder)


def test_nan_in_a_float_of_one_byte_is_seen(make):
    folder = make()
    state = load_file(folder / SINGLE)
    weight = state["model.norm.weight"]
    weight[5] = float("nan")
    store(folder, state | {"model.norm.weight": weight.to(torch.float8_e4m3fn)})
    assert "model.norm.weight holds 1 NaN" in refusal(folder)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64]
)
def test_what_is_no_float_is_refused_by_its_type(make, dtype):
    folder = make()
    state = load_file(folder / SINGLE)
    store(folder, state | {"model.norm.weight": state["model.norm.weight"].to(dtype)})
    assert f"model.norm.weight is {dtype}, not a float" in refusal(folder)


def test_a_double_beyond_fp32_is_refused(make):
    folder = make()
    state = load_file(folder / SINGLE)
    weight = state["model.norm.weight"].double()
    weight[0] = 1e300
    store(folder, state | {"model.norm.weight": weight})
    line = refusal(folder)
    assert "float32 is too narrow for it, download" in line

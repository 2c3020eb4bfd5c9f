"""Llama folders in and out: both of transformers' layouts, shards, dtypes, and every way a folder
can be wrong.
"""

import json
import shutil

import pytest
import torch
from family_twins import LLAMA3
from llama_sizes import sizes
from safetensors.torch import load_file, save_file
from their_checkpoints import change, refusal

from minilora.errors import MiniloraError
from minilora.llama import Config, Llama
from minilora.llama.weight_files import INDEX, SINGLE

SMALL = sizes(vocab=50, hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, context=64) | dict(
    initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0
)
IDS = torch.arange(3, 24).view(1, -1)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(seed=0, **changes):
    torch.manual_seed(seed)
    return Llama(Config(**(SMALL | changes))).eval()


def logits(model):
    with torch.no_grad():
        result = model(IDS)
    return (result if torch.is_tensor(result) else result.logits).float()


@pytest.fixture
def folder(tmp_path):
    make().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# both ways with transformers


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_ours_to_transformers_and_back(tmp_path, dtype, tied):
    transformers = pytest.importorskip("transformers")
    ours = make(tie_word_embeddings=tied, rope_scaling=LLAMA3, attention_bias=True).to(dtype)
    ours.save_pretrained(tmp_path / "a")
    theirs, report = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "a", output_loading_info=True
    )
    assert theirs.dtype == dtype
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert (logits(theirs) - logits(ours)).abs().max() <= (1e-5 if dtype == torch.float32 else 0.02)
    theirs.save_pretrained(tmp_path / "b", max_shard_size="10KB")
    assert (tmp_path / "b" / INDEX).is_file()
    again = Llama.from_pretrained(tmp_path / "b", dtype=dtype)
    assert torch.equal(logits(again), logits(ours))
    assert again.config == ours.config


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_dtypes_are_cast_exactly(tmp_path, stored, wanted):
    ours = make().to(stored)
    ours.save_pretrained(tmp_path)
    again = Llama.from_pretrained(tmp_path, dtype=wanted)
    for name, tensor in again.state_dict().items():
        assert tensor.dtype == wanted and torch.equal(tensor, ours.state_dict()[name].to(wanted))
    assert again.model.rotary.cos.dtype == torch.float32 and not again.model.rotary.cos.is_meta


def test_our_shards_are_read_by_both_and_leave_no_old_file(tmp_path):
    transformers = pytest.importorskip("transformers")
    first, second = make(0), make(1)
    first.save_pretrained(tmp_path)
    second.save_pretrained(tmp_path, max_shard_bytes=10_000)
    assert not (tmp_path / SINGLE).exists() and len(list(tmp_path.glob("model-*-of-*"))) > 2
    assert (
        max(sum(t.nbytes for t in load_file(f).values()) for f in tmp_path.glob("model-*"))
        <= 10_000
    )
    assert torch.equal(logits(Llama.from_pretrained(tmp_path)), logits(second))
    assert (
        logits(transformers.LlamaForCausalLM.from_pretrained(tmp_path)) - logits(second)
    ).abs().max() <= 1e-5
    first.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", SINGLE]
    assert torch.equal(logits(Llama.from_pretrained(tmp_path)), logits(first))


def test_saving_leaves_other_files_alone(folder):
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model_card.md").write_text("hello")
    make(3).save_pretrained(folder)
    assert (folder / "tokenizer.json").exists() and (folder / "model_card.md").exists()


def test_weights_that_are_read_can_be_trained(folder):
    model = Llama.from_pretrained(folder)
    model(IDS).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_copy_of_the_tied_embedding_and_old_rope_buffers_are_accepted(tmp_path):
    model = make(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / SINGLE)
    extra = {
        "lm_head.weight": state["model.embed_tokens.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file(state | extra, tmp_path / SINGLE)
    assert torch.equal(logits(Llama.from_pretrained(tmp_path)), logits(model))
    save_file(state | {"lm_head.weight": extra["lm_head.weight"] + 1}, tmp_path / SINGLE)
    with pytest.raises(MiniloraError, match="tie_word_embeddings"):
        Llama.from_pretrained(tmp_path)


def test_the_old_name_of_the_rope_type_is_read():
    assert Config.from_hf(
        SMALL | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    ).rope_scaling == {"rope_type": "linear", "factor": 2.0}


# everything that can be wrong: one line that names the place and the remedy


def test_missing_folder_and_hub_name(tmp_path):
    assert f"no folder {tmp_path / 'none'}" in refusal(tmp_path / "none")
    message = refusal("someone/some-model")
    assert "hub" in message and "hf download someone/some-model" in message
    assert "config.json" in refusal(tmp_path)
    file = tmp_path / "file.txt"
    file.write_text("x")
    assert "is a file" in refusal(file)


@pytest.mark.parametrize(
    "fields, word",
    [
        (dict(model_type="gemma"), "'gemma'"),
        (dict(hidden_act="gelu"), "'gelu'"),
        (dict(vocab_size="DROP"), "vocab_size missing"),
        (dict(hidden_size="32"), 'hidden_size is "32"'),
        (dict(num_key_value_heads=3), "no multiple"),
        (dict(head_dim=7), "head_dim is 7"),
        (dict(num_hidden_layers=0), "num_hidden_layers is 0"),
        (dict(rope_scaling={"rope_type": "dynamic", "factor": 2}), "'dynamic'"),
        (dict(rope_scaling={"rope_type": "llama3", "factor": 2}), "low_freq_factor"),
        (dict(quantization_config={"quant_method": "bitsandbytes"}), "quantized (bitsandbytes"),
    ],
)
def test_wrong_configurations(folder, fields, word):
    change(folder, **fields)
    message = refusal(folder)
    assert word in message and str(folder / "config.json") in message


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\xff"])
def test_config_that_is_no_json(folder, text):
    (folder / "config.json").write_text(text)
    assert str(folder / "config.json") in refusal(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -4000])
def test_truncated_weights(folder, keep):
    data = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(data[:keep])
    message = refusal(folder)
    assert str(folder / SINGLE) in message and "cut short" in message and "again" in message


def test_missing_unexpected_and_misshapen_tensors(folder):
    state = load_file(folder / SINGLE)
    key = "model.layers.1.mlp.up_proj.weight"
    save_file({name: tensor for name, tensor in state.items() if name != key}, folder / SINGLE)
    assert key in refusal(folder)
    save_file(state | {"model.layers.9.extra": torch.ones(1)}, folder / SINGLE)
    assert "model.layers.9.extra" in refusal(folder)
    save_file(state | {key: state[key].T.contiguous()}, folder / SINGLE)
    assert f"{key} has shape [32, 48], config.json asks for [48, 32]" in refusal(folder)
    save_file(state | {key: state[key].to(torch.int8)}, folder / SINGLE)
    assert "int8" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(folder, value):
    state = load_file(folder / SINGLE)
    state["model.norm.weight"][3] = value
    save_file(state, folder / SINGLE)
    message = refusal(folder)
    assert (
        "model.norm.weight holds 1 NaN or infinite" in message and str(folder / SINGLE) in message
    )


def test_weights_too_large_for_fp16(folder):
    state = load_file(folder / SINGLE)
    state["model.norm.weight"][3] = 1e6
    save_file(state, folder / SINGLE)
    assert "float16 is too narrow" in refusal(folder, dtype=torch.float16)


def test_broken_shards(tmp_path):
    make().save_pretrained(tmp_path, max_shard_bytes=10_000)
    shard = sorted(tmp_path.glob("model-*"))[1]
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy)
    shard.unlink()
    assert shard.name in refusal(tmp_path)
    shutil.copy(copy / sorted(p.name for p in copy.glob("model-*"))[0], shard)
    assert "stands in" in refusal(tmp_path)
    (copy / INDEX).write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    assert "weight_map" in refusal(copy)
    (copy / INDEX).write_text("{")
    assert INDEX in refusal(copy)


def test_pickles_are_not_read(folder):
    (folder / SINGLE).unlink()
    assert f"no {SINGLE}" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "convert it to safetensors" in refusal(folder)


def test_nothing_is_written_when_the_model_cannot_be_saved(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model = make(5)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(MiniloraError, match="model.layers.0.mlp.up_proj.weight holds 1 NaN"):
        model.save_pretrained(folder)
    replaced = make(5)
    replaced.model.layers[0].mlp.up_proj = torch.nn.Sequential(replaced.model.layers[0].mlp.up_proj)
    with pytest.raises(MiniloraError, match="merge first"):
        replaced.save_pretrained(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with pytest.raises(MiniloraError, match="cannot write"):
        make().save_pretrained(folder / "config.json")
    assert sorted(file.name for file in folder.parent.iterdir()) == [folder.name]

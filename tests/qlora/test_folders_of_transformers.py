"""Folders in 4 bits as transformers, Unsloth and others leave them about: the logits are those of
the weights that bitsandbytes decodes.
"""

import json
import shutil

import pytest
import torch
from four_bit_folders import dense, packed, reconfigured, rewritten, theirs

from minilora import lora
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.lora.starts import packed_form
from minilora.qlora import QLinear, load_quantized
from minilora.qlora.base import load_base, own_code, recipe
from minilora.qlora.checkpoint import save_quantized
from minilora.qlora.stored import stored_codes, stored_types

pytest.importorskip("transformers")
pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

IDS = torch.tensor([[0, 10, 20, 30, 41, 52, 63, 74], [0, 9, 9, 3, 95, 2, 17, 8]])
KINDS = {
    "double": {},
    "single": {"bnb_4bit_use_double_quant": False},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
    "for FSDP in bf16": {"bnb_4bit_quant_storage": torch.bfloat16},
    "for FSDP in fp32": {"bnb_4bit_quant_storage": torch.float32},
    "for FSDP in fp16": {"bnb_4bit_quant_storage": torch.float16},
    "some layers dense": {
        "llm_int8_skip_modules": [
            "lm_head",
            "model.layers.1.mlp",
            "model.layers.0.self_attn.q_proj",
        ]
    },
    "the head too": {"llm_int8_skip_modules": []},
}


def logits(model):
    with torch.no_grad():
        found = model.eval()(IDS)
    return getattr(found, "logits", found)


def assert_same(folder, wanted, atol=1e-5):
    torch.testing.assert_close(logits(load_base(folder, "cpu")), wanted, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return dense(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def double(plain, tmp_path_factory):
    """A folder and its logits; copy it before changing it."""
    folder = packed(plain, tmp_path_factory.mktemp("double"))
    return folder, logits(theirs(folder))


@pytest.fixture
def copy(double, tmp_path):
    shutil.copytree(double[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_that_bitsandbytes_stores(plain, tmp_path, kind):
    folder = packed(plain, tmp_path / "four", **KINDS[kind])
    model = load_base(folder, "cpu")
    torch.testing.assert_close(logits(model), logits(theirs(folder)), rtol=0, atol=1e-5)
    left = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert len(left) == {"some layers dense": 5, "the head too": 0}.get(kind, 1)
    assert stored_codes(folder) == {"fp4" if kind == "fp4" else "nf4"}


@pytest.mark.parametrize(
    "family, fields",
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"attention_bias": True, "mlp_bias": True}),
        ("Llama", {"head_dim": 32}),
        ("Mistral", {"sliding_window": 4096}),
        ("Qwen2", {}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Qwen3", {"head_dim": 32}),
    ],
)
def test_every_family(tmp_path, family, fields):
    four = packed(dense(tmp_path / "dense", family, **fields), tmp_path / "four")
    model, wanted = load_base(four, "cpu"), logits(theirs(four))
    torch.testing.assert_close(logits(model), wanted, rtol=0, atol=1e-5)
    save_quantized(model, tmp_path / "ours")  # and transformers reads what we write
    torch.testing.assert_close(logits(theirs(tmp_path / "ours")), wanted, rtol=0, atol=1e-5)


def test_a_16_bit_model_and_a_folder_in_several_files(tmp_path):
    source = dense(tmp_path / "dense", dtype=torch.bfloat16)
    four = packed(source, tmp_path / "four", torch.bfloat16)
    wanted = logits(theirs(four))
    assert_same(four, wanted)
    assert set(stored_types(four).values()) == {torch.bfloat16}
    packed(source, tmp_path / "shards", torch.bfloat16, shard="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert_same(tmp_path / "shards", wanted)


ENTRIES = {
    "as Unsloth writes it": lambda entry: entry | {"llm_int8_skip_modules": None},
    "skipped modules as a text": lambda entry: entry | {"llm_int8_skip_modules": "null"},
    "only the private flag": lambda entry: {
        key: value for key, value in entry.items() if key != "load_in_4bit"
    },
    "only the flag": lambda entry: {"load_in_4bit": True},
    "no entry": lambda entry: None,
    "an empty entry": lambda entry: {},
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_weights_say_more_than_config_json(copy, double, entry):
    told = json.loads((copy / "config.json").read_text())["quantization_config"]
    assert_same(reconfigured(copy, quantization_config=ENTRIES[entry](told)), double[1])


RESHAPED = {
    "bytes in a row": lambda key, t: t.reshape(1, -1) if key.endswith("proj.weight") else t,
    "flat bytes": lambda key, t: t.reshape(-1) if key.endswith("proj.weight") else t,
    "scales in a column": lambda key, t: t.reshape(-1, 1) if key.endswith("absmax") else t,
    "scales in a row": lambda key, t: t.reshape(1, -1) if key.endswith("absmax") else t,
}


@pytest.mark.parametrize("shape", RESHAPED)
def test_every_shape_of_the_same_numbers(copy, double, shape):
    change = RESHAPED[shape]
    rewritten(copy, lambda state: {key: change(key, tensor) for key, tensor in state.items()})
    assert_same(copy, double[1])


def test_a_dense_folder_whose_entry_was_left_behind(plain, tmp_path):
    """As after a merge that kept config.json."""
    folder = shutil.copytree(plain, tmp_path / "merged")
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    reconfigured(folder, quantization_config=four)
    assert not stored_codes(folder)
    assert torch.equal(logits(load_base(folder, "cpu")), logits(Llama.from_pretrained(plain)))


def test_halves_in_what_is_dense(copy):
    def halves(state):
        return {
            key: tensor.half() if tensor.is_floating_point() and "quant" not in key
            and "absmax" not in key else tensor
            for key, tensor in state.items()
        }  # fmt: skip

    rewritten(copy, halves)
    assert_same(copy, logits(theirs(copy)))
    types = stored_types(copy)
    assert types["model.norm.weight"] == torch.float16
    assert types["model.layers.0.mlp.up_proj.weight"] == torch.float32


def nan_at(key, value=float("nan")):
    def change(state):
        state[key].view(-1)[0] = value

    return change


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "key, value",
    [
        ("model.norm.weight", float("nan")),
        ("model.embed_tokens.weight", float("inf")),
        ("lm_head.weight", -float("inf")),
        (UP + ".nested_absmax", float("nan")),
        (UP + ".nested_absmax", float("inf")),
        (UP + ".nested_quant_map", float("nan")),
        (UP + ".quant_map", float("nan")),
    ],
)
def test_nan_anywhere_is_refused_by_name(copy, key, value):
    with pytest.raises(MiniloraError, match=rf"model\.safetensors: {key} holds 1 NaN or inf"):
        load_base(rewritten(copy, nan_at(key, value)), "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_scales_that_are_not_nested(plain, tmp_path, value):
    single = packed(plain, tmp_path / "single", bnb_4bit_use_double_quant=False)
    with pytest.raises(MiniloraError, match=rf"{UP}\.absmax holds 1 NaN or inf"):
        load_base(rewritten(single, nan_at(UP + ".absmax", value)), "cpu")


@pytest.mark.parametrize(
    "key, name", [(UP + ".nested_absmax", UP), ("model.norm.weight", "model.norm.weight")]
)
def test_numbers_that_no_model_has(copy, key, name):
    """They are finite, and the logits would not be."""
    with pytest.raises(MiniloraError, match=rf"model\.safetensors: {name} reaches 1e\+38|3\.\d+e"):
        load_base(rewritten(copy, nan_at(key, 1e38)), "cpu")


def test_the_decoded_weight_is_rounded_as_bitsandbytes_rounds_it(tmp_path):
    """To the type that quant_state names, also where the products are in fp32, and again when the
    folder was written by us.
    """
    four = packed(
        dense(tmp_path / "dense", dtype=torch.bfloat16), tmp_path / "four", torch.bfloat16
    )
    model = load_quantized(four)
    layer, wanted = model.model.layers[0].mlp.up_proj, theirs(four).model.layers[0].mlp.up_proj
    assert layer.rounds_to == torch.bfloat16 and wanted.weight.dtype == torch.float32
    for found in (layer.decode(torch.float32), layer.dense_weight()):
        assert torch.equal(found, wanted.weight) and found.dtype == torch.float32
    save_quantized(model, tmp_path / "ours")
    again = load_quantized(tmp_path / "ours").model.layers[0].mlp.up_proj
    assert torch.equal(again.dense_weight(), wanted.weight)
    assert not torch.equal(layer.quantized.dequantize(torch.float32), wanted.weight)
    into = QLinear.from_linear(torch.nn.Linear(64, 128, bias=False))
    into.rounds_to = torch.float16
    into.load_state_dict(layer.state_dict())
    assert torch.equal(into.dense_weight(), wanted.weight)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop(UP + ".quant_map"), "model.safetensors lacks .*quant_map"),
        (lambda s: s.pop(UP), f"model.safetensors lacks {UP}, which"),
        (lambda s: s.pop(UP + ".absmax"), "lacks .*absmax"),
        (
            lambda s: s.pop(UP + ".quant_state.bitsandbytes__nf4"),
            rf"one {UP}.quant_state.… in .*model\.safetensors, found 0",
        ),
        (
            lambda s: s.update({UP + ".absmax": s[UP + ".absmax"][:-1]}),
            rf"model\.safetensors: {UP}\.absmax has 127 entries, shape \[128, 64\] in blocks of 64 "
            "needs 128",
        ),
        (lambda s: s.update({UP + ".absmax": s[UP + ".absmax"].view(torch.int8)}), "torch.int8"),
        (lambda s: s.update({UP: s[UP].long()}), "torch.int64 .* holds no packed codes"),
        (
            lambda s: s.update(
                {key.replace("up_proj", "down_proj"): s[key] for key in list(s) if UP in key}
            ),
            r"down_proj.weight is \[128, 64\] in the file, config.json asks for \[64, 128\]",
        ),
        (
            lambda s: s.update({key.replace(UP, "model.norm.weight"): s[key] for key in list(s)}),
            "holds a 4-bit model.norm.weight, which .* linear layer",
        ),
        (
            lambda s: s.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}),
            "unexpected model.layers.0.self_attn.q_proj.bias",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(copy, change, words):
    with pytest.raises(MiniloraError, match=words) as caught:
        load_base(rewritten(copy, change), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"vocab_size": 100}, r"(embed_tokens|lm_head)\.weight has shape \[96, 64\], config.json"),
        ({"hidden_size": 128}, r"config.json asks for \[\d+"),
        ({"num_hidden_layers": 3}, "asks for 3 layers"),
        ({"intermediate_size": 96}, r"\[\d+, \d+\] in the file, config.json asks for"),
        ({"attention_bias": True}, "lack .*bias"),
    ],
)
def test_sizes_of_another_model(copy, fields, words):
    with pytest.raises(MiniloraError, match=words):
        load_base(reconfigured(copy, **fields), "cpu")


@pytest.mark.parametrize("bias", ["nan", "short", "missing"])
def test_biases_beside_4_bits_are_checked(tmp_path, bias):
    four = packed(dense(tmp_path / "dense", attention_bias=True), tmp_path / "four")
    key = "model.layers.0.self_attn.q_proj.bias"
    change, words = {
        "nan": (nan_at(key), f"{key} holds 1 NaN"),
        "short": (lambda s: s.update({key: s[key][1:]}), rf"{key} has shape \[63\]"),
        "missing": (lambda s: s.pop(key), f"lack {key}"),
    }[bias]
    with pytest.raises(MiniloraError, match=words):
        load_base(rewritten(four, change), "cpu")


def test_a_loaded_model_has_let_go_of_its_file(copy):
    model = load_base(copy, "cpu")
    before = logits(model)
    file = copy / "model.safetensors"
    with open(file, "r+b") as opened:  # in place, as a sync tool writes
        opened.write(bytes(file.stat().st_size))
    assert torch.equal(logits(model), before)


def test_the_dense_loader_says_who_reads_it(double):
    with pytest.raises(MiniloraError, match="the weights are in 4 bits; load them by qlora"):
        Llama.from_pretrained(double[0])


def test_a_peft_adapter_over_a_4_bit_folder(double, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model = peft.get_peft_model(
        theirs(double[0]),
        peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    )
    model.save_pretrained(tmp_path / "adapter")
    wanted = logits(model)
    ours = load_base(double[0], "cpu")
    lora.load_adapter(ours, tmp_path / "adapter")
    torch.testing.assert_close(logits(ours), wanted, rtol=0, atol=1e-5)
    assert (wanted - double[1]).abs().max() > 0.1


def test_what_we_wrote_of_a_mixed_folder_transformers_reads(plain, tmp_path):
    four = packed(plain, tmp_path / "four", **KINDS["some layers dense"])
    model = load_quantized(four)
    save_quantized(model, tmp_path / "ours")
    entry = json.loads((tmp_path / "ours" / "config.json").read_text())["quantization_config"]
    assert "model.layers.0.self_attn.q_proj" in entry["llm_int8_skip_modules"]
    for read in (theirs, load_quantized):
        torch.testing.assert_close(
            logits(read(tmp_path / "ours")), logits(model), rtol=0, atol=1e-5
        )


def test_the_code_that_a_folder_has(double, plain, tmp_path):
    fp4 = packed(plain, tmp_path / "fp4", bnb_4bit_quant_type="fp4")
    assert own_code(str(double[0])) == "nf4" and own_code(str(fp4)) == "fp4"
    assert own_code(str(plain)) is own_code("nobody/nothing") is own_code(str(tmp_path)) is None
    model = load_base(fp4, "cpu", recipe("fp4"))
    forms = [packed_form(each) for each in model.modules() if isinstance(each, QLinear)]
    assert forms == [{"code": "fp4", "block": 64, "double": True}] * 14

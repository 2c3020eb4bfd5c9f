"""Adapter folders: what we write PEFT reads, what PEFT writes we read, and what does not fit is refused by name."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from minilora import lora
from minilora.errors import MiniloraError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = torch.tensor([[1, 5, 2, 9, 30], [3, 3, 0, 10, 47]])


def llama(seed=1, hidden=24, tied=False):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=48, hidden_size=hidden, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def scramble(parameters, seed=3):
    torch.manual_seed(seed)
    for p in parameters:
        p.data.copy_(p.data * 1.1 + 0.02 * torch.randn_like(p) if p.ndim == 1 else 0.3 * torch.randn_like(p))


def ours_with(config, seed=1):
    model = lora.add_adapter(llama(seed), config)
    scramble(lora.trainable_parameters(model))
    return model


CASES = {
    "lora": (lora.AdapterConfig(3, 7), dict(target_modules="all-linear")),
    "rslora": (lora.AdapterConfig(3, 7, ["q_proj", "v_proj"], variant="rslora"), dict(target_modules=["q_proj", "v_proj"], use_rslora=True)),
    "dora": (lora.AdapterConfig(3, 7, r".*mlp.*proj", variant="dora"), dict(target_modules=r".*mlp.*proj", use_dora=True)),
    "embedding": (lora.AdapterConfig(3, 7, ["embed_tokens", "lm_head", "q_proj"]), dict(target_modules=["embed_tokens", "lm_head", "q_proj"])),
    "embedding-dora": (
        lora.AdapterConfig(3, 7, ["embed_tokens", "q_proj"], variant="dora"),
        dict(target_modules=["embed_tokens", "q_proj"], use_dora=True),
    ),
    "full": (
        lora.AdapterConfig(3, 7, ["q_proj"], full_modules=["lm_head", "norm"]),
        dict(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    ),
    "patterns": (
        lora.AdapterConfig(3, 7, ["q_proj", "up_proj"], rank_pattern={"q_proj": 5}, alpha_pattern={"layers.1.mlp.up_proj": 2}, dropout=0.1),
        dict(target_modules=["q_proj", "up_proj"], rank_pattern={"q_proj": 5}, alpha_pattern={"layers.1.mlp.up_proj": 2}, lora_dropout=0.1),
    ),
    "pissa": (lora.AdapterConfig(3, 7, ["q_proj"], init="pissa"), dict(target_modules=["q_proj"], init_lora_weights="pissa")),
}


@pytest.mark.parametrize("case", CASES)
def test_saved_by_us_loads_in_peft(case, tmp_path):
    model = ours_with(CASES[case][0])
    lora.save_adapter(model, tmp_path / "adapter")
    twin = peft.PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    close = torch.testing.assert_close if "dora" in case else lambda a, b, **_: torch.equal(a, b) or pytest.fail("not equal")
    close(model(IDS).logits, twin(IDS).logits, rtol=1e-5, atol=1e-6)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert not any("default" in key for key in file.keys())


@pytest.mark.parametrize("case", CASES)
def test_saved_by_peft_loads_here_and_we_write_the_same_tensors(case, tmp_path):
    twin = peft.get_peft_model(llama(), peft.LoraConfig(r=3, lora_alpha=7, **CASES[case][1]))
    scramble(p for p in twin.parameters() if p.requires_grad)
    twin.eval().save_pretrained(tmp_path / "theirs")
    model = lora.load_adapter(llama(), tmp_path / "theirs")
    torch.testing.assert_close(model(IDS).logits, twin(IDS).logits, rtol=1e-5, atol=1e-6)
    if "dora" not in case:
        assert torch.equal(model(IDS).logits, twin(IDS).logits)
    lora.save_adapter(model, tmp_path / "ours")
    theirs, ours = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    theirs = {key: value for key, value in theirs.items() if "base_layer" not in key}
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
    theirs, ours = (peft.PeftConfig.from_pretrained(tmp_path / who).to_dict() for who in ("theirs", "ours"))
    for field in ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern", "peft_type"):
        assert theirs[field] == ours[field], field


def test_pissa_written_as_plain_lora_works_on_the_untouched_base(tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7, ["q_proj"], init="pissa", variant="rslora"))
    lora.save_adapter(model, tmp_path, as_lora=True)
    for other in (lora.load_adapter(llama(), tmp_path), peft.PeftModel.from_pretrained(llama(), tmp_path)):
        torch.testing.assert_close(other(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


def test_several_adapters_stand_in_subfolders_as_peft_puts_them(tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7))
    lora.add_lora(model, 2, 5, ["q_proj"], name="other")
    scramble(lora.trainable_parameters(model), 9)
    lora.save_adapters(model, tmp_path)
    assert (tmp_path / "other" / "adapter_config.json").is_file()
    twin = peft.PeftModel.from_pretrained(llama(), tmp_path)
    twin.load_adapter(tmp_path / "other", "other")
    twin.set_adapter("other")
    assert torch.equal(twin(IDS).logits, model(IDS).logits)
    again = lora.load_adapter(lora.load_adapter(llama(), tmp_path), tmp_path / "other", "other")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    only = tmp_path / "only"
    lora.save_adapter(model, only / "other", "other")
    assert torch.equal(lora.load_adapter(llama(), only, "other")(IDS).logits, model(IDS).logits)
    with pytest.raises(MiniloraError, match="subfolders other"):
        lora.load_adapter(llama(), only)


def test_our_llama_and_transformers_share_adapters(tmp_path):
    from minilora.llama import Llama

    llama().save_pretrained(tmp_path / "base")
    ours = Llama.from_pretrained(tmp_path / "base").eval()
    lora.add_lora(ours, 3, 7)
    scramble(lora.trainable_parameters(ours))
    lora.save_adapter(ours, tmp_path / "adapter")
    twin = peft.PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    torch.testing.assert_close(ours(IDS), twin(IDS).logits, rtol=1e-4, atol=1e-5)
    again = lora.load_adapter(llama(), tmp_path / "adapter")
    torch.testing.assert_close(ours(IDS), again(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_merging_into_a_tied_model_unties_it(tmp_path, ours, target):
    from minilora.llama import Llama

    llama(tied=True).save_pretrained(tmp_path / "base")
    load = Llama.from_pretrained if ours else transformers.LlamaForCausalLM.from_pretrained
    if ours and target == "lm_head":
        pytest.skip("our tied Llama has no separate head")
    model = lora.add_lora(load(tmp_path / "base").eval(), 3, 7, [target, "q_proj"])
    scramble(lora.trainable_parameters(model))
    logits = (lambda m: m(IDS)) if ours else (lambda m: m(IDS).logits)
    before = logits(model)
    lora.merge(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    lora.unload(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(load(tmp_path / "merged").eval()), before, rtol=1e-4, atol=1e-5)


def rewrite(folder, change, metadata=None):
    file = folder / "adapter_model.safetensors"
    with safe_open(file, "pt") as source:
        metadata = source.metadata() if metadata is None else metadata
    save_file(change(load_file(file)), file, metadata=metadata)


Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def without_one(state):
    return {key: value for key, value in state.items() if key != Q0}


def with_one_more(state):
    return state | {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.zeros(3, 24)}


@pytest.mark.parametrize(
    "change, message",
    [
        (without_one, rf"lacks {Q0}"),
        (with_one_more, r"holds base_model\.model\.model\.layers\.7\.self_attn\.q_proj\.lora_A\.weight"),
        (lambda state: state | {Q0: torch.zeros(4, 24)}, rf"{Q0} has shape \(4, 24\), the model needs \(3, 24\)"),
        (lambda state: state | {Q0: torch.full((3, 24), torch.nan)}, rf"{Q0} holds NaN"),
        (lambda state: state | {Q0: torch.zeros(3, 24, dtype=torch.int32)}, rf"{Q0} holds NaN, infinity or no floating"),
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


def test_pefts_copy_of_the_base_embedding_is_compared(tmp_path):
    twin = peft.get_peft_model(llama(), peft.LoraConfig(r=3, target_modules=["embed_tokens"]))
    twin.save_pretrained(tmp_path)
    with pytest.raises(MiniloraError, match=r"embed_tokens\.base_layer\.weight differs"):
        lora.load_adapter(llama(seed=2), tmp_path)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"layers_to_transform": [1]}, "layers_to_transform"),
        ({"target_modules": ["nothing"]}, "match no module"),
        ({"r": 0}, "rank is 0"),
        ({"r": "8"}, "rank is '8'"),
        ({"init_lora_weights": "olora"}, "olora"),
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
    settings.write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 7, "target_modules": "all-linear"}')
    lora.load_adapter(llama(), tmp_path)


def test_nan_is_not_saved(tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7))
    lora.trainable_parameters(model)[0].data[0, 0] = float("nan")
    with pytest.raises(MiniloraError, match="NaN"):
        lora.save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_loading_into_an_adapter_that_is_there_replaces_its_weights(tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7))
    lora.save_adapter(model, tmp_path)
    before = model(IDS).logits
    scramble(lora.trainable_parameters(model), 11)
    assert not torch.equal(model(IDS).logits, before)
    assert torch.equal(lora.load_adapter(model, tmp_path)(IDS).logits, before)
    narrower = lora.add_lora(llama(), 6, 14)
    with pytest.raises(MiniloraError, match="has shape"):
        lora.load_adapter(narrower, tmp_path)
    other_scale = lora.add_lora(llama(), 3, 9)
    with pytest.raises(MiniloraError, match="alpha"):
        lora.load_adapter(other_scale, tmp_path)

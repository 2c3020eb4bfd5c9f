"""Adapter folders: what we write PEFT reads, and what PEFT writes we read."""

import importlib.util
import json

import pytest
import torch
from adapter_folders import IDS, llama, ours_with, scramble
from safetensors import safe_open
from safetensors.torch import load_file

from minilora import lora
from minilora.errors import MiniloraError, MiniloraWarning
from minilora.lora.peft_config import from_peft

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


CASES = {
    "lora": (lora.AdapterConfig(3, 7), dict(target_modules="all-linear")),
    "rslora": (
        lora.AdapterConfig(3, 7, ["q_proj", "v_proj"], variant="rslora"),
        dict(target_modules=["q_proj", "v_proj"], use_rslora=True),
    ),
    "dora": (
        lora.AdapterConfig(3, 7, r".*mlp.*proj", variant="dora"),
        dict(target_modules=r".*mlp.*proj", use_dora=True),
    ),
    "embedding": (
        lora.AdapterConfig(3, 7, ["embed_tokens", "lm_head", "q_proj"]),
        dict(target_modules=["embed_tokens", "lm_head", "q_proj"]),
    ),
    "embedding-dora": (
        lora.AdapterConfig(3, 7, ["embed_tokens", "q_proj"], variant="dora"),
        dict(target_modules=["embed_tokens", "q_proj"], use_dora=True),
    ),
    "full": (
        lora.AdapterConfig(3, 7, ["q_proj"], full_modules=["lm_head", "norm"]),
        dict(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
    ),
    "patterns": (
        lora.AdapterConfig(
            3,
            7,
            ["q_proj", "up_proj"],
            rank_pattern={"q_proj": 5},
            alpha_pattern={"layers.1.mlp.up_proj": 2},
            dropout=0.1,
        ),
        dict(
            target_modules=["q_proj", "up_proj"],
            rank_pattern={"q_proj": 5},
            alpha_pattern={"layers.1.mlp.up_proj": 2},
            lora_dropout=0.1,
        ),
    ),
    "pissa": (
        lora.AdapterConfig(3, 7, ["q_proj"], init="pissa"),
        dict(target_modules=["q_proj"], init_lora_weights="pissa"),
    ),
    "loftq": (
        lora.AdapterConfig(3, 7, ["q_proj"], init="loftq"),
        dict(
            target_modules=["q_proj"],
            init_lora_weights="loftq",
            loftq_config={"loftq_bits": 4, "loftq_iter": 1},
        ),
    ),
}


@pytest.fixture(autouse=True)
def loftq_on_a_cpu(monkeypatch):
    """PEFT's LoftQ asks for scipy, which it no longer uses, and quantizes on "cuda" even where
    there is none; its steps are the same on a CPU.
    """
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: True if name == "scipy" else find(name, *more),
    )
    pack, move = pytest.importorskip("bitsandbytes").nn.Params4bit, torch.Tensor.to
    pack_to = pack.to
    monkeypatch.setattr(pack, "to", lambda self, device: pack_to(self, "cpu"))

    def to(self, *more, **named):
        return move(
            self, *more, **(named | {"device": "cpu"} if named.get("device") == "cuda" else named)
        )

    monkeypatch.setattr(torch.Tensor, "to", to)


@pytest.mark.parametrize("case", CASES)
def test_saved_by_us_loads_in_peft(case, tmp_path):
    model = ours_with(CASES[case][0])
    lora.save_adapter(model, tmp_path / "adapter")
    twin = peft.PeftModel.from_pretrained(llama(), tmp_path / "adapter")
    close = (
        torch.testing.assert_close
        if "dora" in case
        else lambda a, b, **_: torch.equal(a, b) or pytest.fail("not equal")
    )
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
    theirs, ours = (
        load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")
    )
    theirs = {key: value for key, value in theirs.items() if "base_layer" not in key}
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], ours[key]) for key in ours)
    theirs, ours = (
        peft.PeftConfig.from_pretrained(tmp_path / who).to_dict() for who in ("theirs", "ours")
    )
    for field in (
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "use_dora",
        "init_lora_weights",
        "rank_pattern",
        "alpha_pattern",
        "peft_type",
    ):
        assert theirs[field] == ours[field], field


def test_what_a_file_leaves_out_is_as_peft_has_it():
    defaults = peft.LoraConfig()
    config = from_peft({"peft_type": "LORA", "target_modules": ["q_proj"]}, "here")
    assert (config.rank, config.alpha, config.dropout, config.rslora, config.dora) == (
        defaults.r,
        defaults.lora_alpha,
        defaults.lora_dropout,
        defaults.use_rslora,
        defaults.use_dora,
    )
    assert (config.rank_pattern, config.alpha_pattern, config.full_modules) == ({}, {}, [])
    assert config.init == "kaiming" and defaults.init_lora_weights is True


def test_pissa_written_as_plain_lora_works_on_the_untouched_base(tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7, ["q_proj"], init="pissa", variant="rslora"))
    lora.save_adapter(model, tmp_path, as_lora=True)
    for other in (
        lora.load_adapter(llama(), tmp_path),
        peft.PeftModel.from_pretrained(llama(), tmp_path),
    ):
        torch.testing.assert_close(other(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)


def test_loftqs_start_is_pefts():
    twin = peft.get_peft_model(llama(), peft.LoraConfig(r=3, lora_alpha=3, **CASES["loftq"][1]))
    ours = lora.add_adapter(llama(), lora.AdapterConfig(3, 3, ["q_proj"], init="loftq"))
    torch.testing.assert_close(ours(IDS).logits, twin(IDS).logits, rtol=1e-4, atol=1e-5)
    theirs, mine = (
        twin.base_model.model.model.layers[1].self_attn.q_proj,
        ours.model.layers[1].self_attn.q_proj,
    )
    assert torch.equal(theirs.base_layer.weight, mine.base.weight)
    torch.testing.assert_close(
        theirs.get_delta_weight("default"), mine.delta("default"), rtol=1e-4, atol=1e-6
    )


INITS = ("kaiming", "gaussian", "random", "pissa", "pissa_niter_4", "loftq", "loftq_niter_3")


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("init", INITS)
def test_whatever_is_saved_answers_as_before_when_it_is_read(init, variant, tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7, init=init, variant=variant))
    if (init, variant) == ("pissa_niter_4", "dora"):
        with pytest.raises(MiniloraError, match="DoRA"):
            lora.save_adapter(model, tmp_path)
        return
    lora.save_adapter(model, tmp_path / "one")
    again = lora.load_adapter(llama(), tmp_path / "one")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)
    lora.save_adapter(again, tmp_path / "two")
    third = lora.load_adapter(llama(), tmp_path / "two")
    assert torch.equal(third(IDS).logits, again(IDS).logits)


def packed(double=True, code="nf4"):
    from minilora.qlora import quantize_model

    base = llama()
    weights = lora.linear_weights(base)
    return quantize_model(base, code, double=double), weights


@pytest.mark.parametrize("double", [True, False])
def test_loftq_over_a_quantized_base_repairs_it_and_is_read_over_that_base_alone(double, tmp_path):
    base, weights = packed(double)
    broken = [
        torch.linalg.norm(weights[path] - base.get_submodule(path).dense_weight())
        for path in weights
        if path != "lm_head"
    ]
    model = lora.add_adapter(base, lora.AdapterConfig(3, 7, init="loftq"), weights=weights)
    for path, before in zip((path for path in weights if path != "lm_head"), broken):
        layer = model.get_submodule(path)
        assert (
            torch.linalg.norm(weights[path] - layer.dense() - layer.delta("default"))
            < 0.95 * before
        )
    scramble(lora.trainable_parameters(model))
    lora.save_adapter(model, tmp_path / "one")
    assert (
        json.loads((tmp_path / "one" / "adapter_config.json").read_text())["init_lora_weights"]
        is True
    )
    again = lora.load_adapter(packed(double)[0], tmp_path / "one")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    lora.save_adapter(again, tmp_path / "two")
    for folder in ("one", "two"):
        for wrong in (llama(), packed(not double)[0], packed(double, "fp4")[0]):
            with pytest.raises(
                MiniloraError,
                match=f"repairs .LoftQ. a base in nf4 blocks of 64, double={double}"
                ".*quantize it so",
            ):
                lora.load_adapter(wrong, tmp_path / folder)
            assert not lora.adapters(wrong)
    with pytest.raises(MiniloraError, match="lm_head"):
        lora.add_adapter(
            packed()[0], lora.AdapterConfig(3, 7, ["lm_head"], init="loftq"), weights=weights
        )


def test_loftq_begun_in_floating_point_goes_on_its_own_packed_base_and_no_other(tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7, init="loftq"))
    lora.save_adapter(model, tmp_path)
    again = lora.load_adapter(packed(double=False)[0], tmp_path)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(MiniloraError, match="double=False.*double=True.*--code none"):
        lora.load_adapter(packed(double=True)[0], tmp_path)
    for init in ("kaiming", "pissa"):
        with pytest.raises(MiniloraError, match="began as loftq"):
            lora.load_adapter(
                lora.add_adapter(llama(), lora.AdapterConfig(3, 7, init=init)), tmp_path
            )


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
    model = lora.add_lora(load(tmp_path / "base").eval(), 3, 7, [target, "q_proj"])
    scramble(lora.trainable_parameters(model))
    logits = (lambda m: m(IDS)) if ours else (lambda m: m(IDS).logits)
    before = logits(model)
    lora.merge(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    lora.unload(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        logits(load(tmp_path / "merged").eval()), before, rtol=1e-4, atol=1e-5
    )


def test_pefts_copy_of_the_base_embedding_takes_its_place_as_in_peft(tmp_path):
    twin = peft.get_peft_model(llama(), peft.LoraConfig(r=3, target_modules=["embed_tokens"]))
    twin.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(llama(seed=2), tmp_path)
    with pytest.warns(MiniloraWarning, match=r"brings its own model\.embed_tokens\.weight"):
        model = lora.load_adapter(llama(seed=2), tmp_path)
    assert torch.equal(model(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora", "rsdora"])
def test_every_variant_is_read_as_it_was_written(variant, tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7, variant=variant))
    lora.save_adapter(model, tmp_path)
    again = lora.load_adapter(llama(), tmp_path)
    assert lora.adapters(again)["default"].variant == variant
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_nan_is_not_saved(tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7))
    lora.trainable_parameters(model)[0].data[0, 0] = float("nan")
    with pytest.raises(MiniloraError, match="NaN"):
        lora.save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_loading_into_a_silent_adapter_lets_it_speak_and_a_merged_model_refuses(tmp_path):
    model = ours_with(lora.AdapterConfig(3, 7))
    lora.save_adapter(model, tmp_path)
    before = model(IDS).logits
    lora.add_lora(model, 2, 4, name="other")
    assert lora.active_adapters(lora.load_adapter(model, tmp_path)) == ["default"] and torch.equal(
        model(IDS).logits, before
    )
    lora.merge(model)
    with pytest.raises(MiniloraError, match="unmerge"):
        lora.load_adapter(model, tmp_path)


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

"""Mistral, Qwen2 and Qwen3 against transformers' own classes: logits, gradients, generation, files,
adapters, 4 bits.
"""

import json

import pytest
import torch
import torch.nn.functional as F
from family_twins import KINDS, SMALL, TOLERANCE, YARN, T, difference, family_twins, their_model
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_twins import tokens

from minilora import lora, qlora
from minilora.llama import Cache, Config, Llama, Stepper
from minilora.llama.one_token import fits
from minilora.qlora.checkpoint import load_quantized, save_quantized

pytestmark = pytest.mark.parity  # beside the library that people use

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_transformers(kind):
    theirs, ours = family_twins(kind)
    for length in (1, 5, T):
        assert difference(theirs, ours, tokens(ours, 2, length)) <= TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_padded_rows_equal_transformers(kind, side):
    theirs, ours = family_twins(kind)
    ids, mask = tokens(ours, 3, T), torch.ones(3, T, dtype=torch.long)
    mask[1, :5] = 0
    mask[2, :16] = 0
    mask = mask if side == "left" else mask.flip(1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        mine = ours(ids, mask)
        reference = theirs(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.isfinite(mine).all()
    assert (mine - reference)[mask.bool()].abs().max() <= TOLERANCE


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_transformers_with_and_without_recomputing(kind, frozen):
    """frozen: norms do not train, so that their backward is the one written by hand."""
    theirs, ours = family_twins(kind)
    ids = tokens(ours, 2, T)
    for model in (theirs, ours):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not (frozen and "norm" in name))
    theirs(ids, labels=ids).loss.backward()
    for ours.gradient_checkpointing in (False, True):
        ours.zero_grad()
        F.cross_entropy(ours(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        named = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad:
                assert torch.allclose(parameter.grad, named[name].grad, atol=1e-5), name


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_transformers(kind, padded):
    theirs, ours = family_twins(kind)
    ids, mask = tokens(ours, 2, 7), torch.ones(2, 7, dtype=torch.long)
    if padded:
        mask[0, :3] = 0
    options = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
    wanted = theirs.generate(ids, attention_mask=mask, max_new_tokens=12, **options)
    assert torch.equal(ours.generate(ids, 12, attention_mask=mask, stop=[]), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_behind_a_cache_equal_all_at_once(kind):
    """In pieces through the general forward, and one by one through the fast step where it fits."""
    _, ours = family_twins(kind)
    ids = tokens(ours, 2, T)
    with torch.no_grad():
        wanted, cache = ours.model(ids), Cache(T)
        pieces = [ours.model(part, cache=cache) for part in ids.split([4, 9, 1, 9], dim=1)]
        assert (torch.cat(pieces, dim=1) - wanted).abs().max() <= TOLERANCE
        short = [each for each in ours.model.windows if each is not None and each < T]
        assert fits(ours.model, T) == (not short)
        if not short:
            cache = Cache(T)
            ours.model(ids[:, :4], cache=cache)
            step = Stepper(ours.model, cache)
            steps = [step(ids[:, at]) for at in range(4, T)]
            assert (torch.cat(steps, dim=1) - wanted[:, 4:]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral, a window"])
def test_bf16_is_as_near_to_fp32_as_transformers_is(kind):
    theirs, ours = family_twins(kind)
    ids = tokens(ours, 2, T)
    with torch.no_grad():
        exact = ours(ids)
        off = (ours.bfloat16()(ids) - exact).abs().max()
        assert off <= 1.5 * (theirs.bfloat16()(ids).logits - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_folders_go_both_ways_and_keep_their_family(tmp_path, kind, dtype):
    their_model(KINDS[kind]).to(dtype).save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    ours = Llama.from_pretrained(tmp_path / "theirs", dtype=dtype)
    ids = tokens(ours, 2, T)
    ours.save_pretrained(tmp_path / "ours")
    back, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert type(back) is type(theirs) and back.dtype == dtype
    assert not told["missing_keys"] and not told["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(back(ids).logits, theirs(ids).logits)
    fields = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert fields["architectures"] == [type(theirs).__name__]
    assert fields["model_type"] == theirs.config.model_type
    assert Llama.from_pretrained(tmp_path / "ours").config == ours.config


def test_a_llama_is_written_as_before(tmp_path):
    Llama(Config(**SMALL)).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    foreign = {"sliding_window", "layer_types", "use_sliding_window", "max_window_layers"}
    assert fields["architectures"] == ["LlamaForCausalLM"] and not foreign & set(fields)


@st.composite
def shapes(draw):
    """Fields of config.json: any heads, any window, any switch of a family."""
    groups, each = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    layers = draw(st.integers(1, 3))
    family = draw(st.sampled_from(["qwen2", "qwen3", "mistral", "llama"]))
    fields = dict(
        model_type=family,
        num_attention_heads=groups * each,
        num_key_value_heads=groups,
        hidden_size=groups * each * draw(st.sampled_from([4, 6])),
        head_dim=draw(st.sampled_from([2, 4, 10])),
        num_hidden_layers=layers,
        tie_word_embeddings=draw(st.booleans()),
        rope_theta=draw(st.sampled_from([100.0, 1e6])),
    )
    if draw(st.booleans()):
        fields["rope_scaling"] = YARN | {"truncate": draw(st.booleans())}
    if family != "llama" and draw(st.booleans()):
        fields |= dict(sliding_window=draw(st.integers(1, 12)), use_sliding_window=True)
    if family.startswith("qwen"):
        fields["max_window_layers"] = draw(st.integers(0, 3))
    if family in ("qwen3", "llama"):
        fields["attention_bias"] = draw(st.booleans())
    return fields


@settings(max_examples=25)
@given(shapes(), st.integers(1, 15))
def test_any_shape_equals_transformers(fields, length):
    theirs = their_model(fields)
    ours = Llama(Config.from_hf(SMALL | fields)).eval()
    state = theirs.state_dict()
    if fields["tie_word_embeddings"]:
        del state["lm_head.weight"]
    ours.load_state_dict(state)
    assert difference(theirs, ours, tokens(ours, 2, length)) <= TOLERANCE


# rope


# published models


# what is no Llama


# adapters and 4 bits


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral, a window"])
def test_an_adapter_is_merged_without_changing_the_logits(tmp_path, kind):
    theirs, ours = family_twins(kind)
    ids = tokens(ours, 2, T)
    lora.add_lora(ours, rank=3, alpha=6, init="random")
    with torch.no_grad():
        adapted = ours(ids)
        lora.save_adapter(ours, tmp_path / "adapter")
        peft = pytest.importorskip("peft")
        reference = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter")(ids).logits
        assert (adapted - reference).abs().max() <= TOLERANCE
        assert (adapted - theirs(ids).logits).abs().max() <= TOLERANCE  # PEFT adapts in place
        lora.merge(ours)
        assert (ours(ids) - adapted).abs().max() <= TOLERANCE * adapted.abs().max()


@pytest.mark.parametrize("kind", ["qwen2", "qwen3, biased, tied", "mistral, a window"])
def test_four_bits_leave_norms_and_biases_alone_and_go_through_a_folder(tmp_path, kind):
    _, ours = family_twins(kind, hidden_size=64, intermediate_size=64)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    qlora.quantize_model(ours)
    packed = [module for module in ours.modules() if type(module).__name__ == "QLinear"]
    assert len(packed) == 7 * ours.config.num_hidden_layers
    after = ours.state_dict()
    for name, tensor in before.items():
        if "norm" in name or name.endswith("bias"):
            assert torch.equal(after[name], tensor), name
    ids = tokens(ours, 2, T)
    save_quantized(ours, tmp_path)
    again = load_quantized(tmp_path)
    assert again.config == ours.config
    with torch.no_grad():
        assert torch.equal(again(ids), ours(ids))

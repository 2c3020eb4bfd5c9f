"""Weights of the base in an adapter's file: equal ones are let go, others take their place as in
PEFT, misfits are refused with what to do.
"""

import json
import warnings

import pytest
import torch
from little_llamas import IDS, llama, our_llama, ours, theirs, write_adapter
from safetensors.torch import load_file, save_file

from minilora import lora
from minilora.errors import MiniloraError, MiniloraWarning

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity

FILE = "adapter_model.safetensors"
TOOK = "brings its own .*took the place"
HEAD, TABLE = "base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"


def quietly(folder, **base):
    with warnings.catch_warnings():
        warnings.simplefilter("error", MiniloraWarning)
        return ours(folder, **base)


def change(folder, changed):
    state = load_file(folder / FILE)
    save_file(changed(state), folder / FILE, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "settings", [dict(), dict(target_modules=["embed_tokens", "q_proj"])], ids=["plain", "table"]
)
def test_equal_copies_are_let_go(tmp_path, tied, settings):
    write_adapter(llama(tied=tied), tmp_path, saving=dict(save_embedding_layers=True), **settings)
    assert any("embed_tokens" in key and "lora" not in key for key in load_file(tmp_path / FILE))
    torch.testing.assert_close(
        quietly(tmp_path, tied=tied), theirs(tmp_path, tied=tied), rtol=0, atol=0
    )
    model = lora.load_adapter(our_llama(tied=tied), tmp_path)
    lora.save_adapter(model, tmp_path / "again")
    assert all("lora" in key for key in load_file(tmp_path / "again" / FILE))


def test_a_resized_vocabulary_is_read_on_its_resized_base(tmp_path):
    """PEFT's own choice (save_embedding_layers="auto"): the config names the base as it was."""
    small, large = tmp_path / "small", tmp_path / "large"
    llama().save_pretrained(small)
    model = llama()
    model.resize_token_embeddings(56)
    model.save_pretrained(large)
    write_adapter(model, tmp_path / "adapter", named=small)
    assert HEAD in load_file(tmp_path / "adapter" / FILE)

    from minilora.llama import Llama

    found = quietly(tmp_path / "adapter", model=Llama.from_pretrained(large))
    twin = peft.PeftModel.from_pretrained(
        type(model).from_pretrained(large), tmp_path / "adapter"
    ).eval()
    assert torch.equal(found, twin(IDS).logits)
    other = our_llama()
    with pytest.raises(MiniloraError, match=r"\(56, 24\).*resize_token_embeddings\(56\)"):
        lora.load_adapter(other, tmp_path / "adapter")
    assert not lora.adapted_layers(other)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("ends", ["head", "table", "both"])
def test_differing_copies_take_their_place_and_stay_with_the_adapter(tmp_path, tied, ends):
    write_adapter(llama(tied=tied), tmp_path, saving=dict(save_embedding_layers=True))
    torch.manual_seed(5)

    def other(state):
        for key, when in ((HEAD, "head"), (TABLE, "table")):
            if ends in (when, "both"):
                state[key] = torch.randn(48, 24)
        return state

    change(tmp_path, other)
    model = our_llama(tied=tied)
    # of a tied pair, which is one, the head's copy comes last
    undone = tied and ends == "table"
    with warnings.catch_warnings() if undone else pytest.warns(MiniloraWarning, match=TOOK):
        lora.load_adapter(model, tmp_path)
    wanted = theirs(tmp_path, tied=tied)
    assert torch.equal(model(IDS), wanted)
    lora.save_adapter(model, tmp_path / "again")
    with warnings.catch_warnings() if undone else pytest.warns(MiniloraWarning, match=TOOK):
        assert torch.equal(ours(tmp_path / "again", tied=tied), wanted)
    assert torch.equal(theirs(tmp_path / "again", tied=tied), wanted)
    torch.testing.assert_close(lora.unload(lora.merge(model))(IDS), wanted, rtol=0, atol=1e-5)


def test_a_copy_in_16_bits_is_taken_as_peft_takes_it(tmp_path):
    write_adapter(llama(), tmp_path, saving=dict(save_embedding_layers=True))
    change(tmp_path, lambda state: {key: value.bfloat16() for key, value in state.items()})
    assert torch.equal(quietly(tmp_path), theirs(tmp_path))


def test_the_base_is_not_changed_under_another_adapter(tmp_path):
    write_adapter(llama(), tmp_path / "a")
    write_adapter(llama(), tmp_path / "b", saving=dict(save_embedding_layers=True))
    model = lora.load_adapter(our_llama(), tmp_path / "a", "a")
    lora.load_adapter(model, tmp_path / "b", "b")  # equal copies change nothing
    change(tmp_path / "b", lambda state: state | {HEAD: torch.ones(48, 24)})
    before = model(IDS)
    with pytest.raises(MiniloraError, match="lm_head.weight, which would change the base under"):
        lora.load_adapter(model, tmp_path / "b", "c")
    assert torch.equal(model(IDS), before)


@pytest.mark.parametrize(
    "key, value, message",
    [
        (HEAD, torch.full((48, 24), torch.nan), "holds NaN"),
        (HEAD, torch.ones(48, 24, dtype=torch.int32), "no floating-point"),
        ("base_model.model.model.norm.weight", torch.ones(25), r"\(25,\).*made for"),
        # PEFT would look for neither of these, and would go on without them
        ("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", "twice", "no place"),
        ("base_model.model.model.layers.0.self_attn.q_proj.weight", "twice", "no place"),
    ],
)
def test_a_copy_that_cannot_be_is_refused(tmp_path, key, value, message):
    write_adapter(llama(), tmp_path)
    path = key.removeprefix("base_model.model.").replace(".base_layer", "")
    value = 2 * llama().get_parameter(path).detach() if isinstance(value, str) else value
    change(tmp_path, lambda state: state | {key: value})
    model = our_llama()
    with pytest.raises(MiniloraError, match=message):
        lora.load_adapter(model, tmp_path)
    assert not lora.adapted_layers(model)


def test_a_norm_that_was_trained_beside_is_taken_as_by_peft(tmp_path):
    write_adapter(llama(), tmp_path)
    norm = {"base_model.model.model.norm.weight": torch.linspace(0.5, 2, 24)}
    change(tmp_path, lambda state: state | norm)
    with pytest.warns(MiniloraWarning, match="model.norm.weight"):
        assert torch.equal(ours(tmp_path), theirs(tmp_path))


def test_an_edited_alpha_counts_and_is_said_once(tmp_path):
    model = lora.add_lora(our_llama(), 4, 8, ["q_proj"])
    for parameter in lora.trainable_parameters(model):
        torch.nn.init.normal_(parameter)
    lora.save_adapter(model, tmp_path)
    quietly(tmp_path)
    file = tmp_path / "adapter_config.json"
    for fields, told in (
        ({"lora_alpha": 16}, "lora_alpha 8;"),
        ({"use_rslora": True}, "use_rslora False;"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern {};"),
    ):
        whole = file.read_text()
        file.write_text(json.dumps(json.loads(whole) | fields))
        with pytest.warns(MiniloraWarning, match=f"was edited.*saved with {told}") as caught:
            found = ours(tmp_path)
        assert len(caught) == 1
        torch.testing.assert_close(found, theirs(tmp_path), rtol=0, atol=1e-5)
        file.write_text(whole)

"""The walk that replaces linear layers: all or none, ties kept, the head and embeddings left alone;
in 4 bits and in 8, on our Llama and on transformers' models.
"""

import copy

import pytest
import torch
from llama_sizes import sizes
from small_lora import IDS, tiny
from torch import nn

from minilora import lora
from minilora.errors import MiniloraError
from minilora.qlora import Int8Linear, QLinear, quantize_model, quantize_model_int8
from minilora.qlora.replace import replace_linears

WAYS = {"4-bit": (quantize_model, QLinear), "int8": (quantize_model_int8, Int8Linear)}


def hugging_face(tied=False):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **sizes(vocab=40, hidden=64, ffn=128, layers=2, heads=4, kv_heads=2),
            tie_word_embeddings=tied,
        )
    ).eval()


MAKERS = {"ours": tiny, "transformers": hugging_face}


def each_way(test):
    test = pytest.mark.parametrize("quantized, kind", WAYS.values(), ids=WAYS)(test)
    return pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)(test)


def logits(model):
    out = model(IDS)
    return getattr(out, "logits", out)


@each_way
def test_an_error_in_the_middle_leaves_the_model_as_it_was(make, quantized, kind):
    model = make()
    model.model.layers[1].mlp.gate_proj.weight.data[3, 5] = float("nan")
    before = list(model.named_modules()), [p.requires_grad for p in model.parameters()]
    with pytest.raises(MiniloraError):
        quantized(model)
    assert list(model.named_modules()) == before[0]
    assert [p.requires_grad for p in model.parameters()] == before[1]


@each_way
def test_a_layer_that_stands_in_two_places_still_does(make, quantized, kind):
    model = make()
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    second.up_proj = first.up_proj
    parameters = sum(isinstance(module, nn.Linear) for module in model.model.modules())
    quantized(model)
    assert first.up_proj is second.up_proj and isinstance(first.up_proj, kind)
    assert sum(isinstance(module, kind) for module in model.modules()) == parameters == 13
    assert logits(model).isfinite().all()


@each_way
@pytest.mark.parametrize("tied", [False, True])
def test_the_head_and_the_embedding_stay(make, quantized, kind, tied):
    model = make(tied)
    head, table = model.lm_head, model.model.embed_tokens.weight
    bits = table.detach().clone()
    quantized(model)
    assert model.lm_head is head and (head is None or type(head) is nn.Linear)
    assert model.model.embed_tokens.weight is table and torch.equal(table, bits)
    if tied and head is not None:
        assert head.weight is table
    assert {type(m) for m in model.model.modules() if hasattr(m, "in_features")} == {kind}


class Small(nn.Module):
    """A head under one of the two usual names, or one that only the model knows to be it."""

    def __init__(self, name, says=False):
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.inner = nn.Linear(8, 8)
        setattr(self, name, nn.Linear(8, 40))
        self.name, self.says = name, says

    def get_output_embeddings(self):
        return getattr(self, self.name) if self.says else None


@pytest.mark.parametrize("quantized, kind", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name, says", [("lm_head", False), ("embed_out", False), ("out", True)])
def test_a_head_is_known_by_one_rule(quantized, kind, name, says):
    model = quantized(Small(name, says))
    assert type(getattr(model, name)) is nn.Linear and type(model.inner) is kind
    assert list(lora.adapted_layers(lora.add_lora(Small(name, says), 2))) == ["inner"]
    model = Small(name, says)
    model.again = getattr(model, name)  # the head under a second name is the head still
    assert quantized(model).again is getattr(model, name) and type(model.again) is nn.Linear
    assert type(quantized(Small("other")).other) is kind


@pytest.mark.parametrize("quantized, kind", WAYS.values(), ids=WAYS)
def test_the_head_of_a_pythia_stays(quantized, kind):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        pad_token_id=0,
    )
    model = quantized(transformers.GPTNeoXForCausalLM(config).eval())
    assert type(model.get_output_embeddings()) is nn.Linear  # embed_out, before transformers 5
    assert type(model.gpt_neox.layers[0].mlp.dense_h_to_4h) is kind
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("quantized, kind", WAYS.values(), ids=WAYS)
def test_what_cannot_be_replaced_is_said(quantized, kind):
    with pytest.raises(MiniloraError, match="Llama has no linear layer.*is it quantized already"):
        quantized(quantized(tiny()))
    adapted = lora.add_lora(tiny(), 2)
    before = list(adapted.named_modules())
    with pytest.raises(MiniloraError, match=r"layers\.0\.self_attn\.q_proj has an adapter already"):
        quantized(adapted)
    assert list(adapted.named_modules()) == before


def test_nothing_is_put_before_all_is_made():
    model, seen = tiny(), []

    def make(linear, path):
        assert model.get_submodule(path) is linear
        assert all(type(model.get_submodule(other)) is nn.Linear for other in seen)
        seen.append(path)
        return nn.Identity()

    replace_linears(model, make, skip=["down_proj"])
    assert len(seen) == 12 and not any(path.endswith("down_proj") for path in seen)
    assert all(isinstance(model.get_submodule(path), nn.Identity) for path in seen)


def test_the_training_flag_of_each_layer_goes_with_it():
    model = tiny().train()
    model.model.layers[0].eval()
    for quantized in (quantize_model, quantize_model_int8):
        twin = quantized(copy.deepcopy(model))
        assert [layer.mlp.up_proj.training for layer in twin.model.layers] == [False, True]


@pytest.mark.parametrize("quantized, kind", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("settings", [{"targets": ["embed_tokens"]}, {"full_modules": ["lm_head"]}])
def test_an_adapter_of_any_kind_is_refused_and_goes_on_learning(quantized, kind, settings):
    """One beside the embedding, and a copy of the head that learns: neither has a lora_A."""
    if "targets" in settings:
        model = lora.add_lora(tiny(), 4, **settings)
    else:
        config = lora.AdapterConfig(rank=4, targets=["q_proj"], **settings)
        model = lora.add_adapter(tiny(), config)
        for layer in list(lora.adapted_layers(model)):
            if "q_proj" in layer:  # the copy alone is left
                parent = model.get_submodule(layer.rpartition(".")[0])
                parent.q_proj = parent.q_proj.original
    learned = [p for p in model.parameters() if p.requires_grad]
    assert learned
    with pytest.raises(MiniloraError, match="quantize the model first"):
        quantized(model)
    assert all(p.requires_grad for p in learned)

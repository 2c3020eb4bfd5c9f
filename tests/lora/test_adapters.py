"""Adapters on a model: freezing, switching, silencing, merging over packed layers, and messages for
what cannot be.
"""

import copy

import pytest
import torch
from small_lora import IDS, base_bits, scramble, tiny, train
from torch import nn

from minilora import lora
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.llama.head_loss import head_loss
from minilora.lora import fused
from minilora.qlora import quantize_model
from minilora.qlora.int8 import quantize_model_int8


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_training_learns_and_leaves_the_base_bit_for_bit(quantized, variant):
    model = quantize_model(tiny()) if quantized else tiny()
    before, start = base_bits(model), model(IDS)
    lora.add_lora(model, 4, variant=variant)
    torch.testing.assert_close(model(IDS), start, rtol=1e-4, atol=1e-4)
    if variant == "lora":
        assert torch.equal(model(IDS), start)
    first = train(model, 1)
    assert train(model, 5) < first
    after = base_bits(model)
    assert before.keys() == after.keys() and all(
        torch.equal(before[key], after[key]) for key in before
    )
    with lora.disabled(model):
        assert torch.equal(model(IDS), start)
    assert not torch.equal(model(IDS), start)
    names = {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"lora_A", "lora_B"} | (
        {"lora_magnitude_vector"} if variant == "dora" else set()
    )


def test_merge_over_a_packed_layer_is_decode_then_add():
    model = quantize_model(tiny())
    lora.add_lora(model, 4, 6)
    scramble(model)
    before = model(IDS)
    packed = {path: layer.base for path, layer in lora.adapted_layers(model).items()}
    lora.merge(model)
    for path, layer in lora.adapted_layers(model).items():
        A, B = layer.lora_A["default"], layer.lora_B["default"]
        assert type(layer.base) is nn.Linear
        assert torch.equal(layer.base.weight, packed[path].dense_weight() + (B @ A) * 1.5)
    torch.testing.assert_close(model(IDS), before, rtol=1e-4, atol=1e-4)
    lora.unmerge(model)
    assert torch.equal(model(IDS), before)
    assert all(layer.base is packed[path] for path, layer in lora.adapted_layers(model).items())
    lora.merge(model, dtype=torch.bfloat16)
    assert {layer.base.weight.dtype for layer in lora.adapted_layers(model).values()} == {
        torch.bfloat16
    }


def test_unload_after_merge_gives_a_plain_model_that_can_be_saved(tmp_path):
    model = scramble(lora.add_lora(tiny(), 4))
    before = model(IDS)
    lora.unload(lora.merge(model))
    assert not lora.adapters(model) and all(p.requires_grad for p in model.parameters())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in tiny().named_parameters()]
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(Llama.from_pretrained(tmp_path)(IDS), before, rtol=1e-4, atol=1e-5)
    plain = tiny()
    start = plain(IDS)
    assert torch.equal(lora.unload(scramble(lora.add_lora(plain, 4)))(IDS), start)


def test_switch_remove_and_full_modules():
    model, start = tiny(), tiny()(IDS)
    lora.add_adapter(model, lora.AdapterConfig(4, full_modules=["lm_head", "norm"]), "a")
    scramble(model)
    assert {"lm_head.modules_to_save.a.weight"} <= {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    a = model(IDS)
    lora.add_lora(model, 2, targets=["q_proj"], name="b")
    scramble(model)
    b = model(IDS)
    assert lora.active_adapters(model) == ["b"] and not torch.equal(a, b)
    assert torch.equal(lora.use_adapter(model, "a")(IDS), a)
    assert all(not p.requires_grad for n, p in model.named_parameters() if n.endswith(".b"))
    with lora.mixed_batch(model, ["a", "__base__"]):
        mixed = model(IDS)
    torch.testing.assert_close(mixed[0], a[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], start[1], rtol=1e-4, atol=1e-5)
    with lora.disabled(model), lora.disabled(model):
        assert torch.equal(model(IDS), start)
    lora.merge(model)
    torch.testing.assert_close(model(IDS), a, rtol=1e-4, atol=1e-4)
    lora.unmerge(model)
    assert torch.equal(model(IDS), a)
    lora.remove_adapter(model, "a")
    assert torch.equal(model(IDS), start) and list(lora.adapters(model)) == ["b"]
    assert torch.equal(lora.use_adapter(model, "b")(IDS), b)


def test_gradients_do_not_depend_on_checkpointing_and_copies_are_independent():
    model = scramble(lora.add_lora(tiny(), 4)).train()
    grads = []
    for on in (False, True):
        model.gradient_checkpointing = on
        model(IDS).sum().backward()
        grads.append([p.grad.clone() for p in lora.trainable_parameters(model)])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    twin = copy.deepcopy(model)
    scramble(twin)
    assert not torch.equal(twin(IDS), model(IDS)) and lora.adapters(twin) is not lora.adapters(
        model
    )


def test_only_x_and_its_low_rank_image_are_kept_for_backward():
    layer = lora.LoRALinear(nn.Linear(32, 48))
    layer.add("a", 4, 2.0)
    assert not any(p.requires_grad for p in layer.base.parameters())
    kept = []
    x = torch.randn(5, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    own = {p.data_ptr() for p in layer.parameters()} | {x.data_ptr()}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in own] == [(5, 4)]


def test_the_first_try_and_the_plain_order_agree_about_addmm():
    for rank in (1, 2, 8, 64):
        y, h, B = torch.randn(70, 130), torch.randn(70, rank), torch.randn(130, rank)
        for scale in (2.0, 1.5):
            expected = y + nn.functional.linear(h, B) * scale
            assert torch.equal(fused.add_detour(y.clone(), h, B, scale), expected)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: lora.add_lora(m, 0), "rank is 0"),
        (lambda m: lora.add_lora(m, 2.5), "rank is 2.5"),
        (lambda m: lora.add_lora(m, 65), r"rank 65 is above the smaller side of .* choose at most"),
        (lambda m: lora.add_lora(m, alpha=0), "alpha is 0"),
        (lambda m: lora.add_lora(m, alpha=float("nan")), "alpha is nan"),
        (lambda m: lora.add_lora(m, dropout=1.0), "dropout is 1.0"),
        (
            lambda m: lora.add_lora(m, targets=["query"]),
            "'query' matches no module; the linear layers are .*q_proj",
        ),
        (lambda m: lora.add_lora(m, targets=["q_proj", "query"]), "'query' matches no module"),
        (lambda m: lora.add_lora(m, targets="q_proj"), "regular expression on the whole path"),
        (lambda m: lora.add_lora(m, targets="*"), "no regular expression"),
        (lambda m: lora.add_lora(m, targets=["norm"]), "is a RMSNorm, not a linear"),
        (lambda m: lora.add_lora(m, targets=[]), "targets is"),
        (lambda m: lora.add_lora(m, variant="vera"), "choose one of lora, rslora"),
        (lambda m: lora.add_lora(m, init="zero"), "choose one of kaiming"),
        (lambda m: lora.add_lora(m, name="__base__"), "adapter name '__base__'"),
        (lambda m: lora.add_lora(m, name="a.b"), "adapter name 'a.b'"),
        (lambda m: lora.add_lora(m, name="keys"), "adapter name 'keys'"),
        (
            lambda m: lora.add_adapter(m, lora.AdapterConfig(full_modules=["heads"])),
            "full module 'heads' matches no module",
        ),
        (lambda m: lora.add_lora(nn.Linear(3, 3)), "found no linear layer"),
        (lambda m: lora.use_adapter(m, "x"), r"no adapter 'x' \(it has: none\)"),
        (lambda m: lora.add_lora(lora.add_lora(m)), "has an adapter 'default' already"),
        (lambda m: lora.unmerge(lora.add_lora(m)), "nothing is merged"),
        (lambda m: lora.merge(lora.merge(lora.add_lora(m))), "unmerge"),
        (lambda m: lora.use_adapter(lora.merge(lora.add_lora(m)), "default"), "unmerge"),
        (lambda m: lora.add_lora(quantize_model(m), init="pissa"), "load the model unquantized"),
        (lambda m: lora.add_lora(quantize_model(m), init="loftq"), "linear_weights"),
        (
            lambda m: lora.mix_adapters(lora.add_lora(m), ["default"], [1.0], "new", "ties"),
            "choose one of cat, linear, svd",
        ),
        (
            lambda m: lora.mix_adapters(lora.add_lora(m), ["default"], [], "new"),
            "one finite weight",
        ),
        (
            lambda m: lora.mix_adapters(
                lora.add_lora(m, variant="dora"), ["default"], [1.0], "new"
            ),
            "cannot be mixed",
        ),
        (lambda m: lora.loraplus_groups(m, 1e-3, 0.5), "ratio is 0.5"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(call, message):
    with pytest.raises(MiniloraError, match=message) as caught:
        call(tiny())
    assert "\n" not in str(caught.value)


def test_a_refused_adapter_leaves_the_model_as_it_was():
    model = tiny()
    with pytest.raises(MiniloraError):
        lora.add_lora(model, 65)
    assert not lora.adapted_layers(model) and all(p.requires_grad for p in model.parameters())
    broken = scramble(lora.add_lora(model, 4))
    lora.trainable_parameters(broken)[3].data[0, 0] = float("inf")
    with pytest.raises(MiniloraError, match="NaN or infinity in model.layers.0"):
        lora.merge(broken)
    assert not any(layer.merged for layer in lora.adapted_layers(broken).values())
    with (
        pytest.raises(MiniloraError, match="2 adapter names for a batch of 3|1 adapter names"),
        lora.mixed_batch(broken, ["default"]),
    ):
        broken(IDS)


def test_silence_lasts_until_the_outermost_block_ends():
    """A reference pass inside a reference pass, as in a preference loss that calls a helper."""
    model, start = tiny(), tiny()(IDS)
    scramble(lora.add_lora(model, 4))
    adapted = model(IDS)
    with lora.disabled(model):
        with lora.disabled(model):
            assert torch.equal(model(IDS), start)
        assert torch.equal(model(IDS), start)
        with pytest.raises(ZeroDivisionError), lora.disabled(model):
            raise ZeroDivisionError
        assert torch.equal(model(IDS), start)
    assert torch.equal(model(IDS), adapted)
    with lora.mixed_batch(model, ["default", "__base__"]):
        with lora.mixed_batch(model, ["__base__", "__base__"]):
            assert torch.equal(model(IDS), start)
        mixed = model(IDS)
        assert torch.equal(mixed[1], start[1]) and not torch.equal(mixed[0], start[0])
    assert torch.equal(model(IDS), adapted)


def test_a_rank_may_be_as_large_as_the_smaller_side_and_no_larger():
    layers = nn.Sequential(nn.Linear(6, 10), nn.Linear(10, 4), nn.Embedding(20, 5))
    for path, most in (("0", 6), ("1", 4), ("2", 5)):
        with pytest.raises(MiniloraError, match=f"choose at most {most}"):
            lora.add_lora(copy.deepcopy(layers), most + 1, targets=[path])
        lora.add_lora(copy.deepcopy(layers), most, targets=[path])


def test_an_adapter_may_speak_without_learning():
    model = scramble(lora.add_lora(tiny(), 4))
    adapted = model(IDS)
    lora.add_lora(model, 2, name="b")
    lora.use_adapter(model, "default", trainable=False)
    assert not lora.trainable_parameters(model) and torch.equal(model(IDS), adapted)
    assert lora.trainable_parameters(lora.use_adapter(model, ["default", "b"]))
    assert lora.active_adapters(model) == ["default", "b"]


def test_a_refused_switch_leaves_the_old_adapter_speaking():
    model = tiny()
    for name in ("a", "b"):
        lora.add_adapter(model, lora.AdapterConfig(4, full_modules=["lm_head"]), name)
        scramble(model)
    before = model(IDS)
    with pytest.raises(MiniloraError, match="only one of them can speak"):
        lora.use_adapter(model, ["a", "b"])
    assert lora.active_adapters(model) == ["b"] and torch.equal(model(IDS), before)


@pytest.mark.parametrize(
    "prepare", [lambda m: m, quantize_model, quantize_model_int8], ids=["lora", "qlora", "int8"]
)
def test_shapes_can_be_followed_on_the_meta_device(prepare):
    """Where a step is counted without being computed; meta knows no autocast, and asking for it is
    an error in torch.
    """
    model = lora.add_lora(prepare(tiny()), rank=4).to("meta").train()
    logits = model(IDS.to("meta"))
    assert logits.is_meta and logits.shape == (2, 5, 40)
    logits.sum().backward()
    assert all(p.grad.is_meta and p.grad.shape == p.shape for p in lora.trainable_parameters(model))
    hidden, weight = torch.empty(6, 64, device="meta"), torch.empty(40, 64, device="meta")
    assert head_loss(hidden, weight, torch.zeros(6, dtype=torch.int64, device="meta")).is_meta


# The essentials of LoRA, one property each.


def weight_after_merge_is_right():
    model = scramble(lora.add_lora(tiny(), 4, 6))
    layer = model.model.layers[0].self_attn.k_proj
    A, B = layer.lora_A["default"], layer.lora_B["default"]
    W = layer.base.weight.clone()
    lora.merge(model)
    return torch.equal(layer.base.weight, W + (B @ A) * (6 / 4))


def begins_unchanged_and_can_learn():
    model, start = tiny(), tiny()(IDS)
    lora.add_lora(model, 4)
    layer = model.model.layers[0].self_attn.k_proj
    unchanged = torch.equal(model(IDS), start)
    model(IDS).sum().backward()
    return (
        unchanged
        and bool(layer.lora_A["default"].any())
        and bool(layer.lora_B["default"].grad.any())
    )


def base_stays_frozen():
    model = lora.add_lora(tiny(), 4)
    before = base_bits(model)
    train(model, 1)
    return all(torch.equal(before[key], value) for key, value in base_bits(model).items())


def fused_equals_plain():
    layer = lora.LoRALinear(nn.Linear(12, 20))
    layer.add("a", 3, 1.5)
    layer.lora_B["a"].data.normal_()
    x = torch.randn(4, 12, requires_grad=True)
    parameters = [x, layer.lora_A["a"], layer.lora_B["a"]]
    pair = [
        torch.autograd.grad(y.square().sum(), parameters)
        for y in (layer(x), layer.adapt("a", x, layer.base(x)))
    ]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*pair))


@pytest.mark.parametrize(
    "holds",
    [
        weight_after_merge_is_right,
        begins_unchanged_and_can_learn,
        base_stays_frozen,
        fused_equals_plain,
    ],
)
def test_an_essential_of_lora(holds):
    assert holds()


def test_a_layer_that_only_one_of_two_adapters_has_gets_that_ones_share():
    """Its part is lower than the mixture, whose other rows stay zero there."""
    model = tiny()
    scramble(lora.add_lora(model, 2, 5, ["q_proj"], name="a"))
    scramble(lora.add_lora(model, 1, 5, ["q_proj", "down_proj"], name="b"))
    scramble(lora.add_lora(model, 3, 5, ["q_proj", "up_proj"], name="c"))
    lora.mix_adapters(model, ["a", "b", "c"], [0.7, -0.4, 2.0], "all", "cat")
    layers = lora.adapted_layers(model)
    for path, name, weight in (("down_proj", "b", -0.4), ("up_proj", "c", 2.0)):
        layer = layers[f"model.layers.1.mlp.{path}"]
        torch.testing.assert_close(layer.delta("all"), weight * layer.delta(name))


def test_a_mixed_batch_is_sorted_on_the_models_own_device():
    """ "meta" stands for a card: it refuses an index of another device as a card does."""
    model = tiny()
    for name in "ab":
        lora.add_lora(model, 2, 5, name=name)
    model, ids = model.to("meta"), torch.empty((3, 5), dtype=torch.long, device="meta")
    with lora.mixed_batch(model, ["b", "__base__", "a"]):
        assert model(ids).device.type == "meta"

"""LoRA layers against PEFT's: outputs, gradients, merges, dropout and patterns."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lora_beside_peft import IDS, VARIANTS, llama, logits, peft_twin, scramble, toy
from torch import nn

from minilora import lora
from minilora.lora.layer import LoRALinear

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("targets", ["all", ["wide", "lm_head"], r".*(arr|wid).*"])
def test_forward_is_bit_equal_to_peft(variant, targets):
    base = toy()
    ours = scramble(lora.add_lora(copy.deepcopy(base), 3, 7, targets, variant=variant))
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules=["wide", "narrow"] if targets == "all" else targets,
        use_rslora="rs" in variant,
        use_dora="dora" in variant,
    )
    twin = peft_twin(base, config, ours)
    if "dora" in variant:  # PEFT forms B A through an identity matrix: the last bit may differ
        torch.testing.assert_close(logits(ours, IDS), logits(twin, IDS), rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(logits(ours, IDS), logits(twin, IDS))


@pytest.mark.parametrize("alpha", [4, 8, 12])  # scale 1 and 2: powers of two; 3: not
@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_gradients_equal_pefts(variant, alpha):
    base = llama()
    ours = scramble(lora.add_lora(copy.deepcopy(base), 4, alpha, variant=variant))
    twin = peft_twin(
        base,
        peft.LoraConfig(
            r=4, lora_alpha=alpha, target_modules="all-linear", use_dora=variant == "dora"
        ),
        ours,
    )
    ids = torch.randint(0, 48, (2, 9))
    for model in (ours, twin):
        model.train()
        model(input_ids=ids, labels=ids).loss.backward()
    theirs = {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
    checked = 0
    for path, layer in lora.adapted_layers(ours).items():
        for key, parameter in layer.tensors("default").items():
            key = key.replace("_A.weight", "_A.default.weight").replace(
                "_B.weight", "_B.default.weight"
            )
            key = key.replace("magnitude_vector", "magnitude_vector.default.weight")
            expected = theirs.pop(f"base_model.model.{path}.{key}")
            torch.testing.assert_close(parameter.grad, expected, rtol=2e-4, atol=1e-6)
            checked += 1
    assert checked >= 28 and not theirs


@given(
    rows=st.integers(1, 9),
    size_in=st.integers(1, 40),
    size_out=st.integers(1, 40),
    data=st.data(),
    alpha=st.sampled_from([0.5, 1, 3, 8, 10, 16]),
    bias=st.booleans(),
    lead=st.sampled_from([(), (2,), (2, 3)]),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_forward_and_merge_are_bit_equal(
    rows, size_in, size_out, data, alpha, bias, lead
):
    rank = data.draw(st.integers(1, min(size_in, size_out)))
    torch.manual_seed(rows + 100 * size_in)
    model = nn.Sequential(nn.Linear(size_in, size_out, bias=bias))
    base = copy.deepcopy(model)
    scramble(lora.add_lora(model, rank, alpha, ["0"]))
    twin = peft_twin(base, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"]), model)
    x = torch.randn(*lead, rows, size_in)
    assert torch.equal(model(x), twin(x))
    lora.merge(model)
    assert torch.equal(model(x), twin.merge_and_unload()(x))
    A, B = model[0].lora_A["default"], model[0].lora_B["default"]
    assert torch.equal(model[0].base.weight, base[0].weight + (B @ A) * (alpha / rank))


@given(
    rows=st.integers(0, 33),
    size_in=st.integers(1, 70),
    size_out=st.integers(1, 70),
    data=st.data(),
    scale=st.sampled_from([0.25, 1.0, 2.0, 1.7, 3.0]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=80, deadline=None)
def test_fused_equals_plain(rows, size_in, size_out, data, scale, bias, dtype):
    rank = data.draw(st.integers(1, min(size_in, size_out)))
    torch.manual_seed(rank)
    layer = LoRALinear(nn.Linear(size_in, size_out, bias=bias, dtype=dtype))
    layer.add("a", rank, scale)
    layer.lora_B["a"].data.normal_()
    x = torch.randn(2, rows, size_in, dtype=dtype, requires_grad=True)
    weigh = torch.randn(2, rows, size_out, dtype=dtype)
    results = []
    for forward in (layer, lambda x: layer.adapt("a", x, layer.base(x))):
        y = forward(x)
        results.append(
            (
                y.detach(),
                *torch.autograd.grad((y * weigh).sum(), [x, layer.lora_A["a"], layer.lora_B["a"]]),
            )
        )
    if dtype == torch.float32:
        assert torch.equal(results[0][0], results[1][0])
    for fused, plain in zip(*results):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


def test_fused_gradients_equal_finite_differences():
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(5, 7, dtype=torch.float64))
    layer.add("a", 3, 1.7)
    inputs = [torch.randn(4, 5), layer.lora_A["a"].detach(), torch.randn(7, 3)]
    inputs = [tensor.double().requires_grad_(True) for tensor in inputs]
    from minilora.lora.fused import fused_lora

    def call(x, A, B):
        return fused_lora(x, layer.base.weight, layer.base.bias, A, B, 1.7)

    assert torch.autograd.gradcheck(call, inputs)


def test_over_an_fp16_base_the_detour_is_in_fp32_as_pefts():
    """fp16 ends at 65504: the numbers of the detour are kept out of it."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 20)).half()
    ours = scramble(lora.add_lora(copy.deepcopy(base), 4, 8, ["0"]))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
    twin = peft_twin(base, config, ours)
    x = torch.randn(5, 24).half()
    assert torch.equal(ours(x), twin(x)) and ours(x).dtype == torch.float16
    with torch.no_grad():  # beyond fp16 in the middle, within it in the end
        ours[0].lora_A["default"].mul_(1e5)
        ours[0].lora_B["default"].mul_(1e-5)
    assert ours(x).isfinite().all()


def test_under_autocast_a_layer_computes_as_autocast_would():
    model = nn.Sequential(nn.Linear(24, 20))
    scramble(lora.add_lora(model, 4, 8, ["0"]))
    x = torch.randn(5, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        plain = model[0].adapt("default", x, model[0].base(x))
    assert y.dtype == torch.bfloat16 and torch.equal(y, plain.to(y.dtype))
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_an_fp64_base_gets_an_fp64_adapter_and_any_other_fp32():
    for dtype, wanted in ((torch.float64, torch.float64), (torch.float16, torch.float32)):
        layer = LoRALinear(nn.Linear(6, 5, dtype=dtype))
        layer.add("a", 2, 2.0)
        assert {p.dtype for _, p in layer.adapter_parameters()} == {wanted}


def test_of_a_bare_layers_adapters_the_first_speaks():
    layer = LoRALinear(nn.Linear(6, 5))
    for name in "abc":
        layer.add(name, 2, 2.0)
    assert layer.active == ["a"]
    layer.remove("a")
    assert layer.active == [] and layer.silent and not layer.has("a")


def test_the_padding_token_learns_nothing_as_in_peft():
    base = nn.Sequential(nn.Embedding(11, 6, padding_idx=3))
    ours = scramble(lora.add_lora(copy.deepcopy(base), 2, 4, ["0"]))
    twin = peft_twin(base, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["0"]), ours)
    for model in (ours, twin):
        (model(IDS) ** 2).sum().backward()
    mine = ours[0].lora_embedding_A["default"].grad
    theirs = twin.base_model.model[0].lora_embedding_A["default"].grad
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not mine[:, 3].any() and mine[:, 5].all()


def test_a_base_that_learns_gets_its_gradients_beside_the_adapter():
    for learns in ("weight", "bias"):
        layer = LoRALinear(nn.Linear(6, 5))
        layer.add("a", 2, 2.0)
        layer.lora_B["a"].data.normal_()
        trained = getattr(layer.base, learns).requires_grad_(True)
        x, weigh = torch.randn(4, 6), torch.randn(4, 5)
        (found,) = torch.autograd.grad((layer(x) * weigh).sum(), trained)
        wanted = weigh.T @ x if learns == "weight" else weigh.sum(0)
        torch.testing.assert_close(found, wanted)


def test_over_a_bf16_base_the_detour_is_rounded_to_bf16():
    base = llama(dtype=torch.bfloat16)
    ours = scramble(lora.add_lora(copy.deepcopy(base), 4, 8))
    # so that the detour is about as strong as the base, not fifty times
    for layer in lora.adapted_layers(ours).values():
        layer.lora_B["default"].data.mul_(
            layer.base.weight.float().norm() / layer.delta("default").detach().norm()
        )
    twin = peft_twin(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), ours)
    assert all(p.dtype == torch.float32 for p in lora.trainable_parameters(ours))
    ids = torch.randint(0, 48, (2, 9))
    exact = peft_twin(
        base.float(), peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), ours
    )
    truth = logits(exact, ids)
    errors = [(logits(model, ids).float() - truth).square().mean().sqrt() for model in (ours, twin)]
    assert errors[0] < 2 * errors[1] < 0.02 * truth.std()
    lora.merge(ours)
    merged = twin.merge_and_unload()
    theirs = dict(merged.named_parameters())
    for path, layer in lora.adapted_layers(ours).items():
        assert layer.base.weight.dtype == torch.bfloat16
        assert torch.equal(layer.base.weight, theirs[f"{path}.weight"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_merge_is_bit_equal_to_peft_and_unmerge_restores_the_bits(variant):
    base = llama()
    ours = scramble(lora.add_lora(copy.deepcopy(base), 3, 7, variant=variant))
    config = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules="all-linear",
        use_rslora="rs" in variant,
        use_dora="dora" in variant,
    )
    theirs = dict(peft_twin(base, config, ours).merge_and_unload().named_parameters())
    ids = torch.randint(0, 48, (2, 9))
    before = logits(ours, ids)
    lora.merge(ours)
    torch.testing.assert_close(logits(ours, ids), before, rtol=1e-4, atol=1e-5)
    for path, layer in lora.adapted_layers(ours).items():
        assert torch.equal(layer.base.weight, theirs[f"{path}.weight"])
    lora.unmerge(ours)
    assert torch.equal(logits(ours, ids), before)
    originals = dict(base.named_parameters())
    for path, layer in lora.adapted_layers(ours).items():
        assert torch.equal(layer.base.weight, originals[f"{path}.weight"])


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_embedding_and_head(variant):
    base = toy()
    targets = ["embed_tokens", "lm_head", "wide"]
    ours = scramble(lora.add_lora(copy.deepcopy(base), 3, 7, targets, variant=variant))
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, use_dora=variant == "dora")
    twin = peft_twin(base, config, ours)
    torch.testing.assert_close(logits(ours, IDS), logits(twin, IDS), rtol=1e-6, atol=1e-6)
    if variant == "lora":
        assert torch.equal(logits(ours, IDS), logits(twin, IDS))
    for model in (ours, twin):
        (logits(model, IDS) ** 2).sum().backward()
    for ab in "AB":
        mine = getattr(ours.embed_tokens, f"lora_embedding_{ab}")["default"].grad
        theirs = getattr(twin.base_model.model.embed_tokens, f"lora_embedding_{ab}")["default"].grad
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    lora.merge(ours)
    merged = twin.merge_and_unload()
    assert torch.equal(ours.embed_tokens.base.weight, merged.embed_tokens.weight)


def test_dropout_drops_the_detour_alone_as_peft_does():
    base = toy()
    for variant in ("lora", "dora"):
        ours = scramble(
            lora.add_lora(copy.deepcopy(base), 3, 7, dropout=0.4, variant=variant)
        ).train()
        config = peft.LoraConfig(
            r=3,
            lora_alpha=7,
            target_modules=["wide", "narrow"],
            lora_dropout=0.4,
            use_dora=variant == "dora",
        )
        twin = peft_twin(base, config, ours).train()
        outputs = []
        for model in (ours, twin):
            torch.manual_seed(5)
            outputs.append(logits(model, IDS))
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
        ours.eval(), twin.eval()
        torch.testing.assert_close(logits(ours, IDS), logits(twin, IDS), rtol=1e-6, atol=1e-6)


def test_patterns_give_each_layer_pefts_rank_and_scale():
    base = llama()
    rank_pattern, alpha_pattern = {"q_proj": 5, r"layers\.1\.mlp\.down_proj": 2}, {"down_proj": 9}
    config = lora.AdapterConfig(3, 7, rank_pattern=rank_pattern, alpha_pattern=alpha_pattern)
    ours = scramble(lora.add_adapter(copy.deepcopy(base), config))
    theirs = peft.LoraConfig(
        r=3,
        lora_alpha=7,
        target_modules="all-linear",
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    twin = peft_twin(base, theirs, ours)
    ids = torch.randint(0, 48, (2, 5))
    assert torch.equal(logits(ours, ids), logits(twin, ids))
    assert ours.model.layers[1].mlp.down_proj.lora_A["default"].shape == (2, 40)


def test_targets_all_is_pefts_all_linear():
    for tied in (False, True):
        base = llama(tied)
        ours = lora.add_lora(copy.deepcopy(base), 2)
        twin = peft.get_peft_model(
            copy.deepcopy(base), peft.LoraConfig(r=2, target_modules="all-linear")
        )
        theirs = [
            n.removeprefix("base_model.model.")
            for n, m in twin.named_modules()
            if isinstance(m, peft.tuners.lora.Linear)
        ]
        assert list(lora.adapted_layers(ours)) == theirs
        trainable, total = lora.count_parameters(ours)
        assert (trainable, total) == twin.get_nb_trainable_parameters()

"""The 4-bit layer under an adapter: fused against plain, against PEFT + bitsandbytes, under our
Llama and transformers'.
"""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minilora import lora
from minilora.errors import MiniloraError
from minilora.llama import Config, Llama
from minilora.qlora import QLinear, four_bit, lora_forward_plain, quantize_model
from minilora.qlora.checkpoint import load_quantized, save_quantized
from minilora.quantize import bnb_format, quantize
from minilora.system.scratch import Scratch

pytestmark = pytest.mark.parity  # beside the library that people use

# (in, out), those that bitsandbytes decodes wrongly too
SHAPES = [(64, 64), (96, 128), (50, 33), (704, 16), (1, 1), (7, 130)]


def layer_and_inputs(inside, outside, dtype=torch.float32, bias=True, code="nf4"):
    torch.manual_seed(0)
    linear = nn.Linear(inside, outside, bias=bias)
    rank = min(4, inside, outside)
    x = torch.randn(2, 5, inside).to(dtype).requires_grad_()
    A, B = (
        torch.randn(rank, inside, requires_grad=True),
        torch.randn(outside, rank, requires_grad=True),
    )
    return QLinear.from_linear(linear, code), linear, x, A, B


def outcome(function, inputs, weights):
    y = function()
    return y.detach(), *torch.autograd.grad((y.float() * weights).sum(), inputs)


@pytest.mark.parametrize("inside, outside", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [2.0, 1.7])
def test_fused_equals_plain(inside, outside, dtype, scale):
    layer, _, x, A, B = layer_and_inputs(inside, outside, dtype)
    weights = torch.randn(2, 5, outside)
    fused = outcome(lambda: layer.lora_forward(x, A, B, scale), (x, A, B), weights)
    plain = outcome(lambda: lora_forward_plain(layer, x, A, B, scale), (x, A, B), weights)
    ulp = torch.finfo(dtype).eps
    for one, other in zip(fused, plain):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.allclose(one, other, rtol=4 * ulp, atol=8 * ulp * other.abs().max().item())


@pytest.mark.parametrize("inside, outside", SHAPES)
def test_fused_equals_plain_to_the_bit_where_arithmetic_is_exact(inside, outside):
    """Small whole numbers and levels: no product or sum is rounded, so the order of summation
    cannot hide an error.
    """
    layer, linear, x, A, B = layer_and_inputs(inside, outside)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-2, 3, linear.weight.shape) / 2)
        linear.weight.view(-1)[::64] = 1  # every block has absmax 1
        linear.bias.copy_(torch.randint(-3, 4, linear.bias.shape))
        for tensor in (x, A, B):
            tensor.copy_(torch.randint(-3, 4, tensor.shape))
    layer = QLinear(quantize(linear.weight.detach(), [-1.0, -0.5, 0.0, 0.5, 1.0]), linear.bias)
    assert torch.equal(layer.dense_weight(), linear.weight)
    weights = torch.randint(-3, 4, (2, 5, outside)).float()
    dense = outcome(
        lambda: (
            F.linear(x, linear.weight.detach(), linear.bias.detach()) + x @ A.t() @ B.t() * 0.75
        ),
        (x, A, B),
        weights,
    )
    fused = outcome(lambda: layer.lora_forward(x, A, B, 0.75), (x, A, B), weights)
    plain = outcome(lambda: lora_forward_plain(layer, x, A, B, 0.75), (x, A, B), weights)
    for a, b, c in zip(fused, plain, dense):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_only_x_and_the_low_rank_product_are_saved():
    layer, _, x, A, B = layer_and_inputs(96, 128)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer.lora_forward(x, A, B, 2.0)
    own = [tuple(t.shape) for t in saved if t.data_ptr() not in (A.data_ptr(), B.data_ptr())]
    assert sorted(own) == [(2, 5, 4), (2, 5, 96)]
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    assert saved == []


def test_gradients_by_finite_differences():
    layer, _, x, A, B = layer_and_inputs(50, 33)
    x, A, B = (t.detach().double().requires_grad_() for t in (x, A, B))
    assert torch.autograd.gradcheck(lambda *t: layer.lora_forward(*t, 1.7), (x, A, B))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(frozen):
    layer, _, *inputs = layer_and_inputs(96, 128)
    inputs[frozen].requires_grad_(False)
    layer.lora_forward(*inputs, 2.0).sum().backward()
    assert [t.grad is None for t in inputs] == [i == frozen for i in range(3)]


def test_a_bias_that_learns():
    layer, _, x, A, B = layer_and_inputs(96, 128)
    layer.bias.requires_grad_(True)
    for call in (layer, lambda x: layer.lora_forward(x, A, B, 2.0)):
        layer.bias.grad = None
        call(x).sum().backward()
        assert torch.equal(layer.bias.grad, torch.full((128,), 10.0))


def test_autocast_computes_in_its_type_and_returns_gradients_in_theirs():
    layer, _, x, A, B = layer_and_inputs(96, 128)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer.lora_forward(x, A, B, 2.0)
        plain = lora_forward_plain(layer, x, A, B, 2.0)
    assert y.dtype == layer(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(y.float(), plain.float(), rtol=0.05, atol=0.2)
    y.float().sum().backward()
    assert {t.grad.dtype for t in (x, A, B)} == {torch.float32}


def tiny(tie=True, bias=False):
    torch.manual_seed(0)
    return Llama(
        Config(
            vocab_size=61,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tie,
            attention_bias=bias,
        )
    )


def with_adapter(model):
    lora.add_lora(model, rank=4)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return model


def gradients(model, ids):
    model.zero_grad(set_to_none=True)
    F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("bias", [False, True])
def test_model_equals_a_dense_one_of_the_decoded_weights(bias):
    model = quantize_model(tiny(bias=bias))
    dense = tiny(bias=bias)
    for name, module in model.named_modules():
        if isinstance(module, QLinear):
            dense.get_submodule(name).weight.data.copy_(module.dense_weight())
    assert sum(isinstance(m, QLinear) for m in model.modules()) == 14
    ids = torch.randint(0, 61, (3, 9))
    assert torch.equal(model(ids), dense(ids))
    one, other = gradients(with_adapter(model), ids), gradients(with_adapter(dense), ids)
    assert one.keys() == other.keys() and len(one) == 28
    for name in one:
        assert torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-7), name


def test_train_eval_train_keeps_every_gradient():
    """bitsandbytes on a CPU with AVX512-BF16 repacks its weights at the first evaluation and loses
    the input's gradient.
    """
    model, ids = with_adapter(quantize_model(tiny())), torch.randint(0, 61, (3, 9))
    before, state = (
        gradients(model.train(), ids),
        {k: v.clone() for k, v in model.state_dict().items()},
    )
    with torch.no_grad():
        model.eval()(ids)
    with torch.inference_mode():
        model(ids[:1, :1])
    after = gradients(model.train(), ids)
    assert all(
        torch.equal(before[name], after[name]) and before[name].abs().sum() > 0 for name in before
    )
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_one_buffer_serves_all_layers_and_goes_with_them(monkeypatch):
    """Large layers are decoded into one piece of memory; here every layer counts as large."""
    model, ids = with_adapter(quantize_model(tiny())), torch.randint(0, 61, (3, 9))
    wanted = gradients(model, ids)
    del model
    scratch = Scratch(four_bit.HELD_TO, four_bit._scratch.make)
    monkeypatch.setattr(four_bit, "HELD_FROM", 0)
    monkeypatch.setattr(four_bit, "_scratch", scratch)
    model = with_adapter(quantize_model(tiny()))
    with torch.inference_mode():
        model(ids)
    found = gradients(model, ids)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert scratch.held() == 4 * 48 * 96  # the largest layer in fp32, once
    del model
    gc.collect()
    assert scratch.held() == 0


def test_gradient_checkpointing_changes_no_bit():
    model, ids = with_adapter(quantize_model(tiny())).train(), torch.randint(0, 61, (3, 9))
    before = gradients(model, ids)
    model.gradient_checkpointing = True
    after = gradients(model, ids)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_merge_is_exact():
    model, ids = with_adapter(quantize_model(tiny())).eval(), torch.randint(0, 61, (3, 9))
    wanted = model(ids)
    lora.merge(model)
    assert torch.allclose(model(ids), wanted, atol=1e-5)
    lora.unmerge(model)
    assert torch.equal(model(ids), wanted)


def test_scales_stay_fp32_and_copies_are_whole():
    model = quantize_model(tiny())
    weight = model.model.layers[0].mlp.up_proj.dense_weight()
    model = copy.deepcopy(model).to(torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.nested_absmax.dtype == torch.float32 and torch.equal(layer.dense_weight(), weight)
    assert model(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.bfloat16
    other = quantize_model(tiny())
    other.load_state_dict(quantize_model(Llama(tiny().config)).state_dict())
    assert not torch.equal(other.model.layers[0].mlp.up_proj.dense_weight(), weight)


def test_what_cannot_be_quantized_is_named():
    with pytest.raises(MiniloraError, match="no linear layer"):
        quantize_model(nn.Sequential(nn.LayerNorm(3)))
    with pytest.raises(MiniloraError, match="quantize the model first"):
        quantize_model(with_adapter(tiny()))
    with pytest.raises(MiniloraError, match="unknown code"):
        quantize_model(tiny(), code="nf3")


# With transformers, peft and bitsandbytes


def hugging_face(folder, **quantization):
    transformers = pytest.importorskip("transformers")
    config = (
        transformers.BitsAndBytesConfig(load_in_4bit=True, **quantization) if quantization else None
    )
    model = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config)
        if config
        else transformers.AutoModelForCausalLM.from_pretrained(folder)
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # else evaluation repacks the weights
    return model


def wide(tie):
    torch.manual_seed(0)
    return Llama(
        Config(
            vocab_size=61,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tie,
        )
    )


@pytest.mark.parametrize("code, double, tie", [("nf4", True, True), ("fp4", False, False)])
def test_folders_go_both_ways(tmp_path, code, double, tie):
    pytest.importorskip("bitsandbytes")
    dense, ids = wide(tie), torch.randint(0, 61, (2, 9))
    dense.save_pretrained(tmp_path / "dense")
    ours = quantize_model(copy.deepcopy(dense), code, double)
    save_quantized(ours, tmp_path / "ours")
    wanted = ours(ids)
    assert torch.allclose(hugging_face(tmp_path / "ours")(ids).logits, wanted, atol=1e-5)
    assert torch.equal(load_quantized(tmp_path / "ours")(ids), wanted)
    theirs = hugging_face(
        tmp_path / "dense", bnb_4bit_quant_type=code, bnb_4bit_use_double_quant=double
    )
    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.equal(load_quantized(tmp_path / "theirs")(ids), wanted)


def test_training_step_equals_peft_and_bitsandbytes_and_logits_survive_the_exchange(tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    dense, ids = wide(True), torch.randint(0, 61, (3, 9))
    dense.save_pretrained(tmp_path / "dense")
    ours = with_adapter(quantize_model(copy.deepcopy(dense)))
    lora.save_adapter(ours, tmp_path / "adapter")
    theirs = hugging_face(
        tmp_path / "dense", bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True)
    assert torch.allclose(theirs(input_ids=ids).logits, ours(ids), atol=1e-5)
    theirs(input_ids=ids, labels=ids).loss.backward()
    mine = gradients(ours, ids)
    peers = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(mine) == len(peers) == 28
    for name, gradient in peers.items():
        own = name.removeprefix("base_model.model.").replace(".default.weight", ".default")
        assert torch.allclose(mine[own], gradient, rtol=1e-3, atol=1e-6), name


def test_works_under_transformers(tmp_path):
    dense, ids = wide(False), torch.randint(0, 61, (2, 9))
    dense.save_pretrained(tmp_path)
    theirs, ours = quantize_model(hugging_face(tmp_path)), quantize_model(dense)
    assert type(theirs.lm_head) is nn.Linear and isinstance(
        theirs.model.layers[1].self_attn.q_proj, QLinear
    )
    assert torch.allclose(theirs(ids).logits, ours(ids), atol=1e-5)


def backward(model, ids):
    """Gradients of every trained weight and of the embedding's output, which a frozen embedding
    would not show.
    """
    kept = []
    hook = model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: kept.append(out.detach().requires_grad_()) or kept[0]
    )
    logits = model(ids)
    hook.remove()
    logits = getattr(logits, "logits", logits)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return {
        "input": kept[0].grad,
        **{name: p.grad for name, p in model.named_parameters() if p.requires_grad},
    }


def test_a_backward_under_transformers_gives_the_gradients_of_our_llama_and_of_the_dense_weights(
    tmp_path,
):
    dense, ids = wide(False), torch.randint(0, 61, (2, 9))
    dense.save_pretrained(tmp_path)
    theirs, ours, decoded = (
        quantize_model(hugging_face(tmp_path)),
        quantize_model(copy.deepcopy(dense)),
        hugging_face(tmp_path),
    )
    for name, module in theirs.named_modules():
        if isinstance(module, QLinear):
            decoded.get_submodule(name).weight.data.copy_(module.dense_weight())
    found, *wanted = (backward(with_adapter(model), ids) for model in (theirs, ours, decoded))
    assert (
        sum(isinstance(module, QLinear) for module in theirs.modules()) == 14 and len(found) == 29
    )
    for other in wanted:
        assert found.keys() == other.keys()
        for name in found:
            assert found[name].abs().sum() > 0 and torch.allclose(
                found[name], other[name], rtol=1e-3, atol=1e-6
            ), name


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("code", ["nf4", "fp4"])
def test_keys_and_bytes_equal_bitsandbytes(code, double):
    functional = pytest.importorskip("bitsandbytes.functional")
    x = torch.randn(48, 70)
    packed, state = functional.quantize_4bit(
        x, blocksize=64, quant_type=code, compress_statistics=double
    )
    theirs = {
        "weight": packed,
        **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()},
    }
    ours = bnb_format.to_tensors(quantize(x, code, double=double))
    assert ours.keys() == theirs.keys()
    assert all(
        ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key])
        for key in theirs
    )
    assert torch.equal(
        bnb_format.from_tensors(theirs).dequantize(), quantize(x, code, double=double).dequantize()
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("weight.absmax"), "lacks weight.absmax"),
        (lambda t: t.pop("weight.nested_absmax"), "lacks weight.nested_absmax"),
        (lambda t: t.pop("weight.quant_state.bitsandbytes__nf4"), "found 0"),
        (
            lambda t: t.update(
                {"weight.quant_state.bitsandbytes__nf4": torch.zeros(5, dtype=torch.uint8)}
            ),
            "cannot be read as JSON",
        ),
        (lambda t: t.update(weight=t["weight"][:-3]), "entries"),
        (lambda t: t.update({"weight.absmax": t["weight.absmax"][1:]}), "weight.absmax has"),
    ],
)
def test_damaged_checkpoints_are_named(change, words):
    tensors = bnb_format.to_tensors(quantize(torch.randn(64, 64), double=True))
    change(tensors)
    with pytest.raises(MiniloraError, match=words):
        bnb_format.from_tensors(tensors)


def test_codes_of_our_own_are_not_written_for_bitsandbytes(tmp_path):
    with pytest.raises(MiniloraError, match="knows no int4"):
        save_quantized(quantize_model(tiny(), "int4"), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    with pytest.raises(MiniloraError, match="no 4-bit layer"):
        save_quantized(tiny(), tmp_path / "no")

"""bitsandbytes on a CPU is wrong twice; a model that `hub.load` returns is not. And what hub.load
refuses, in one line.

The judge of a decoded weight is `quantize(W).dequantize()`, the flat formula; tolerance 1e-5, the
order of additions.
"""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from llama_sizes import sizes
from safetensors.torch import load_file, save_file

from minilora import hub, lora
from minilora.errors import MiniloraError
from minilora.llama import Config, Llama
from minilora.quantize import quantize
from minilora.train.checks import check
from minilora.train.loss import evaluate_loss, loss_sum, tensors

transformers = pytest.importorskip("transformers")
bitsandbytes = pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

ROWS = [
    (
        [3 + (7 * i + j) % 90 for j in range(11)] + [2],
        [-100] * 4 + [3 + (7 * i + j) % 90 for j in range(4, 11)] + [2],
    )
    for i in range(6)
]


def save(folder, hidden, inner):
    torch.manual_seed(0)
    Llama(
        Config(
            **sizes(vocab=97, hidden=hidden, ffn=inner, layers=2, heads=4),
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Rows of 96 and 80: multiples of 16 that are none of 64."""
    return save(tmp_path_factory.mktemp("uneven"), 96, 80)


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    return save(tmp_path_factory.mktemp("even"), 64, 128)


def linears(model):
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }


@pytest.mark.parametrize("code", ["nf4", "fp4"])
def test_uneven_rows_are_decoded_rightly(uneven, code):
    """Forward, and backward through a weight that is decoded again."""
    dense, model = Llama.from_pretrained(uneven), hub.load(uneven, "qlora", device="cpu", code=code)
    assert len(linears(model)) == 14
    for path, layer in linears(model).items():
        W = quantize(dense.get_submodule(path).weight.detach(), code, 64, True).dequantize()
        x = torch.randn(3, W.shape[1], requires_grad=True)
        y, wanted = layer(x), F.linear(x, W)
        torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
        g = torch.randn_like(y)
        torch.testing.assert_close(torch.autograd.grad(y, x, g)[0], g @ W, rtol=1e-5, atol=1e-5)


def test_the_trap_is_there(uneven):
    """What a learner meets without the bridge: an error of the size of the weights, and no word
    about it.
    """
    four = hub.quantization("qlora", "nf4", torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        uneven, dtype=torch.float32, quantization_config=four
    )
    layer = model.model.layers[0].self_attn.q_proj
    W = quantize(
        Llama.from_pretrained(uneven).model.layers[0].self_attn.q_proj.weight.detach(),
        "nf4",
        64,
        True,
    ).dequantize()
    found = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    if torch.allclose(found, W, atol=1e-5):
        pytest.skip("this bitsandbytes decodes such rows rightly")
    assert (found - W).square().mean().sqrt() > 0.1 * W.square().mean().sqrt()


def test_our_decoder_reads_the_very_bytes(uneven):
    """Nothing is kept twice: what is decoded is the layer's own storage."""
    model = hub.load(uneven, "qlora", device="cpu")
    layer = next(iter(linears(model).values()))
    x = torch.randn(2, layer.in_features)
    before = layer(x)
    layer.weight.data.fill_(0x77)  # every weight is 0 now
    assert before.abs().max() > 0 and not layer(x).any()


@pytest.mark.parametrize("folder", ["even", "uneven"])
def test_evaluation_leaves_the_gradient_and_the_bytes_alone(request, folder):
    """Train, evaluate, train: without the cure an AVX512-BF16 processor packs the weights anew, and
    no gradient reaches the input.
    """
    model = hub.load(request.getfixturevalue(folder), "qlora", device="cpu")
    assert not any(layer.support_avx512bf16_for_cpu for layer in linears(model).values())
    torch.manual_seed(1)
    model = hub.prepare(model, 4, 8)
    batch = tensors(ROWS, model)

    def gradients():
        model.zero_grad()
        loss_sum(model.train(), batch)[0].backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    packed = [layer.weight.data.clone() for layer in linears(model).values()]
    before = gradients()
    evaluate_loss(model.eval(), ROWS)
    after = gradients()
    assert len(before) == 28 and all(torch.equal(before[name], after[name]) for name in before)
    assert all(
        torch.equal(old, layer.weight.data) for old, layer in zip(packed, linears(model).values())
    )
    model.train()
    check(model, batch)


@pytest.mark.parametrize(
    "folder, packs, message",
    [("even", True, "would make bitsandbytes pack"), ("uneven", False, "rows of 96")],
    ids=["even", "uneven"],
)
def test_the_check_names_a_model_that_is_not_cured(request, folder, packs, message):
    """packs: as on a processor with AVX512-BF16, or without, whichever runs this."""
    four = hub.quantization("qlora", "nf4", torch.float32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        request.getfixturevalue(folder),
        dtype=torch.float32,
        device_map={"": "cpu"},
        quantization_config=four,
    )
    for layer in linears(theirs).values():
        layer.support_avx512bf16_for_cpu = packs
    model = hub.prepare(theirs, 4, 8)
    batch = tensors(ROWS, model)
    refused(lambda: check(model, batch), message, "hub.cure")
    hub.cure(theirs)
    check(model, batch)


def test_it_is_4_bit_nf4_with_double_quantization_and_the_head_is_whole(even):
    model = hub.load(even, "qlora", device="cpu")
    for layer in linears(model).values():
        state = layer.weight.quant_state
        assert (state.quant_type, state.blocksize, state.nested, layer.compute_dtype) == (
            "nf4",
            64,
            True,
            torch.float32,
        )
    assert (
        type(model.lm_head) is torch.nn.Linear
        and model.lm_head.weight.dtype == torch.float32
        and not model.config.use_cache
    )
    eight = hub.load(even, "int8", device="cpu")
    assert (
        isinstance(eight.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear8bitLt)
        and type(eight.lm_head) is torch.nn.Linear
    )


# ------------------------------------------------------------------------------------------ refused


def refused(call, *words):
    with pytest.raises(MiniloraError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


def test_what_is_too_large_is_refused_with_the_remedy(even):
    from minilora.budget.forms.memory import weights
    from minilora.budget.setup import make

    dense = sum(
        part.bytes for part in weights(make(even, method="lora", precision="fp32")).values()
    )
    refused(
        lambda: hub.load(even, "lora", device="cpu", free=dense - 1),
        "method lora",
        "are free on cpu",
        "method int8 takes",
    )
    refused(
        lambda: hub.load(even, "full", device="cpu", free=1000), "smaller model", "minilora budget"
    )
    hub.require_room(even, "lora", "cpu", dense)  # fits to the byte


def test_wrong_names_and_settings(even, uneven):
    refused(lambda: hub.load(even, "qlora4"), "'qlora4' is not known", "qlora")
    refused(lambda: hub.load(even, stack="keras"), "'keras' is not known", "minilora")
    refused(lambda: hub.load(even, code="int4"), "int4", "nf4 or fp4")
    refused(lambda: hub.load("./nowhere"), "no model './nowhere'")
    model = hub.load(uneven, device="cpu")
    refused(lambda: hub.prepare(model, init="pissa"), "pissa", "kaiming")
    refused(lambda: hub.prepare(model, variant="dora"), "dora", "multiple of 64")
    refused(lambda: hub.prepare(model, targets=["query"]), "'query' matches no module", "q_proj")
    refused(lambda: hub.prepare(model, rank=97), "rank 97", "at most 96")


def test_a_broken_folder_is_refused(even, tmp_path):
    """transformers would warn, and train random numbers in the place of what is missing."""
    cut, lacking, other = (
        shutil.copytree(even, tmp_path / name) for name in ("cut", "lacking", "other")
    )
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(lambda: hub.load(cut, device="cpu"), str(cut), "again")
    state = load_file(lacking / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, lacking / "model.safetensors", metadata={"format": "pt"})
    refused(
        lambda: hub.load(lacking, device="cpu"), "missing weight model.layers.1.mlp.up_proj.weight"
    )
    fields = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(fields | {"model_type": "gemma"}))
    refused(lambda: hub.load(other, device="cpu"), "gemma", "llama")


def test_a_foreign_adapter_is_refused(even, uneven, tmp_path):
    """PEFT would only warn of missing keys, and answer as the base does."""
    torch.manual_seed(0)
    lora.save_adapter(
        lora.add_lora(hub.load(even, "lora", stack="minilora", device="cpu"), 4, 8),
        tmp_path / "adapter",
    )
    cut = shutil.copytree(tmp_path / "adapter", tmp_path / "cut")
    state = load_file(cut / "adapter_model.safetensors")
    del state["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"]
    save_file(state, cut / "adapter_model.safetensors")
    refused(
        lambda: hub.load_adapter(hub.load(even, "lora", device="cpu"), cut),
        "lacks",
        "layers.0.self_attn.v_proj.lora_B",
    )
    refused(
        lambda: hub.load_adapter(hub.load(uneven, "lora", device="cpu"), tmp_path / "adapter"),
        "has shape",
        "the model needs",
    )
    refused(
        lambda: hub.load_adapter(hub.load(even, "lora", device="cpu"), tmp_path),
        "holds no adapter_config.json",
        "adapter",
    )

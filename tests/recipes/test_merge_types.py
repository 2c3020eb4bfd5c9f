"""A merged folder has the types of its base, and each weight is the exact sum rounded once."""

import json
import struct

import pytest
import torch
from four_bit_folders import dense, packed, theirs
from safetensors.torch import load_file, save_file

from minilora import lora
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.lora.layer import LoRALinear
from minilora.qlora import quantize_model
from minilora.qlora.base import load_base
from minilora.recipes import load, merge

pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

IDS = torch.tensor([[0, 10, 20, 30, 41, 52, 63, 74]])
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def names_of(dtype):
    return str(dtype).removeprefix("torch.")


def layers(model):
    """The layers of a model that have an adapter, by their paths."""
    return [(path, each) for path, each in model.named_modules() if isinstance(each, LoRALinear)]


def adapter_for(folder, place, targets="all", quantized=None, **more):
    """A LoRA with numbers in it, as a folder."""
    model = load_base(folder, "cpu", quantized)
    torch.manual_seed(1)
    lora.add_lora(model, rank=3, alpha=6, targets=targets, **more)
    for parameter in lora.trainable_parameters(model):
        torch.nn.init.normal_(parameter, std=0.1)
    lora.save_adapter(model, place)
    return place


@pytest.fixture
def answering(monkeypatch, tiny_folder):
    """The small models of these tests take the tokenizer of another."""
    from minilora.text.tokenizer import Tokenizer

    real = Tokenizer.from_pretrained
    monkeypatch.setattr(
        Tokenizer, "from_pretrained", classmethod(lambda cls, path: real(tiny_folder))
    )


def merged(folder, adapter, out, **more):
    done = merge.run(str(adapter), out, str(folder), device="cpu", **more)
    return done, load_file(out / "model.safetensors")


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of)
def test_the_folder_has_the_type_of_its_base(answering, tmp_path, dtype):
    base = dense(tmp_path / "base", dtype=dtype, vocab_size=320)
    before = load_file(base / "model.safetensors")
    done, after = merged(base, adapter_for(base, tmp_path / "adapter"), tmp_path / "out")
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    told = json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"]
    assert told == names_of(dtype)
    sizes = [(each / "model.safetensors").stat().st_size for each in (base, tmp_path / "out")]
    assert abs(sizes[0] - sizes[1]) < 2000
    model = load_base(base, "cpu")
    lora.load_adapter(model, tmp_path / "adapter")
    for path, layer in layers(model):
        exact = before[path + ".weight"].double() + layer.delta("default").double()
        once = (before[path + ".weight"].float() + layer.delta("default")).to(dtype)
        assert torch.equal(after[path + ".weight"], once), path
        assert (once.double() - exact).abs().max() <= ulp(once), path
    for key in before.keys() - {path + ".weight" for path, _ in layers(model)}:
        assert torch.equal(before[key], after[key]), key
    assert 0 <= abs(done.kl) < {torch.float32: 1e-9}.get(dtype, 1e-3)


def ulp(tensor):
    """The width of the widest step among these numbers."""
    return torch.finfo(tensor.dtype).eps * tensor.abs().max().double()


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of)
def test_as_peft_merges_where_peft_is_right(answering, tmp_path, dtype):
    """PEFT rounds B A · s to the base's type before it adds. Where that loses nothing, both are the
    same bits; elsewhere ours is as near to the exact sum or nearer.
    """
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = dense(tmp_path / "base", dtype=dtype, vocab_size=320)
    adapter = adapter_for(base, tmp_path / "adapter")
    state = load_file(adapter / "adapter_model.safetensors")
    if dtype != torch.float32:  # of few bits, so that the product has no more than the type holds
        state = {key: torch.sign(tensor) * 2**-4 for key, tensor in state.items()}
        for key in state:
            state[key][1:] *= 0 if "lora_A" in key else 1
        rewrite(adapter, state)
    _, ours = merged(base, adapter, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    for key, tensor in model.state_dict().items():
        assert torch.equal(ours[key], tensor), key


def rewrite(adapter, state):
    """Another content of an adapter's file, under the metadata that stood there."""
    file = adapter / "adapter_model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__")
    save_file({key: each.contiguous() for key, each in state.items()}, file, metadata)


def test_types_that_differ_within_a_base_stay_apart(answering, tmp_path):
    base = dense(tmp_path / "base", dtype=torch.bfloat16, vocab_size=320)
    state = load_file(base / "model.safetensors")
    state |= {key: each.float() for key, each in state.items() if "norm" in key}
    save_file(state, base / "model.safetensors", {"format": "pt"})
    _, after = merged(base, adapter_for(base, tmp_path / "adapter"), tmp_path / "out")
    assert {key: each.dtype for key, each in after.items()} == {
        key: each.dtype for key, each in state.items()
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of)
def test_over_a_4_bit_folder_it_is_the_type_from_before(answering, tmp_path, dtype):
    """What transformers decodes and what the adapter adds, rounded once."""
    four = packed(dense(tmp_path / "base", dtype=dtype, vocab_size=320), tmp_path / "four", dtype)
    adapter = adapter_for(four, tmp_path / "adapter")
    done, after = merged(four, adapter, tmp_path / "out")
    assert {tensor.dtype for tensor in after.values()} == {dtype}
    model = load_base(four, "cpu")
    lora.load_adapter(model, adapter)
    decoded = theirs(four).state_dict()
    for path, layer in layers(model):
        wanted = (decoded[path + ".weight"] + layer.delta("default")).to(dtype)
        assert torch.equal(after[path + ".weight"], wanted), path
    assert abs(done.kl) < {torch.float32: 1e-9}.get(dtype, 1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=names_of)
def test_requantized_it_is_what_transformers_makes_of_the_merged_folder(answering, tmp_path, dtype):
    """The bytes, and what stands beside them; and we read it as they do."""
    pytest.importorskip("bitsandbytes")
    base = dense(tmp_path / "base", dtype=dtype, vocab_size=320)
    adapter = adapter_for(base, tmp_path / "adapter")
    merged(base, adapter, tmp_path / "whole")
    done, ours = merged(base, adapter, tmp_path / "four", requantize="nf4")
    packed(tmp_path / "whole", tmp_path / "theirs", dtype)
    wanted = load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert ours[key].dtype == tensor.dtype and torch.equal(ours[key], tensor), key
    assert done.requantized > 1e-5
    with torch.no_grad():
        found = load_base(tmp_path / "four", "cpu")(IDS)
        torch.testing.assert_close(found, theirs(tmp_path / "four")(IDS).logits, rtol=0, atol=1e-5)


def test_what_is_reported_is_measured_after_the_rounding(answering, tmp_path):
    base = dense(tmp_path / "base", dtype=torch.bfloat16, vocab_size=320)
    done, _ = merged(base, adapter_for(base, tmp_path / "adapter"), tmp_path / "out")
    assert 1e-8 < done.kl < 1e-3


def test_a_number_beyond_the_base_s_type_is_refused(answering, tmp_path):
    base = dense(tmp_path / "base", dtype=torch.float16, vocab_size=320)
    adapter = adapter_for(base, tmp_path / "adapter")
    state = load_file(adapter / "adapter_model.safetensors")
    rewrite(adapter, {key: each * 3000 for key, each in state.items()})
    with pytest.raises(MiniloraError, match=r"has a merged weight of .*float16 cannot hold"):
        merged(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_merged_into_4_bits_is_the_merged_one_quantized(answering, tmp_path):
    base = dense(tmp_path / "base", vocab_size=320)
    adapter = adapter_for(base, tmp_path / "adapter")
    merged(base, adapter, tmp_path / "whole")
    merged(base, adapter, tmp_path / "four", requantize="fp4")
    model, _ = load.load(str(tmp_path / "four"), device="cpu")
    again = quantize_model(Llama.from_pretrained(tmp_path / "whole"), "fp4")
    assert torch.equal(model(IDS), again(IDS))

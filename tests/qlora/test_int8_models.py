"""int8 in whole models: transformers' load_in_8bit and PEFT beside ours, adapters that learn on it,
outliers, refusals.
"""

import copy

import pytest
import torch
from int8_peer import TINY, relative, theirs
from torch import nn

from minilora import llama, lora
from minilora.errors import MiniloraError
from minilora.qlora import int8

pytestmark = pytest.mark.parity  # beside the library that people use


def transformers_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TINY, tie_word_embeddings=False)).eval()


def test_transformers_llama_equals_bitsandbytes_layers_in_its_place(monkeypatch):
    """With bitsandbytes' rounded constant to float precision; with the exact one, a few activations
    of the deeper layers round the other way, which is a step of 1/127 each.
    """
    model = transformers_model()
    reference = copy.deepcopy(model)
    for path, module in list(reference.named_modules()):
        if type(module) is nn.Linear and path != "lm_head":
            parent, _, name = path.rpartition(".")
            setattr(reference.get_submodule(parent), name, theirs(module).eval())
    int8.quantize_model_int8(model)
    assert type(model.lm_head) is nn.Linear
    ids = torch.randint(5, 97, (2, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference(ids).logits
        assert relative(model(ids).logits, expected) <= 5e-3
        monkeypatch.setattr(int8, "UNIT", 6.200124e-05)
        assert relative(model(ids).logits, expected) <= 1e-6
    assert model.state_dict().keys() == reference.state_dict().keys()
    assert all(torch.equal(v, reference.state_dict()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "make",
    [lambda: llama.Llama(llama.Config(**TINY)), transformers_model],
    ids=["ours", "transformers"],
)
def test_an_adapter_learns_on_it_and_merges_exactly(make):
    torch.manual_seed(0)
    model = lora.add_lora(int8.quantize_model_int8(make()), rank=4, alpha=8)
    ids = torch.randint(5, 97, (4, 12), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(list(lora.trainable_parameters(model)), lr=1e-2)

    def logits():
        out = model(ids)
        return out if isinstance(out, torch.Tensor) else out.logits

    losses = []
    for step in range(8):
        model.train()
        loss = nn.functional.cross_entropy(logits()[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in lora.trainable_parameters(model))
        optimizer.step()
        losses.append(loss.item())
        model.eval()  # and back: no gradient may get lost
        with torch.no_grad():
            logits()
    assert losses[-1] < losses[0] - 0.1
    model.train()
    with torch.no_grad():
        trained = logits()
        lora.merge(model)
        assert relative(logits(), trained) < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_files_of_load_in_8bit_and_an_adapter_in_peft(tmp_path, monkeypatch):
    """A model that transformers quantized and saved loads here; our adapter on it gives PEFT's
    training logits to the bit.
    """
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import BitsAndBytesConfig, LlamaForCausalLM

    model = transformers_model()
    model.save_pretrained(tmp_path / "float")
    config = BitsAndBytesConfig(load_in_8bit=True)
    reference = LlamaForCausalLM.from_pretrained(
        tmp_path / "float", quantization_config=config, device_map="cpu", dtype=torch.float32
    )
    reference.save_pretrained(tmp_path / "int8")
    saved = load_file(tmp_path / "int8" / "model.safetensors")
    int8.quantize_model_int8(model)
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(value, saved[key]) for key, value in model.state_dict().items())
    model.load_state_dict(saved)

    lora.add_lora(model, rank=4, alpha=8)
    torch.manual_seed(1)
    for parameter in lora.trainable_parameters(model):
        nn.init.normal_(parameter, std=0.1)
    lora.save_adapter(model, tmp_path / "adapter")
    reference = PeftModel.from_pretrained(reference, tmp_path / "adapter")
    ids = torch.randint(5, 97, (2, 11), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(int8, "UNIT", 6.200124e-05)
    with torch.no_grad():
        assert torch.equal(model.train()(ids).logits, reference.train()(ids).logits)
        assert relative(model.eval()(ids).logits, reference.eval()(ids).logits) <= 1e-6


def test_planted_outliers_hurt_plain_int8_and_not_the_decomposition():
    torch.manual_seed(0)
    model = llama.Llama(llama.Config(**TINY)).eval()
    ids = torch.randint(5, 97, (2, 16))
    with torch.no_grad():
        exact = model(ids)
        int8.plant_outliers(model, [3, 40], factor=64.0)
        torch.testing.assert_close(model(ids), exact, rtol=1e-4, atol=1e-5)
        found = int8.trace_outliers(model, lambda: model(ids))
        assert found["model.layers.0.self_attn.q_proj"].tolist() == [3, 40]
        assert found["model.layers.1.mlp.down_proj"].numel() == 0
        plain, split = (
            int8.quantize_model_int8(copy.deepcopy(model), threshold)(ids)
            for threshold in (0.0, 6.0)
        )
    assert relative(plain, exact) > 3 * relative(split, exact)


def test_a_shared_layer_stays_shared_and_other_kinds_stay():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.second = self.first
            self.attention = nn.MultiheadAttention(8, 2)  # its out_proj is read by name, not called
            self.lm_head = nn.Linear(8, 3)

    model = int8.quantize_model_int8(Odd())
    assert model.first is model.second and isinstance(model.first, int8.Int8Linear)
    assert isinstance(model.attention.out_proj, nn.Linear) and type(model.lm_head) is nn.Linear


def broken(value):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data[0, 0] = value
    return model


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: int8.quantize_model_int8(nn.Linear(4, 4)), "no nn.Linear"),
        (lambda: int8.quantize_model_int8(broken(1.0), threshold=-1), "-1"),
        (lambda: int8.quantize_model_int8(broken(1.0), threshold=float("nan")), "nan"),
        (lambda: int8.quantize_model_int8(broken(1e6)), r"^1 has a weight of magnitude 1e\+06"),
        (lambda: int8.quantize_model_int8(broken(float("nan"))), "magnitude nan"),
        (lambda: int8.quantize_model_int8(int8.quantize_model_int8(broken(1.0))), "already"),
        (
            lambda: int8.quantize_model_int8(lora.add_lora(llama.Llama(llama.Config(**TINY)))),
            "quantize the model first",
        ),
        (
            lambda: int8.Int8Linear.from_linear(nn.Linear(4, 4)).load_state_dict(
                nn.Linear(4, 4).state_dict()
            ),
            "float32, not int8",
        ),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, says):
    with pytest.raises(MiniloraError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_error_leaves_the_model_whole():
    model = broken(1e6)
    with pytest.raises(MiniloraError):
        int8.quantize_model_int8(model)
    assert all(type(layer) is nn.Linear for layer in model)

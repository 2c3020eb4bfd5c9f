"""Small models, and PEFT's adapter with the numbers of ours."""

import copy

import pytest
import torch
from llama_sizes import sizes
from torch import nn

from minilora import lora

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


VARIANTS = ["lora", "rslora", "dora", "rsdora"]


class Toy(nn.Module):
    """Linear layers of unlike sizes, one with a bias, an embedding and a head."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(11, 6)
        self.wide = nn.Linear(6, 10)
        self.narrow = nn.Linear(10, 7, bias=False)
        self.lm_head = nn.Linear(7, 11, bias=False)

    def forward(self, ids):
        return self.lm_head(torch.tanh(self.narrow(torch.tanh(self.wide(self.embed_tokens(ids))))))


def toy(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return Toy().to(dtype)


def llama(tied=False, dtype=torch.float32):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        **sizes(vocab=48, hidden=24, ffn=40, layers=2, heads=4, kv_heads=2, context=32),
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval().to(dtype)


def scramble(model, seed=3):
    """Random, non-zero numbers in everything that trains, so that no error can hide behind B =
    0.
    """
    torch.manual_seed(seed)
    for parameter in lora.trainable_parameters(model):
        noise = torch.randn(parameter.shape, dtype=parameter.dtype)
        parameter.data.copy_(parameter.data + 0.1 * noise if parameter.ndim == 1 else 0.3 * noise)
    return model


def peft_twin(base, config, model, name="default"):
    """PEFT's model with the weights of our adapter, set through PEFT's own function."""
    twin = peft.get_peft_model(copy.deepcopy(base), config, adapter_name=name)
    state = lora.adapter_state(model, name)
    result = peft.set_peft_model_state_dict(twin, state, adapter_name=name)
    assert not result.unexpected_keys
    return twin


def logits(model, ids):
    out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits


IDS = torch.tensor([[1, 5, 2, 9], [3, 3, 0, 10], [7, 8, 4, 6]])

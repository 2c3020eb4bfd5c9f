"""Small models with adapters to be saved."""

import pytest
import torch
from llama_sizes import sizes

from minilora import lora

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


IDS = torch.tensor([[1, 5, 2, 9, 30], [3, 3, 0, 10, 47]])


def llama(seed=1, hidden=24, tied=False):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **sizes(vocab=48, hidden=hidden, ffn=40, layers=2, heads=4, kv_heads=2, context=32),
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def scramble(parameters, seed=3):
    torch.manual_seed(seed)
    for p in parameters:
        p.data.copy_(
            p.data * 1.1 + 0.02 * torch.randn_like(p) if p.ndim == 1 else 0.3 * torch.randn_like(p)
        )


def ours_with(config, seed=1):
    model = lora.add_adapter(llama(seed), config)
    scramble(lora.trainable_parameters(model))
    return model

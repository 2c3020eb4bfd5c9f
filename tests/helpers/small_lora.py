"""A Llama of 0.1M parameters with adapters that hold numbers, and a short training of them."""

import torch
from llama_sizes import sizes
from torch import nn

from minilora import lora
from minilora.llama import Config, Llama

IDS = torch.tensor([[1, 5, 2, 9, 30], [3, 3, 0, 10, 39]])


def tiny(tied=False):
    torch.manual_seed(0)
    config = Config(
        **sizes(vocab=40, hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, context=32),
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    return Llama(config).eval()


def scramble(model):
    for parameter in lora.trainable_parameters(model):
        nn.init.normal_(parameter, std=0.1)
    return model


def train(model, steps=3):
    optimizer = torch.optim.AdamW(lora.trainable_parameters(model), lr=1e-2)
    for _ in range(steps):
        logits = model(IDS)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def base_bits(model):
    return {
        n.replace(".base.", "."): t.clone()
        for n, t in model.state_dict().items()
        if "lora_" not in n and "modules_to_save" not in n
    }

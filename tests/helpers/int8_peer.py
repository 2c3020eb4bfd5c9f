"""What both test files of int8 need: inputs and weights with edge cases in them, and bitsandbytes'
layer beside ours.
"""

import bitsandbytes as bnb
import torch
from llama_sizes import sizes
from torch import nn

TINY = sizes(vocab=97, hidden=64, ffn=96, layers=2, heads=4, kv_heads=2)


def inputs(rows, width, dtype=torch.float32, outliers=0, seed=0):
    """Random x (rows, width) with some large values, a row of zeros and a value that lies on the
    threshold.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator)
    x.view(-1)[torch.randperm(x.numel(), generator=generator)[:outliers]] *= 30
    if rows > 2:
        x[1] = 0
        x[2, 0] = 6.0
    return x.to(dtype)


def weights(out, width, seed=1):
    W = torch.randn(out, width, generator=torch.Generator().manual_seed(seed)) * 0.05
    if out > 2:
        W[1] = 0
        W[2] = torch.arange(width) % 4 - 1.5  # many values at ±1/3 and ±1 of the maximum
        W[2, : min(width, 3)] = torch.tensor([127.0, 0.5, 1.5])[: min(width, 3)]  # ties
    return W


def theirs(linear: nn.Linear, threshold=6.0):
    """bitsandbytes' layer with the same weights, quantized."""
    layer = bnb.nn.Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=threshold,
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu").requires_grad_(False)


def float_linear(out, width, bias=True, seed=1):
    linear = nn.Linear(width, out, bias=bias)
    linear.weight.data = weights(out, width, seed)
    if bias:
        linear.bias.data = torch.randn(out, generator=torch.Generator().manual_seed(seed))
    return linear


def relative(a, b):
    a, b = a.double(), b.double()
    return ((a - b).norm() / b.norm().clamp_min(1e-12)).item()

"""mlx-lm's adapters. mlx runs on Apple's chips only, so its two layers are written out here, as
mlx_lm/tuner/lora.py and dora.py have them.
"""

import json

import pytest
import torch
from little_llamas import IDS, our_llama, ours
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from minilora import lora
from minilora.errors import MiniloraError


class MlxLoRA(nn.Module):
    def __init__(self, linear, a, b, scale):
        super().__init__()
        self.linear, self.a, self.b, self.scale = linear, a, b, scale

    def forward(self, x):
        return self.linear(x) + self.scale * ((x @ self.a) @ self.b)


class MlxDoRA(MlxLoRA):
    m = None

    def forward(self, x):
        w = self.linear.weight
        out = x @ w.T + self.scale * ((x @ self.a) @ self.b)
        adapted = w + (self.scale * self.b.T) @ self.a.T
        out = (self.m / torch.linalg.norm(adapted, dim=1)) * out
        return out if self.linear.bias is None else out + self.linear.bias


class MlxEmbedding(nn.Module):
    def __init__(self, table, a, b, scale):
        super().__init__()
        self.table, self.a, self.b, self.scale = table, a, b, scale

    def forward(self, ids):
        return F.embedding(ids, self.table) + self.scale * (self.a[ids] @ self.b)

    def as_linear(self, x):
        return x @ self.table.T + self.scale * ((x @ self.b.T) @ self.a.T)


class MlxHead(nn.Module):
    def __init__(self, table):
        super().__init__()
        self.table = [table]

    def forward(self, x):
        return self.table[0].as_linear(x)


def settings(kind="lora", **parameters):
    return {
        "fine_tune_type": kind,
        "num_layers": 1,
        "model": "mlx-community/little",
        "iters": 100,
        "lora_parameters": {"rank": 3, "scale": 20.0, "dropout": 0.0} | parameters,
    }


def write(folder, state, fields):
    save_file(state, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(fields))


def drawn(*shape):
    return 0.1 * torch.randn(shape)


def mlx_linear(model, path, kind, scale, state):
    """Put mlx-lm's layer on `model` and its tensors into `state`."""
    linear = model.get_submodule(path)
    a, b = drawn(linear.in_features, 3), drawn(3, linear.out_features)
    state |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
    layer = (MlxDoRA if kind == "dora" else MlxLoRA)(linear, a, b, scale)
    if kind == "dora":
        layer.m = state[f"{path}.m"] = linear.weight.norm(dim=1) * (1 + drawn(linear.out_features))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("scale", [20.0, 2, 0.37])
def test_its_layers_answer_as_they_did(tmp_path, kind, scale):
    torch.manual_seed(3)
    model, state = our_llama(), {}
    for path in ("model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"):
        mlx_linear(model, path, kind, scale, state)
    write(tmp_path, {k: v.detach() for k, v in state.items()}, settings(kind, scale=scale))
    torch.testing.assert_close(ours(tmp_path), model(IDS), rtol=0, atol=1e-5)
    mine = lora.load_adapter(our_llama(), tmp_path)
    lora.save_adapter(mine, tmp_path / "as PEFT")
    torch.testing.assert_close(ours(tmp_path / "as PEFT"), model(IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_its_adapted_embedding_answers_as_it_did(tmp_path, tied):
    torch.manual_seed(4)
    model = our_llama(tied=tied)
    table = model.model.embed_tokens.weight.detach()
    a, b = drawn(*table.shape[:1], 3), drawn(3, table.shape[1])
    embedding = MlxEmbedding(table, a, b, 20.0)
    model.model.embed_tokens = embedding
    if tied:
        model.lm_head = MlxHead(embedding)
    state = {"model.embed_tokens.lora_a": a, "model.embed_tokens.lora_b": b}
    write(tmp_path, state, settings())
    torch.testing.assert_close(ours(tmp_path, tied=tied), model(IDS), rtol=0, atol=1e-5)


Q = "model.layers.0.self_attn.q_proj"
GOOD = {f"{Q}.lora_a": torch.ones(24, 3), f"{Q}.lora_b": torch.ones(3, 24)}


@pytest.mark.parametrize(
    "state, fields, message",
    [
        ({f"{Q}.weight": torch.ones(24, 24)}, settings("full"), "holds no adapter but whole"),
        (GOOD, {"fine_tune_type": "lora"}, "no lora_parameters"),
        (GOOD, settings(scale="20"), 'lora_parameters.scale is "20", where a number'),
        (GOOD, settings(scale=0), "lora_parameters.scale is 0, not more than 0"),
        (GOOD, settings(rank=4), r"has shape \(3, 24\), the model needs \(4, 24\)"),
        (GOOD, {"lora_parameters": {"rank": 3, "alpha": 16}}, "no scale"),
        (GOOD, settings(dropout=2), "dropout is 2"),
        (GOOD | {f"{Q}.scales": torch.ones(3)}, settings(), "scales.* is no lora_a"),
        (
            GOOD | {"model.layers.5.mlp.up_proj.lora_a": torch.ones(24, 3)},
            settings(),
            "no place|lacks",
        ),
        ({f"{Q}.lora_a": torch.ones(24, 3)}, settings(), "lacks .*lora_B"),
        (GOOD, settings("dora"), "lacks .*magnitude"),
        ({}, settings(), "match no module"),
        (
            {f"{Q}.lora_a": torch.ones(2, 24, 3), f"{Q}.lora_b": torch.ones(2, 3, 24)},
            settings(),
            "is no lora_a",
        ),
        (
            {"model.embed_tokens.m": torch.ones(48)},
            settings("dora"),
            "embedding under mlx-lm's DoRA",
        ),
    ],
)
def test_what_is_not_read_is_said(tmp_path, state, fields, message):
    write(tmp_path, state, fields)
    model = our_llama()
    with pytest.raises(MiniloraError, match=message) as caught:
        lora.load_adapter(model, tmp_path)
    assert str(tmp_path) in str(caught.value) and not lora.adapted_layers(model)


def test_its_weights_without_their_scale_are_not_guessed_at(tmp_path):
    save_file(GOOD, tmp_path / "adapters.safetensors")
    with pytest.raises(MiniloraError, match="not the scale that goes with it"):
        ours(tmp_path)

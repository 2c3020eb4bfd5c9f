"""Who watches a base layer by a hook is called, although the step that trains is a fused one."""

import pytest
import torch
from small_lora import IDS, scramble, tiny
from torch import nn

from minilora import lora
from minilora.lora import layer as layer_module
from minilora.qlora import quantize_model, quantize_model_int8

REGISTER = {
    "forward": nn.Module.register_forward_hook,
    "forward pre": nn.Module.register_forward_pre_hook,
    "backward": nn.Module.register_full_backward_hook,
    "backward pre": nn.Module.register_full_backward_pre_hook,
}
BASES = {"float": lambda m: m, "4-bit": quantize_model, "int8": quantize_model_int8}


def outcome(model):
    model.zero_grad()
    y = model(IDS)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in lora.trainable_parameters(model))]


@pytest.mark.parametrize("register", REGISTER.values(), ids=REGISTER)
@pytest.mark.parametrize("prepare", BASES.values(), ids=BASES)
def test_a_hook_on_the_base_is_called_and_changes_nothing(prepare, register):
    model = scramble(lora.add_lora(prepare(tiny()), 4)).train()
    wanted, heard = outcome(model), []
    base = model.model.layers[1].mlp.up_proj.base
    handle = register(base, lambda *_: heard.append(1))
    for found, value in zip(outcome(model), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)
    assert heard == [1]
    handle.remove()
    assert all(torch.equal(found, value) for found, value in zip(outcome(model), wanted))
    assert heard == [1]


@pytest.mark.parametrize("prepare", [lambda m: m, quantize_model], ids=["float", "4-bit"])
def test_what_a_hook_returns_is_what_the_adapter_adds_to(prepare):
    model = scramble(lora.add_lora(prepare(tiny()), 4))
    layer = model.model.layers[0].self_attn.q_proj
    x = torch.randn(3, 64)
    detour = layer(x) - layer.base(x)
    with_hook = layer.base.register_forward_hook(lambda module, args, y: y * 0)
    torch.testing.assert_close(layer(x), detour, rtol=1e-4, atol=1e-4)
    with_hook.remove()
    with_hook = layer.base.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
    torch.testing.assert_close(layer(x), detour, rtol=1e-4, atol=1e-4)


def test_without_a_hook_the_step_is_the_fused_one(monkeypatch):
    """Else the tests above would hold without a fallback."""
    steps = []
    whole = layer_module.fused_lora
    monkeypatch.setattr(layer_module, "fused_lora", lambda *args: steps.append(1) or whole(*args))
    model = lora.add_lora(tiny(), 4)
    model(IDS)
    assert len(steps) == 14

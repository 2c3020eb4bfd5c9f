"""The memory ladder: what is measured on the shipped base is what the closed forms say, rung by
rung.
"""

import pytest
import torch

from minilora.budget.measure import ladder

SHORT = 256


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ladder.RUNGS if name != "frozen"])
def test_every_rung_takes_what_the_closed_forms_say(name):
    found = ladder.measured(name, seq=SHORT)
    assert sum(found.kinds.values()) == found.peak and all(
        found.kinds[kind] <= found.most[kind] for kind in found.kinds
    )
    paper = ladder.on_paper("tiny", name, seq=SHORT, library="minilora", device="cpu")
    assert found.peak == pytest.approx(paper, rel=0.02)


def test_the_floor_is_the_weights_and_one_forward_pass():
    found = ladder.measured("frozen", seq=SHORT)
    assert (
        found.kinds["weights"]
        == ladder.on_paper("tiny", "frozen")
        == sum(p.nbytes for p in found.model.parameters())
    )
    assert found.optimizer is None and not any(p.requires_grad for p in found.model.parameters())
    assert found.kinds["temporaries"] > 0


def test_a_step_trains_what_should_train_and_nothing_else():
    torch.manual_seed(0)
    found = ladder.measured("+ 8-bit optimizer", seq=SHORT)
    before = {name: p.detach().clone() for name, p in found.model.named_parameters()}
    packed = [
        layer.weight.clone() for layer in found.model.modules() if hasattr(layer, "quantized")
    ]
    assert ladder.pace(found, times=1) > 0
    moved = {name for name, p in found.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)
    assert all(
        torch.equal(layer.weight, old)
        for layer, old in zip((l for l in found.model.modules() if hasattr(l, "quantized")), packed)
    )


def test_the_ladder_goes_down_at_seven_billion():
    sizes = [
        ladder.on_paper("llama-7b", name, rank=64) for name in ladder.RUNGS if name != "frozen"
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert ladder.on_paper("llama-7b", "frozen") == 2 * 6_738_415_616

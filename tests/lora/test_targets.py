"""Which modules a target means: what PEFT adapts for the same words, and refuses for the same."""

import copy

import pytest
import torch
from torch import nn

from minilora import lora
from minilora.errors import MiniloraError

peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.proj, self.gate = (nn.Linear(4, 4) for _ in range(3))


class Names(nn.Module):
    """Paths of which one is the end of another, with and without a dot between."""

    def __init__(self, inner=True):
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(12))
        if not inner:
            for block in self.layers:
                del block.proj
        self.q_proj = nn.Linear(4, 4)
        self.table = nn.Embedding(5, 4)


def theirs(model, targets):
    twin = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    kinds = (peft.tuners.lora.Linear, peft.tuners.lora.Embedding)
    return [
        name.removeprefix("base_model.model.")
        for name, module in twin.named_modules()
        if isinstance(module, kinds)
    ]


@pytest.mark.parametrize(
    "targets",
    [
        ["proj"],
        ["q_proj"],
        ["q_proj", "table"],
        ["layers.1.gate"],
        ["1.gate"],
        ["layers.11.proj", "0.q_proj"],
        r".*proj",
        r"layers\.1\..*",
        r"layers\.\d\.(gate|proj)",
        "q_proj",
    ],
    ids=str,
)
def test_a_target_means_what_it_means_to_peft(targets):
    torch.manual_seed(0)
    base = Names()
    ours = lora.add_lora(copy.deepcopy(base), 2, targets=targets)
    assert list(lora.adapted_layers(ours)) == theirs(copy.deepcopy(base), targets)


@pytest.mark.parametrize(
    "targets", [["proj"], ["_proj"], ["ate"], ["1"], ["layers"], ["ayers.1.gate"], "proj", "ate"]
)
def test_a_piece_of_a_name_is_refused_as_by_peft(targets):
    """Without a module of just that name it would adapt whatever happens to end so."""
    base = Names(inner=False)
    with pytest.raises(ValueError, match="not found|not supported"):
        theirs(copy.deepcopy(base), targets)
    with pytest.raises(MiniloraError, match="match(es)? no module|is a ModuleList|is a Block"):
        lora.add_lora(base, 2, targets=targets)
    assert not lora.adapted_layers(base)

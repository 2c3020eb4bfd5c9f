"""One rule says which device computes in bf16, and all ask it."""

import ast
from pathlib import Path

import pytest
import torch
from pretended_card import pretended_card
from torch import nn

import minilora
from minilora.cli import doctor
from minilora.hub import loading
from minilora.qlora.base import load_base
from minilora.recipes import memory_warning
from minilora.system import precision


class OnDevice(nn.Module):
    """A model that says it is on another device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.place = torch.device(device)

    def parameters(self, recurse: bool = True):
        yield type("Parameter", (), {"device": self.place})


@pytest.mark.parametrize(
    "capability, has", [((7, 5), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)]
)
def test_cards_from_ampere_on_have_it(capability, has):
    """All places that decide it agree: training, loading, the hub, the warning, the doctor."""
    with pretended_card(capability):
        for device in ("cuda", "cuda:0", torch.device("cuda", 0)):
            assert precision.has_bf16(device) is has
        half = torch.bfloat16 if has else torch.float16
        assert precision.settle_precision(OnDevice("cuda:0"), "auto") == ("bf16" if has else "fp16")
        assert loading.compute_dtype("cuda:0") is half
        assert memory_warning.keeps_halves("cuda:0") is has
    assert ("no bf16" in doctor._gpu_line("a card", 16e9, capability[0])) is not has


def test_the_device_is_asked_and_not_the_first_card(monkeypatch):
    """A T4 beside an A100."""
    cards = {0: (8, 0), 1: (7, 5)}
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device=None: cards[torch.device(device).index]
    )
    assert precision.has_bf16("cuda:0") and not precision.has_bf16("cuda:1")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_a_base_is_kept_in_bf16_where_it_is_and_nothing_else_trains(tiny_folder, capability):
    with pretended_card(capability):
        kinds = {
            (device, trained): next(
                load_base(tiny_folder, device, trained=trained).parameters()
            ).dtype
            for device in ("cuda", "cpu")
            for trained in (False, True)
        }
    half = torch.bfloat16 if capability >= (8, 0) else torch.float32
    assert kinds.pop(("cuda", False)) is half and set(kinds.values()) == {torch.float32}


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_elsewhere_it_is_not_taken(device):
    """Beside a card that has it, too."""
    with pretended_card((8, 0)):
        assert precision.has_bf16(device) is False
        assert precision.settle_precision(OnDevice(device), "auto") == "fp32"
        assert loading.compute_dtype(device) is torch.float32
        assert memory_warning.keeps_halves(device) is False


def test_what_is_asked_for_is_not_changed():
    for device in ("cpu", "cuda:0", "mps"):
        for wanted in ("fp32", "bf16", "fp16"):
            assert precision.settle_precision(OnDevice(device), wanted) == wanted


def test_nobody_decides_it_again():
    """precision.py asks a card for its capability to find out; this_card.py looks for Hopper."""
    root, asking = Path(minilora.__file__).parent, set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = node.attr if isinstance(node, ast.Attribute) else None
            if named in ("get_device_capability", "is_bf16_supported"):
                asking.add(path.relative_to(root).as_posix())
    assert asking == {"system/precision.py", "budget/this_card.py"}

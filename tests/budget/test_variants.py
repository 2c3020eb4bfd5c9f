"""What dropout and DoRA add: the closed form beside the ledger, which rehearses such a step of our
own layers.
"""

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from minilora import lora
from minilora.budget import estimate
from minilora.budget.catalog import Shape
from minilora.budget.forms import variants
from minilora.budget.measure import fake_run, ledger
from minilora.budget.setup import make

pytestmark = pytest.mark.parity  # beside the library that people use

SMALL = Shape("small", 1024, 2816, 3, 8, 8, 8000)


def peak(setup, variant, dropout, monkeypatch):
    """The ledger's peak, the adapters being of that variant and dropping out."""
    plan, add = fake_run.Plan(setup), lora.add_lora
    with monkeypatch.context() as patched, FakeTensorMode():
        patched.setattr(
            lora, "add_lora", lambda *args: add(*args, dropout=dropout, variant=variant)
        )
        return ledger.watch_steps(fake_run.build(plan), plan, 1).peak


@pytest.mark.slow
@pytest.mark.parametrize("variant, dropout", [("lora", 0.1), ("dora", 0.0), ("dora", 0.1)])
@pytest.mark.parametrize(
    "method, precision, checkpointing, targets",
    [
        ("qlora", "bf16", False, "all"),
        ("qlora", "bf16", True, "all"),
        ("lora", "fp32", False, "q_proj,v_proj"),
    ],
)
def test_a_forecast_with_the_margin_lies_above_the_ledger_by_less_than_a_third(
    method, precision, checkpointing, targets, variant, dropout, monkeypatch
):
    setup = make(
        SMALL,
        method=method,
        precision=precision,
        checkpointing=checkpointing,
        targets=targets,
        batch=4,
        seq=256,
        library="minilora",
        device="cpu",
        detour="plain",
    )
    stands, told = peak(setup, variant, dropout, monkeypatch), estimate(setup).peak_allocated
    assert (
        told
        < 0.96 * stands
        <= 0.96 * (told + variants.added(setup, variant, dropout))
        < 0.96 * 1.33 * stands
    )


def test_nothing_is_added_to_lora_without_dropout_nor_to_full_training():
    assert variants.added(make(SMALL, method="lora")) == 0
    assert variants.added(make(SMALL, method="full"), "dora", 0.1) == 0

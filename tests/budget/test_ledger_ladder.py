"""The rungs that fake tensors cannot climb, on real ones: 8-bit averages and single quantization,
beside the closed forms.
"""

import pytest
import torch

from minilora import lora
from minilora.budget import estimate
from minilora.budget.catalog import Shape
from minilora.budget.measure.fake_run import Plan
from minilora.budget.measure.ledger import watch_steps
from minilora.budget.setup import make
from minilora.llama import Config, Llama
from minilora.qlora import quantize_model
from minilora.train import optim

pytestmark = pytest.mark.parity  # beside the library that people use

# on a CPU decoding takes a little memory of its own, which the form, made for a GPU's kernel,
# leaves out
NEAR = 0.02
SHAPE = Shape("small", hidden=256, ffn=512, layers=3, heads=4, kv_heads=2, vocab=600)


def a_run(eight: bool, double: bool = True):
    """(ledger of a real QLoRA step, budget on paper, optimizer)."""
    config = Config(
        SHAPE.vocab,
        SHAPE.hidden,
        SHAPE.ffn,
        SHAPE.layers,
        SHAPE.heads,
        SHAPE.kv_heads,
        SHAPE.head_dim,
        SHAPE.context,
    )
    torch.manual_seed(0)
    model = lora.add_lora(quantize_model(Llama(config).to(torch.bfloat16), double=double), 16, 16)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = (
        optim.AdamW8bit(trained, lr=1e-4)
        if eight
        else torch.optim.AdamW(trained, lr=1e-4, fused=True)
    )
    setup = make(
        SHAPE,
        method="qlora",
        rank=16,
        seq=192,
        checkpointing=False,
        library="minilora",
        device="cpu",
        foreach=False,
    )
    book = watch_steps(model, Plan(setup, clip=0.0), optimizer=optimizer)
    return (
        book,
        estimate(setup, double=double, optimizer="adamw8bit" if eight else "adamw"),
        optimizer,
    )


def before_update(book) -> int:
    """The peak of forward and backward: the update itself works in one kernel on paper, in several
    steps of plain torch in ours.
    """
    return max(book.phases[name] for name in ("forward", "backward"))


def test_eight_bit_averages_are_booked_as_they_are_kept():
    book, paper, optimizer = a_run(eight=True)
    assert book.kinds["optimizer"] == optimizer.state_bytes()
    code_books = 2 * 256 * 4  # bitsandbytes keeps a copy on the card; ours looks the levels up
    assert paper.parts["optimizer states"].bytes == optimizer.state_bytes() + code_books
    assert before_update(book) == pytest.approx(
        max(paper.moments[name].bytes for name in ("forward", "backward")), rel=NEAR
    )


@pytest.mark.parametrize("double", [True, False])
def test_the_given_optimizer_takes_the_place_of_the_plans(double):
    book, paper, _ = a_run(eight=False, double=double)
    trained = paper.trainable
    # two averages, and a counter for each tensor
    assert (
        book.kinds["optimizer"] == 8 * trained + 4 * len(book.plan.setup.targets) * 2 * SHAPE.layers
    )
    assert book.peak == pytest.approx(paper.peak_allocated, rel=NEAR)

"""The loss of a model as it answers: without dropout, with the mask, in the precision asked for."""

import pytest
import torch
import torch.nn.functional as F

from minilora import lora, train
from minilora.errors import MiniloraError
from minilora.llama import Config, Llama
from minilora.text import IGNORE, collate
from minilora.train.loss import pad_id_of

ROWS = [
    ([1, 5, 6, 7, 2], [IGNORE, IGNORE, IGNORE, 7, 2]),
    ([1, 9, 2], [IGNORE, 9, 2]),
    ([1, 8, 8, 3], [IGNORE, 8, 8, 3]),
]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Llama(Config(37, 16, 24, 1, 2, 1, pad_token_id=0, initializer_range=0.5))


class Foreign(torch.nn.Module):
    """A model of another make: logits (B, T, V) in its own type; it keeps the masks it got."""

    def __init__(self, inner, dtype=torch.float32):
        super().__init__()
        self.inner, self.dtype, self.masks = inner, dtype, []

    def forward(self, ids, attention_mask=None):
        self.masks.append(attention_mask)
        return self.inner(ids, attention_mask).to(self.dtype)


def test_dropout_is_off_while_the_loss_is_measured_and_on_behind_it(model):
    still = train.evaluate_loss(model, ROWS)
    adapted = lora.add_lora(model, rank=4, dropout=0.9).train()
    for parameter in lora.trainable_parameters(adapted):
        parameter.data.normal_(0, 0.5)
    first = train.evaluate_loss(adapted, ROWS)
    assert first == train.evaluate_loss(adapted, ROWS) != pytest.approx(still, abs=1e-3)
    assert all(module.training for module in adapted.modules())


def test_padding_is_masked_for_a_model_of_another_make(model):
    other = Foreign(model)
    assert train.evaluate_loss(other, ROWS) == pytest.approx(train.evaluate_loss(model, ROWS))
    (mask,) = other.masks
    assert mask is not None and mask.sum(1).tolist() == [3, 4, 5]


def test_logits_of_half_precision_are_summed_in_float32(model):
    other = Foreign(model, torch.bfloat16)
    ids, labels, mask = collate(ROWS, 0)
    total, tokens = train.loss_sum(other, (ids, labels, mask))
    logits = model(ids, mask).bfloat16().float()[:, :-1].flatten(0, 1)
    wanted = F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    assert total.dtype == torch.float32 and torch.equal(total, wanted) and tokens == 7


def test_the_loss_is_measured_in_the_precision_asked_for(model):
    exact = train.evaluate_loss(model, ROWS, precision="fp32")
    half = train.evaluate_loss(model, ROWS, precision="bf16")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        wanted = train.loss_sum(model, collate(ROWS, 0))[0].item() / 7
    assert half == pytest.approx(wanted, abs=2e-3) and abs(half - exact) > 1e-4


def test_rows_without_an_answer_have_no_loss(model):
    with pytest.raises(MiniloraError, match="no token of these rows is learned"):
        train.evaluate_loss(model, [([1, 2], [IGNORE, IGNORE])])


@pytest.mark.parametrize("given, used", [(None, 0), (-1, 0), (0, 0), (7, 7)])
def test_a_padding_id_that_is_none(model, given, used):
    """-1 stands in the config.json of old conversions; transformers takes it for none, too."""
    model.config.pad_token_id = given
    assert pad_id_of(model) == used
    each = sum(train.evaluate_loss(model, [row]) * sum(x != IGNORE for x in row[1]) for row in ROWS)
    tokens = sum(x != IGNORE for _, labels in ROWS for x in labels)
    assert train.evaluate_loss(model, ROWS) == pytest.approx(each / tokens, rel=1e-6)


def test_a_model_that_says_nothing_of_padding(model):
    assert pad_id_of(torch.nn.Linear(2, 2)) == 0


@pytest.mark.parametrize("odd", [37, -1])
def test_an_id_that_the_model_does_not_have_is_named(model, odd):
    with pytest.raises(MiniloraError, match=f"row 2 of the rows holds token id {odd}, the model"):
        train.evaluate_loss(model, [ROWS[0], ([1, odd, 2], [IGNORE, IGNORE, 2])])

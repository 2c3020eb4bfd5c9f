"""KL as torch has it, over the positions that count, and 0 for a model beside itself."""

import pytest
import torch
import torch.nn.functional as F
from llama_sizes import sizes

from minilora import train
from minilora.errors import MiniloraError
from minilora.llama import Config, Llama


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    shape = sizes(vocab=37, hidden=16, ffn=24, layers=2, heads=2, kv_heads=1, context=64)
    return Llama(Config(**shape, bos_token_id=1, eos_token_id=2)).eval()


def test_kl_is_torchs():
    torch.manual_seed(0)
    p, q = (torch.randn(11, 37, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    wanted = F.kl_div(q, p, log_target=True, reduction="batchmean").item()
    assert train.kl(p, q) == pytest.approx(wanted, rel=1e-12) and train.kl(p, p) == 0
    assert train.kl(p, q) != pytest.approx(train.kl(q, p), rel=1e-3)  # it has a direction


def test_only_the_positions_that_count_are_compared(model):
    rows = [([1, 5, 6, 7, 2], [-100, -100, -100, 7, 2]), ([1, 9, 2], [-100, 9, 2])]
    found = train.log_probabilities(model, rows)
    assert found.shape == (4, 37) and found.dtype == torch.float64
    with torch.no_grad():
        whole = model(torch.tensor([[1, 5, 6, 7, 2]]))[0].double().log_softmax(-1)
    torch.testing.assert_close(found[:2], whole[2:4])
    with pytest.raises(MiniloraError, match="no token to predict"):
        train.log_probabilities(model, [([1, 5], [-100, -100])])


def test_probabilities_are_rounded_in_float64(model):
    """So that a divergence of 10⁻¹² is no rounding error."""
    found = train.log_probabilities(model, [([1, 5, 6, 7, 2], [-100, 5, 6, 7, 2])])
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4).double(), rtol=0, atol=1e-14)


def test_its_own_text_is_always_the_same_and_counts_but_for_its_start(model):
    rows = train.own_text(model, start=1, rows=3, length=7)
    assert rows == train.own_text(model, start=1, rows=3, length=7)
    assert all(ids[0] == 1 and labels == [-100, *ids[1:]] and len(ids) <= 8 for ids, labels in rows)
    assert len({tuple(ids) for ids, _ in rows}) == 3


def test_what_is_padded_behind_the_end_is_left_out(model):
    rows = train.own_text(model, start=1, rows=24, length=40)
    ended = [ids for ids, _ in rows if 2 in ids[1:]]
    assert ended and all(ids.index(2, 1) == len(ids) - 1 for ids in ended)
    assert all(len(ids) == 41 for ids, _ in rows if ids not in ended)


def test_an_id_that_the_model_lacks_is_named(model):
    """A token of the data that was added to the tokenizer and not to the model."""
    train.log_probabilities(model, [([1, 36], [-100, 36])])
    for strange in (37, -1):
        with pytest.raises(MiniloraError, match=f"row 2 of the data holds token id {strange}"):
            train.log_probabilities(model, [([1, 36], [-100, 36]), ([1, strange], [-100, strange])])

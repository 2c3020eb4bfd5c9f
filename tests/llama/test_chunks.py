"""A text that comes in pieces: several tokens at a time behind a cache, padded on the left or not,
against transformers' model with its own cache.
"""

import pytest
import torch
from llama_twins import tokens, twins

from minilora.llama import Cache

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def in_pieces(model, ids, mask, cuts):
    """Our logits (B, T, V), the pieces ending at `cuts`."""
    cache, parts, seen = Cache(ids.shape[1]), [], 0
    for stop in cuts:
        real = None if mask is None else mask[:, :stop]
        parts.append(model(ids[:, seen:stop], real, cache))
        seen = stop
    assert cache.length == ids.shape[1]
    return torch.cat(parts, dim=1)


def theirs_in_pieces(model, ids, mask, cuts):
    cache, parts, seen = transformers.DynamicCache(config=model.config), [], 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for stop in cuts:
        out = model(
            ids[:, seen:stop],
            attention_mask=mask[:, :stop],
            position_ids=positions[:, seen:stop],
            past_key_values=cache,
            use_cache=True,
        )
        parts.append(out.logits)
        seen = stop
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("cuts", [(7, 13), (6, 9, 13), (7, 8, 13), (1, 13)], ids=str)
@pytest.mark.parametrize("padded", [False, True], ids=["full", "left-padded"])
@pytest.mark.parametrize("seed", [0, 3, 5])
@torch.no_grad()
def test_a_second_chunk_equals_transformers(seed, padded, cuts):
    theirs, ours = twins(seed)
    ids, mask = tokens(ours, 3, 13), torch.ones(3, 13, dtype=torch.long)
    if padded:
        mask[1, :4] = 0
        mask[2, :6] = 0
    mine = in_pieces(ours, ids, mask if padded else None, cuts)
    reference = theirs_in_pieces(theirs, ids, mask, cuts)
    real = mask.bool()
    assert (mine - reference)[real].abs().max() <= 1e-5
    whole = ours(ids, mask if padded else None)  # and what it gives in one piece
    assert (mine - whole)[real].abs().max() <= 1e-5


def test_checkpointing_leaves_the_cache_alone():
    """Gradients are asked for here, as in a policy-gradient loop that reads a prompt by pieces."""
    _, ours = twins(3)
    ids = tokens(ours, 2, 9)
    whole = ours(ids)
    ours.gradient_checkpointing = True
    pieces = in_pieces(ours, ids, None, (5, 9))
    assert (pieces - whole).abs().max() <= 1e-5


@torch.no_grad()
def test_a_later_token_cannot_change_an_earlier_one_in_its_chunk():
    _, ours = twins(3)
    ids = tokens(ours, 1, 9)
    other = ids.clone()
    other[0, 8] = (ids[0, 8] + 1) % ours.config.vocab_size
    before, after = (in_pieces(ours, each, None, (5, 9)) for each in (ids, other))
    assert torch.equal(before[:, :8], after[:, :8]) and not torch.equal(before[:, 8], after[:, 8])

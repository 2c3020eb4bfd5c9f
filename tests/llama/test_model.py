"""The Llama against transformers' LlamaForCausalLM: logits, generation, sampling, and
gradients.
"""

import random

import pytest
import torch
import torch.nn.functional as F
from llama_twins import tokens, twins

from minilora import llama
from minilora.errors import MiniloraError
from minilora.llama import Cache, Llama

pytestmark = pytest.mark.parity  # beside the library that people use

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()


def gap(seed, length):
    theirs, ours = twins(seed)
    ids = tokens(ours, 2, length, seed)
    with torch.no_grad():
        return float((theirs(ids).logits - ours(ids)).abs().max())


@pytest.mark.parametrize("seed", range(50))
def test_logits_equal_transformers(seed):
    assert gap(seed, random.Random(seed).choice([1, 2, 7, 17, 33, 65])) <= 1e-5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_transformers_and_the_row_alone(seed, side):
    theirs, ours = twins(seed)
    ids, mask = tokens(ours, 3, 13), torch.ones(3, 13, dtype=torch.long)
    mask[1, :5] = 0
    mask[2, :12] = 0
    mask = mask if side == "left" else mask.flip(1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        mine = ours(ids, mask)
        reference = theirs(ids, attention_mask=mask, position_ids=positions).logits
        alone = ours(ids[1:2, mask[1].bool()])
    assert torch.isfinite(mine).all()
    assert (mine - reference)[mask.bool()].abs().max() <= 1e-5
    assert (mine[1, mask[1].bool()] - alone[0]).abs().max() <= 1e-5


def test_gradients_equal_transformers_with_and_without_recomputing():
    theirs, ours = twins(3)
    ids = tokens(ours, 2, 19)
    theirs(ids, labels=ids).loss.backward()
    for recompute in (False, True):
        ours.gradient_checkpointing = recompute
        ours.zero_grad()
        F.cross_entropy(ours(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        named = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            assert torch.allclose(parameter.grad, named[name].grad, atol=1e-5), name


def test_recomputing_saves_memory():
    _, ours = twins(1, num_hidden_layers=3)
    ids = tokens(ours, 2, 33)
    saved = {}
    for ours.gradient_checkpointing in (False, True):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.nbytes) or t, lambda t: t
        ):
            ours(ids).sum()
        saved[ours.gradient_checkpointing] = sum(sizes)
    assert saved[True] < saved[False] / 2


def test_saves_no_more_for_backward_than_transformers():
    theirs, ours = twins(5, num_hidden_layers=2, attention_bias=False, mlp_bias=False)
    ids = tokens(ours, 2, 33)

    def stored(run):
        seen = {}

        def note(t):
            seen[t.untyped_storage().data_ptr()] = t.untyped_storage()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            result = run()
        return sum(s.nbytes() for s in seen.values()), result

    mine, _keep = stored(lambda: ours(ids))
    reference, _also = stored(lambda: theirs(ids, use_cache=False).logits)
    assert mine <= reference + 2 * ours.model.rotary.cos.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_transformers(dtype, tmp_path):
    theirs, ours = twins(7)
    theirs.save_pretrained(tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    ids = tokens(ours, 2, 21)
    with torch.no_grad():
        assert (theirs(ids).logits - ours.to(dtype)(ids)).abs().max() <= 0.02


def test_positions_beyond_the_first_table_are_right():
    theirs, ours = twins(0)
    ids = tokens(ours, 1, 150)  # the table starts with max_position_embeddings = 128 rows
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() <= 1e-5
    assert ours.model.rotary.cos.shape[0] >= 150


def test_casting_and_moving_keep_the_rope_tables_exact():
    _, ours = twins(0)
    before = ours.model.rotary.cos.clone()
    ours.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(ours.model.rotary.cos, before)
    assert not any("rotary" in name for name in ours.state_dict())
    ours.to("meta")
    assert ours.model.rotary.cos.is_meta and ours.model.rotary.sin.is_meta


# generation


@pytest.mark.parametrize("seed", range(8))
def test_greedy_is_the_same_with_cache_without_it_and_in_transformers(seed):
    theirs, ours = twins(seed)
    ids, new = tokens(ours, 2, 5 + seed, seed), 24
    mine = ours.generate(ids, new, stop=[])
    plain = ids
    for _ in range(new):
        plain = torch.cat((plain, ours(plain)[:, -1].argmax(-1, keepdim=True)), dim=1)
    reference = theirs.generate(
        ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(mine, plain)
    assert torch.equal(mine, reference)


@pytest.mark.parametrize("seed", range(4))
def test_left_padded_greedy_equals_transformers_and_the_row_alone(seed):
    theirs, ours = twins(seed)
    ids, mask = tokens(ours, 3, 9, seed), torch.ones(3, 9, dtype=torch.long)
    mask[0, :4] = 0
    ids[0, :4] = 0
    mine = ours.generate(ids, 16, attention_mask=mask)
    reference = theirs.generate(ids, attention_mask=mask, max_new_tokens=16, do_sample=False)
    assert torch.equal(mine, reference)
    alone = ours.generate(ids[:1, 4:], 16)[0]
    assert torch.equal(mine[0, 4:][: len(alone)], alone)


def test_the_fast_step_equals_the_general_forward():
    from minilora import llama

    for seed in range(8):
        _, ours = twins(seed)
        ids = tokens(ours, 3, 11)
        mask = torch.ones_like(ids)
        mask[1, :3] = 0
        for real in (None, mask):
            caches = Cache(12), Cache(12)
            with torch.no_grad():
                for cache in caches:
                    ours.model(ids[:, :10], None if real is None else real[:, :10], cache)
                wide = None if real is None else F.pad(real, (0, 1), value=1)
                quick = llama.Stepper(ours.model, caches[0], wide)(ids[:, 10])
                plain = ours.model(ids[:, 10:], real, caches[1])
            assert (quick - plain).abs().max() <= 1e-5


def test_hooks_are_heard_during_generation():
    _, ours = twins(2)
    heard = []
    ours.model.layers[0].mlp.register_forward_hook(lambda *_: heard.append(1))
    ours.generate(tokens(ours, 1, 4), 5, stop=[])
    assert len(heard) == 5


def test_sampling_draws_transformers_tokens_under_one_seed():
    theirs, ours = twins(4)
    ids = tokens(ours, 2, 6)
    torch.manual_seed(11)
    mine = ours.generate(ids, 20, temperature=0.8, top_k=20, top_p=0.9, stop=[])
    torch.manual_seed(11)
    reference = theirs.generate(
        ids,
        max_new_tokens=20,
        do_sample=True,
        temperature=0.8,
        top_k=20,
        top_p=0.9,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(mine, reference)


def test_a_seed_repeats_and_leaves_torchs_own_generator_alone():
    _, ours = twins(4)
    ids = tokens(ours, 2, 6)
    before = torch.random.get_rng_state()
    first = ours.generate(ids, 12, temperature=1.0, seed=3)
    assert torch.equal(first, ours.generate(ids, 12, temperature=1.0, seed=3))
    assert not torch.equal(first, ours.generate(ids, 12, temperature=1.0, seed=4))
    assert torch.equal(before, torch.random.get_rng_state())


def warped(logits, temperature, top_k, top_p):
    """The same three steps by transformers' logits warpers."""
    made = [transformers.TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    made += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    made += [transformers.TopPLogitsWarper(top_p)] if top_p and top_p < 1 else []
    for warper in made:
        logits = warper(None, logits)
    return logits


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 5, 63, 64, 500])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.5, 0.95, 1.0])
def test_filters_equal_transformers_warpers(temperature, top_k, top_p):
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(4, 64, generator=generator) * 3
    ties = torch.randint(-2, 3, (4, 64), generator=generator).float()
    for logits in (smooth, ties, torch.zeros(2, 64)):
        assert torch.equal(
            llama.filter_logits(logits, temperature, top_k, top_p),
            warped(logits, temperature, top_k, top_p),
        )


def test_stop_ends_rows_pads_them_and_ends_the_batch():
    _, ours = twins(6)
    ids = tokens(ours, 2, 4)
    free = ours.generate(ids, 12, stop=[])
    row = free[0, 4:].tolist()
    stop = row[3]
    out = ours.generate(ids, 12, stop=stop)
    first = row.index(stop)
    assert out[0, 4 : 5 + first].tolist() == row[: first + 1]
    assert set(out[0, 5 + first :].tolist()) <= {0}
    assert ours.generate(ids[:1], 12, stop=[stop]).shape[1] == 5 + first
    heard = []
    ours.generate(ids, 3, stop=[], on_token=heard.append)
    assert heard == [free[:, column].tolist() for column in (4, 5, 6)]


def test_any_of_several_eos_tokens_ends_a_row():
    """As in Llama 3, whose config names three."""
    _, ours = twins(6)
    ids = tokens(ours, 1, 4)
    free = ours.generate(ids, 12, stop=[])[0, 4:].tolist()
    unused = next(i for i in range(ours.config.vocab_size) if i not in free)
    ours.config.eos_token_id = [unused, free[3]]
    out = ours.generate(ids, 12)[0, 4:].tolist()
    assert out == free[: free.index(free[3]) + 1]


def test_the_least_and_the_most_that_makes_sense():
    _, ours = twins(0)
    ids = tokens(ours, 1, 3)
    assert torch.equal(ours.generate(ids, 0), ids)
    free = [
        ours.generate(ids, 4, temperature=1.0, seed=0, stop=[], **more)
        for more in ({}, {"top_p": 1.0}, {"top_k": ours.config.vocab_size})
    ]
    assert torch.equal(free[0], free[1]) and torch.equal(free[0], free[2])
    greedy = ours.generate(ids, 4, stop=[])
    for more in ({"top_k": 1}, {"top_p": 1e-9}):
        assert torch.equal(ours.generate(ids, 4, temperature=1.0, stop=[], **more), greedy)


def test_generation_leaves_modes_as_they_were_and_turns_dropout_off():
    _, ours = twins(0)
    ours.model.layers[0].mlp.dropout = torch.nn.Dropout(0.5)
    ours.train()
    ours.model.norm.eval()
    ours.generate(tokens(ours, 1, 3), 2)
    assert (
        ours.training and ours.model.layers[0].mlp.dropout.training and not ours.model.norm.training
    )


@pytest.mark.parametrize(
    "wrong, word",
    [
        (dict(max_new_tokens=-1), "max_new_tokens is -1"),
        (dict(temperature=-0.5), "temperature is -0.5"),
        (dict(temperature=1e-300), "temperature is 1e-300"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(temperature=float("nan")), "temperature is nan"),
        (dict(top_k=0), "top_k is 0"),
        (dict(top_p=0.0), "top_p is 0.0"),
        (dict(top_p=1.5), "top_p is 1.5"),
        (dict(ids=torch.tensor([1, 2])), "(batch, length)"),
        (dict(ids=torch.zeros(1, 0, dtype=torch.long)), "at least one"),
        (dict(ids=torch.tensor([[9999]])), "token id 9999"),
        (dict(ids=torch.tensor([[3, -1]])), "token id -1"),
        (dict(attention_mask=torch.ones(1, 2)), "must be alike"),
        (dict(attention_mask=torch.tensor([[1, 1, 0]])), "on the left"),
    ],
)
def test_senseless_values_are_named(wrong, word):
    _, ours = twins(0)
    with pytest.raises(MiniloraError) as caught:
        ours.generate(**(dict(ids=torch.tensor([[3, 4, 5]]), max_new_tokens=2) | wrong))
    assert word in str(caught.value) and "\n" not in str(caught.value)


def test_the_vocabulary_ends_before_its_size():
    _, ours = twins(0)
    size = ours.config.vocab_size
    ours.generate(torch.tensor([[size - 1]]), 1)
    with pytest.raises(MiniloraError, match=f"token id {size} is outside"):
        ours.generate(torch.tensor([[size]]), 1)


def test_a_full_cache_says_so():
    _, ours = twins(0)
    with pytest.raises(MiniloraError, match="cache holds 4 tokens and 5 are needed"):
        ours(tokens(ours, 1, 5), cache=Cache(4))


def test_the_shipped_base_equals_transformers():
    from minilora.system.files import data_folder

    folder = data_folder() / "base"
    if not (folder / "config.json").is_file():
        pytest.skip(f"no model at {folder}")
    theirs, ours = (
        transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32),
        Llama.from_pretrained(folder),
    )
    ids = tokens(ours, 2, 77)
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max() <= 1e-5
    ids = ids[:, :15]
    assert torch.equal(
        ours.generate(ids, 40), theirs.generate(ids, max_new_tokens=40, do_sample=False)
    )

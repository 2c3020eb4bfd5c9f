"""Each trap is planted in a model or a batch that is fine otherwise; `train.check` must name it."""

import math

import pytest
import torch

from minilora import lora, train
from minilora.llama import Llama
from minilora.text import IGNORE, Tokenizer, collate, encode_rows
from minilora.train import checks


@pytest.fixture
def model(tiny_folder):
    torch.manual_seed(0)
    return lora.add_lora(Llama.from_pretrained(tiny_folder), rank=4)


@pytest.fixture
def rows(tiny_folder):
    examples = [
        {"prompt": "who sat", "response": "the cat"},
        {"prompt": "who", "response": "the bird"},
    ]
    return encode_rows(examples, Tokenizer.from_pretrained(tiny_folder))


def test_a_sound_run_passes_and_nothing_is_touched(model, rows):
    state = torch.random.get_rng_state()
    before = {name: p.clone() for name, p in model.named_parameters()}
    report = train.check(model, collate(rows, 0))
    assert (
        report.trainable == sum(p.numel() for p in lora.trainable_parameters(model))
        and 0 < report.loss < 20
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(
        p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters()
    )


def first(model, part):
    return next(p for name, p in model.named_parameters() if part in name)


def freeze_all(model, batch):
    model.requires_grad_(False)


def thaw_base(model, batch):
    first(model, "down_proj.base.weight").requires_grad_(True)


def both_zero(model, batch):
    for p in lora.trainable_parameters(model):
        p.data.zero_()


def b_frozen(model, batch):
    """B is zero and stays so; another weight learns, so that something moves all the same."""
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.requires_grad_(False)
    model.modules_to_save = torch.nn.Parameter(torch.ones(2))


def a_frozen_at_zero(model, batch):
    a, b = first(model, "lora_A"), first(model, "lora_B")
    a.data.zero_()
    b.data.fill_(1.0)
    a.requires_grad_(False)


def nan_weight(model, batch):
    first(model, "norm").data[0] = math.nan


def nan_adapter(model, batch):
    first(model, "lora_A").data[0] = math.inf


def half(model, batch):
    first(model, "lora_A").data = first(model, "lora_A").data.half()


def cut_gradient(model, batch):
    inner = model.model.forward
    model.model.forward = lambda *args: inner(*args).detach()


def scale_zero(model, batch):
    for layer in lora.adapted_layers(model).values():
        layer.scale["default"] = 0.0


def mask_all(model, batch):
    batch[1].fill_(IGNORE)


def mask_eos(model, batch):
    batch[1][batch[0] == 2] = IGNORE


def hidden_eos(model, batch):
    """PAD is EOS, the mask is ids != PAD and everything else is learned: the answers' own ends look
    like padding.
    """
    ids, labels, mask = batch
    ids[mask == 0] = 2
    labels[:] = torch.where(ids == 2, IGNORE, ids)
    mask[:] = ids != 2


def outside(model, batch):
    batch[0][0, 3] = model.config.vocab_size


def too_long(model, batch):
    model.config.max_position_embeddings = 5


def two_bos(model, batch):
    batch[0][:, 1] = batch[0][:, 0]


def two_bos_behind_padding(model, batch):
    """Padded on the left, as transformers' collators do it: the shorter row begins behind its
    padding.
    """
    row = int(batch[2].sum(1).argmin())
    padding = int((batch[2][row] == 0).sum())
    assert padding
    for tensor in batch:
        tensor[row] = torch.roll(tensor[row], padding)
    batch[0][row, padding + 1] = batch[0][row, padding]


def nan_gradient(model, batch):
    """The loss is a number and its gradient is none, as behind the softmax of a row that is all
    padding.
    """
    first(model, "lora_B").register_hook(lambda g: g * math.nan)


def cut_one_layer(model, batch):
    """Zeros instead of a gradient, as behind weights that were packed for answering; the other
    layers learn.
    """
    for p in model.model.layers[0].parameters():
        if p.requires_grad:
            p.register_hook(lambda g: g * 0)


def shifted(model, batch):
    batch[1][:] = torch.roll(batch[1], -1, 1)


def learned_padding(model, batch):
    rest = batch[2] == 0
    batch[1][rest] = batch[0][rest]


TRAPS = [
    (freeze_all, "frozen"),
    (thaw_base, "base is not frozen"),
    (both_zero, "both zero"),
    (b_frozen, "lora_B.* is zero and frozen"),
    (a_frozen_at_zero, "lora_A.* is zero and frozen"),
    (nan_weight, "holds NaN or infinity"),
    (nan_adapter, "lora_A.*holds NaN or infinity"),
    (half, "float16"),
    (cut_gradient, "no gradient reaches"),
    (scale_zero, "all gradients are zero"),
    (mask_all, "all labels"),
    (mask_eos, "never stop"),
    (hidden_eos, "never stop"),
    (outside, "token id 320"),
    (too_long, "--seq to 5"),
    (two_bos, "two BOS"),
    (two_bos_behind_padding, "two BOS"),
    (nan_gradient, "gradient of .*lora_B.* holds NaN"),
    (cut_one_layer, "exactly zero .7 of 14 adapters"),
    (shifted, "shifted already"),
    (learned_padding, "padding is learned"),
]


@pytest.mark.parametrize("trap, message", TRAPS, ids=[trap.__name__ for trap, _ in TRAPS])
def test_a_trap_is_named(model, rows, trap, message):
    batch = collate(rows, 0)
    trap(model, batch)
    with pytest.raises(train.CheckFailed, match=message) as caught:
        train.check(model, batch)
    assert "\n" not in str(caught.value) and (";" in str(caught.value) or ":" in str(caught.value))


def test_nothing_trainable_without_an_adapter(tiny_folder, rows):
    model = Llama.from_pretrained(tiny_folder).requires_grad_(False)
    with pytest.raises(train.CheckFailed, match="nothing is trainable"):
        train.check(model, collate(rows, 0))


def test_an_unreached_weight_is_named(model, rows):
    model.extra = torch.nn.Parameter(torch.ones(2))
    model.extra.requires_grad_(True)
    model.register_parameter("lora_lost", torch.nn.Parameter(torch.ones(2)))
    del model.extra
    with pytest.raises(train.CheckFailed, match="reaches lora_lost"):
        train.check(model, collate(rows, 0))


def test_reentrant_checkpointing_without_input_gradients(model, rows):
    """The best known silent failure: each layer recomputed by the reentrant kind, its input without
    a gradient.
    """
    from torch.utils.checkpoint import checkpoint

    for layer in model.model.layers:
        inner = layer.forward
        layer.forward = lambda *args, inner=inner: checkpoint(inner, *args, use_reentrant=True)
    with (
        pytest.warns(UserWarning, match="None of the inputs"),
        pytest.raises(train.CheckFailed, match="checkpointing"),
    ):
        train.check(model, collate(rows, 0))


def test_a_row_of_padding_alone_is_named(model, rows):
    ids, labels, mask = collate(rows, 0)
    mask[1], labels[1] = 0, IGNORE
    with pytest.raises(train.CheckFailed, match="row 2 of the batch is nothing but padding"):
        train.check(model, (ids, labels, mask))


def test_fit_checks_before_it_writes(model, rows, tmp_path):
    freeze_all(model, None)
    with pytest.raises(train.CheckFailed):
        train.fit(model, rows, steps=1, progress=False, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bare_text_without_eos_is_no_trap(model):
    """Packed rows may hold no end at all."""
    ids = list(range(10, 30))
    train.check(model, collate([(ids, ids)], 0))
    # padded with EOS: the longest row shows that it is padding
    train.check(model, collate([(ids, ids), (ids[:9], ids[:9])], 2))


def test_one_half_of_an_adapter_may_be_frozen_when_it_is_not_zero(model, rows):
    """LoRA-FA trains B over a random A that stays."""
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    train.check(model, collate(rows, 0))


def test_a_gradient_that_is_rightly_zero_is_no_trap(model):
    """After one token attention has nothing to choose from: query and key learn nothing, and
    nothing is wrong.
    """
    report = train.check(model, collate([([1, 9], [IGNORE, 9])], 0))
    assert (report.learned, report.tokens) == (1, 2)


def test_a_lost_gradient_is_found_where_every_token_is_learned(model):
    batch = collate([(list(range(10, 30)), list(range(10, 30)))], 0)
    cut_one_layer(model, batch)
    with pytest.raises(train.CheckFailed, match="exactly zero"):
        train.check(model, batch)


def test_the_report_tells_whether_prompts_are_learned(model, rows):
    answers = sum(label != IGNORE for _, labels in rows for label in labels)
    report = train.check(model, collate(rows, 0))
    assert (report.learned, report.tokens) == (
        answers,
        sum(len(ids) for ids, _ in rows),
    ) and report.learned < report.tokens
    everything = train.check(model, collate([(ids, ids) for ids, _ in rows], 0))
    # nothing comes before a row's first token
    assert everything.learned == everything.tokens - len(rows)


@pytest.mark.parametrize(
    "late, message",
    [([5] * 600, "600 tokens"), ([5, 320], "token id 320"), ([-1, 5], "token id -1")],
    ids=["long", "high", "low"],
)
def test_what_would_break_late_is_named_before_step_1(model, rows, late, message):
    """The row is met at the end of an epoch, the run refuses it at its beginning."""
    many = rows * 8
    model.config.max_position_embeddings = 512
    train.check_rows(model, many)
    with pytest.raises(train.CheckFailed, match=message):
        train.fit(model, [*many, (late, late)], steps=1, batch_size=2, progress=False)


@pytest.mark.parametrize(
    "silent", [([1, 5, 6], [IGNORE] * 3), ([1], [1])], ids=["masked", "one token"]
)
def test_a_row_without_an_answer_is_found_before_its_turn_comes(model, rows, silent):
    """Alone in its step it would count as a loss of zero."""
    with pytest.raises(train.CheckFailed, match="row 3 of the data has nothing to learn"):
        train.fit(model, [*rows, silent], steps=1, batch_size=1, progress=False)


def test_an_end_that_the_mask_hides_belongs_to_its_row_wherever_it_stands(model):
    """Padding is the EOS, and the mask was made as `ids != pad`: each row keeps one of them, a row
    of one word as well.
    """
    end = model.config.eos_token_id
    ids = torch.tensor([[9, end, end, end], [9, 8, end, end], [9, 8, 7, end]])
    labels = ids.clone()
    found = checks._rows(model, ids, labels, (ids != end).long())
    assert [row for row, _ in found] == [[9, end], [9, 8, end], [9, 8, 7, end]]

"""The traps with the large libraries themselves, without the lesson: each fails in silence there,
and is named or avoided here.
"""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minilora import hub, lora, text
from minilora.course import traps
from minilora.train.checks import CheckFailed, check
from minilora.train.kl_divergence import kl, log_probabilities

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

BATCH = text.collate(traps.rows_of("sums", 4), 0)  # 30 tokens a row
FOUR = hub.quantization("qlora", "nf4", torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An adapter that PEFT trained and wrote, and the loss that it had come to."""
    model, path = traps.adapted(), tmp_path_factory.mktemp("adapter")
    assert traps.learn(model, BATCH, 8)[-1] < 0.5 * traps.learn(traps.adapted(), BATCH, 1)[0]
    model.save_pretrained(path)
    return path


def loss(model) -> float:
    with torch.no_grad():
        return traps.loss_of(model.eval(), BATCH).item()


def zero_A(folder):
    model = traps.adapted()
    for name, p in model.named_parameters():
        p.data.mul_("lora_A" not in name)
    return model


def frozen(folder):
    model = peft.PeftModel.from_pretrained(traps.fresh(), folder)
    model.enable_input_require_grads()
    return model


def cut_off(folder):
    """The last norm is trained as well and learns; below it the gradient is cut, as behind
    checkpoints of the old kind.
    """
    model = traps.adapted(modules_to_save=["norm"])
    model.base_model.model.model.layers[-1].register_forward_hook(
        lambda layer, args, out: out.detach()
    )
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "plant, message",
    [
        (zero_A, "both zero"),
        (frozen, "adapter, but it is frozen"),
        (cut_off, "no gradient reaches"),
    ],
)
def test_nothing_trains(folder, plant, message):
    model = plant(folder)
    losses, moved = traps.moved(model, BATCH)
    assert moved == 0 and all(map(math.isfinite, losses))
    with pytest.raises(CheckFailed, match=message):
        check(model, BATCH)
    assert (
        traps.moved(traps.adapted(), BATCH)[1] == 70 and check(traps.adapted(), BATCH).learned > 0
    )


def test_fp16_turns_to_nan_in_the_second_step():
    model = traps.adapted(traps.fresh(dtype=torch.float16), autocast_adapter_dtype=False)
    with pytest.raises(CheckFailed, match="trained in float16"):
        check(model, BATCH)
    first, second = traps.learn(model, BATCH, 2)
    assert math.isfinite(first) and math.isnan(second)
    with pytest.raises(CheckFailed, match="holds NaN"):
        check(model, BATCH)


def test_an_evaluation_packs_the_weights_and_cuts_the_gradient():
    model = traps.adapted(traps.fresh(quantization_config=FOUR))
    if not hub.four_bit_layers(model)[0].support_avx512bf16_for_cpu:
        pytest.skip("bitsandbytes packs weights anew on processors with AVX512-BF16 only")
    with pytest.raises(CheckFailed, match="would make bitsandbytes pack .*hub.cure"):
        check(model, BATCH)
    loss(model)
    traps.loss_of(model.train(), BATCH).backward()
    assert sum(bool(p.grad.any()) for p in model.parameters() if p.grad is not None) < 35
    with pytest.raises(
        CheckFailed, match="an evaluation has made bitsandbytes pack .*load the model again"
    ):
        check(model, BATCH)


def test_rows_that_are_decoded_wrongly_are_named():
    model = traps.adapted()
    model.beside = (
        bitsandbytes.nn.Linear4bit(96, 64, bias=False, quant_type="nf4")
        .requires_grad_(False)
        .to("cpu")
    )
    model.beside.support_avx512bf16_for_cpu = False
    with pytest.raises(CheckFailed, match="beside has rows of 96.*hub.cure"):
        check(model, BATCH)
    check(hub.cure(model), BATCH)
    model.beside = (
        bitsandbytes.nn.Linear4bit(128, 64, bias=False, quant_type="nf4")
        .requires_grad_(False)
        .to("cpu")
    )
    model.beside.support_avx512bf16_for_cpu = False
    check(model, BATCH)


def test_a_merge_into_four_bits_loses_most_of_what_was_learned(folder):
    rows = traps.rows_of("sums", 4)
    model = peft.PeftModel.from_pretrained(hub.load("tiny", "qlora", device="cpu"), folder)
    told = traps.predictions(model, rows)
    with model.disable_adapter():
        base = kl(told, traps.predictions(model, rows))
    assert kl(told, traps.predictions(model.merge_and_unload(), rows)) > 0.3 * base
    ours = lora.load_adapter(
        hub.load("tiny", "qlora", stack="minilora", device="cpu"), folder
    ).eval()
    before = log_probabilities(ours, rows)
    assert kl(before, log_probabilities(lora.merge(ours), rows)) < 1e-6
    assert "while adapters are merged" in traps.refusal(lora.merge, ours)


def renamed(folder, copy, old, new):
    file = "adapter_model.safetensors"
    tensors = load_file(folder / file)
    save_file({key.replace(old, new): tensor for key, tensor in tensors.items()}, copy / file)


def test_renamed_keys_leave_the_base_as_it_was(folder, tmp_path):
    traps.adapted().save_pretrained(tmp_path)
    renamed(folder, tmp_path, ".model.layers", "._orig_mod.layers")
    assert (
        loss(peft.PeftModel.from_pretrained(traps.fresh(), tmp_path))
        == loss(traps.fresh())
        > loss(peft.PeftModel.from_pretrained(traps.fresh(), folder))
    )
    sound = loss(hub.load_adapter(traps.fresh(), folder))
    assert loss(hub.load_adapter(traps.fresh(), tmp_path)) == sound
    renamed(folder, tmp_path, ".layers.", ".blocks.")
    assert "lacks" in traps.refusal(hub.load_adapter, traps.fresh(), tmp_path)


def test_get_peft_model_once_more_begins_anew(folder):
    again = traps.adapted(peft.PeftModel.from_pretrained(traps.fresh(), folder))
    assert loss(again) == loss(traps.fresh())
    assert loss(hub.load_adapter(traps.fresh(), folder, trainable=True)) < 0.5 * loss(again)


def test_the_bench_counts_bytes_once():
    """The tied head is the embedding; a tensor that several nodes keep is one."""
    model = traps.fresh()
    # parameters() names the tied one once
    assert traps.held(model) == sum(p.numel() * 4 for p in model.parameters())
    x = nn.Parameter(torch.ones(1000))

    class Twice(nn.Module):
        def forward(self, input_ids, attention_mask, labels):
            y = x * 3.0  # keeps nothing but x
            return type("Output", (), {"loss": (y * y).sum()})  # keeps y twice: one storage

    assert traps.kept(Twice(), BATCH) == 4000

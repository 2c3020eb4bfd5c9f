"""Every --init and --variant on the command line: what a run ends with is what evaluate, generate
and merge read again.

Tolerance: 1e-4 nats of about 4; PiSSA's and LoftQ's split of the base is computed anew on reading,
where the last bits may differ.
"""

import json

import pytest
from typed_commands import typed, write_letters

from minilora.cli.main import main
from minilora.recipes import load
from minilora.text import encode_rows, read_split
from minilora.train.loss import evaluate_loss

STARTS = [
    *[
        ("lora", init, "lora")
        for init in (
            "kaiming",
            "gaussian",
            "random",
            "pissa",
            "pissa_niter_4",
            "loftq",
            "loftq_niter_2",
        )
    ],
    *[("qlora", init, "lora") for init in ("kaiming", "gaussian", "random", "loftq")],
    *[
        (method, init, variant)
        for method, init in (("lora", "kaiming"), ("lora", "pissa"), ("qlora", "loftq"))
        for variant in ("rslora", "dora")
    ],
    ("int8", "loftq", "lora"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_letters(tmp_path_factory.mktemp("letters"), "abcdefgh", ("train", "valid"))


def finetune(model, data, out, *more, **options):
    options = dict(model=model, data=data, out=out, steps=2, batch=4, lr=1e-2) | options
    assert main(typed("finetune", *more, device="cpu", **options)) == 0
    return json.loads((out / "run.json").read_text())["result"]["valid_losses"]


def loss_as_read(model, adapter, data):
    model, tokenizer = load.load(str(model), adapter and str(adapter), device="cpu")
    return evaluate_loss(model, encode_rows(read_split(data, "valid"), tokenizer))


@pytest.mark.slow
@pytest.mark.parametrize("method, init, variant", STARTS)
def test_a_run_is_read_as_it_ended(tiny_folder, data, tmp_path, method, init, variant):
    out, merged = tmp_path / "run", tmp_path / "merged"
    losses = finetune(tiny_folder, data, out, method=method, init=init, variant=variant, rank=4)
    assert abs(losses[-1][1] - losses[0][1]) > 1e-3  # an adapter that does nothing would pass below
    assert loss_as_read(tiny_folder, out, data) == pytest.approx(
        losses[-1][1], abs=1e-4 if method != "int8" else 1e-3
    )
    if method == "lora":
        assert main(typed("merge", model=tiny_folder, adapter=out, out=merged, device="cpu")) == 0
        assert loss_as_read(merged, None, data) == pytest.approx(losses[-1][1], abs=1e-4)


def test_loftq_starts_qlora_nearer_to_the_base(tiny_folder, data, tmp_path):
    """Its purpose: at step 0 the model with its adapter answers more like the unquantized one than
    the quantized base does.
    """
    begin = {
        init: finetune(tiny_folder, data, tmp_path / init, "--init", init, "--rank", 32)[0][1]
        for init in ("kaiming", "loftq")
    }
    whole = loss_as_read(tiny_folder, None, data)
    assert abs(begin["loftq"] - whole) < 0.7 * abs(begin["kaiming"] - whole)


def test_lora_plus_is_passed_on(tiny_folder, data, tmp_path):
    plain = finetune(tiny_folder, data, tmp_path / "plain")
    plus = finetune(tiny_folder, data, tmp_path / "plus", "--lora-plus", 4)
    assert plain[0] == plus[0] and plain[-1] != plus[-1]
    assert json.loads((tmp_path / "plus" / "run.json").read_text())["settings"]["lora_plus"] == 4

"""`minilora finetune --backend peft`: the same command, data, seed and folder through transformers,
peft and bitsandbytes.

Tolerance: losses of about 5 nats agree within 1e-4 over eight steps at a high learning rate; see
tests/hub/test_loading.py for why they differ at all.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from typed_commands import typed, write_letters

from minilora.cli.main import main
from minilora.text import Tokenizer, encode_prompt

for library in ("transformers", "peft", "bitsandbytes"):
    pytest.importorskip(library)
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-4
METHODS = ("lora", "qlora", "int8", "full")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_letters(tmp_path_factory.mktemp("letters"), "abcdefgh" * 4)


def finetune(model, data, out, *more, **options):
    options = dict(model=model, data=data, out=out, device="cpu", batch=8, lr=1e-2) | options
    return main(typed("finetune", *more, **options))


@pytest.fixture(scope="module")
def runs(tiny_folder, data, tmp_path_factory):
    """Each method by each backend, eight steps."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        rate = {"lr": 1e-3} if method == "full" else {}
        for backend in ("minilora", "peft"):
            out, options = folder / f"{method}-{backend}", dict(method=method, backend=backend)
            assert finetune(tiny_folder, data, out, steps=8, **options, **rate) == 0
    return folder


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def complaint(capsys, *argv):
    capsys.readouterr()
    assert main([str(part) for part in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("minilora: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("method", METHODS)
def test_both_backends_do_the_same_run(runs, method):
    mine, others = (lines(runs / f"{method}-{backend}") for backend in ("minilora", "peft"))
    assert len(mine) == len(others) == 10
    for ours, theirs in zip(mine, others):
        assert ours.keys() == theirs.keys()
        assert all(ours[key] == theirs[key] for key in ("step", "lr", "tokens") if key in ours)
        if "loss" in ours:
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=TOLERANCE)
        elif method != "int8" or ours["step"] == 0:
            # 8-bit products round activations, which small differences tip over
            assert ours["valid_loss"] == pytest.approx(
                theirs["valid_loss"], abs=TOLERANCE if method != "int8" else 5e-3
            )
    assert others[-1]["valid_loss"] < others[0]["valid_loss"] - 0.5


@pytest.mark.parametrize("method", METHODS)
def test_the_folder_is_the_same_folder(runs, method):
    mine, others = (runs / f"{method}-{backend}" for backend in ("minilora", "peft"))
    names = {path.name for path in mine.iterdir()}
    assert {path.name for path in others.iterdir()} - {"generation_config.json"} == names
    ours, theirs = (json.loads((run / "run.json").read_text()) for run in (mine, others))
    assert (
        theirs["settings"].pop("backend") == "peft"
        and ours["settings"].pop("backend") == "minilora"
    )
    for key in ("settings", "quantization", "marks", "parameters"):
        assert ours[key] == theirs[key]
    assert {"transformers", "peft", "bitsandbytes"} <= set(
        theirs["versions"]
    ) and "peft" not in ours["versions"]
    assert not list(others.rglob(".*.part"))


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_and_generate_read_it(capsys, tiny_folder, data, tmp_path, method):
    """Trained to the end by the libraries, answered by our Llama over a base that is quantized in
    the same way.
    """
    out, rate = tmp_path / "run", ["--lr", 3e-3] if method == "full" else []
    assert (
        finetune(
            tiny_folder, data, out, "--method", method, "--backend", "peft", "--steps", 40, *rate
        )
        == 0
    )
    model = (
        ["--model", str(out)]
        if method == "full"
        else ["--model", str(tiny_folder), "--adapter", str(out)]
    )
    capsys.readouterr()
    assert main(["evaluate", *model, "--data", str(data)]) == 0
    assert capsys.readouterr().out == "exact match 1.00 (32 of 32)\n"
    assert main(["generate", *model, "--prompt", "say ccc"]) == 0
    assert capsys.readouterr().out == "c\n"


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_adapter_answers_alike_in_both(runs, tiny_folder, method):
    from minilora import hub, lora

    ours = lora.load_adapter(
        hub.load(tiny_folder, method, stack="minilora", device="cpu"), runs / f"{method}-peft"
    ).eval()
    theirs = hub.load_adapter(
        hub.load(tiny_folder, method, device="cpu"), runs / f"{method}-peft"
    ).eval()
    ids = torch.tensor([encode_prompt("say ccc", Tokenizer.from_pretrained(tiny_folder))])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("method", ["lora", "qlora", "int8"])
def test_merge_writes_what_the_libraries_trained(runs, tiny_folder, data, tmp_path, method):
    """A plain folder, read by transformers, that answers as PEFT's model does (in train mode, where
    int8 rounds no activations).
    """
    from transformers import AutoModelForCausalLM

    from minilora import hub

    run, merged = runs / f"{method}-peft", tmp_path / "merged"
    assert main(typed("merge", model=tiny_folder, adapter=run, out=merged, data=data)) == 0
    base = hub.load(tiny_folder, method, device="cpu")
    theirs = hub.load_adapter(base, runs / f"{method}-peft").train()
    merged, ids = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
        torch.tensor([[1, 3, 20, 40, 9, 4]]),
    )
    with torch.no_grad(), theirs.disable_adapter():
        bare = theirs(ids).logits
    with torch.no_grad():
        found, wanted = merged(ids).logits, theirs(ids).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
    assert (found - bare).abs().max() > 1000 * TOLERANCE, (
        "the adapter says too little for the comparison to mean anything"
    )


@pytest.fixture(scope="module")
def four(tiny_folder, tmp_path_factory):
    """The base in 4 bits, as transformers and bitsandbytes write it, with its tokenizer."""
    from minilora import hub
    from minilora.recipes.merge import copy_tokenizer

    folder = tmp_path_factory.mktemp("four")
    hub.save_model(hub.load(tiny_folder, "qlora", device="cpu"), folder)
    copy_tokenizer(tiny_folder, folder)
    return folder


def test_over_a_folder_that_is_in_4_bits_already(capsys, runs, four, tiny_folder, data, tmp_path):
    """The same answers as over the folder that was packed while loading; and where it cannot be,
    one line that says how.
    """
    adapter = ["--adapter", str(runs / "qlora-peft")]
    for command in (
        ["evaluate", "--data", str(data)],
        ["generate", "--prompt", "say ccc", "--max-new", "5"],
    ):
        said = []
        for base in (["--model", str(tiny_folder)], ["--model", str(four), "--code", "none"]):
            capsys.readouterr()
            assert main([*command, *base, *adapter]) == 0
            said.append(capsys.readouterr().out)
        assert main([*command, "--model", str(four), *adapter]) == 0  # as the adapter was trained
        said.append(capsys.readouterr().out)
        assert said[0] == said[1] == said[2] != ""
        assert "is in 4 bits already (nf4), not in fp4; give --code nf4" in complaint(
            capsys, *command, "--model", four, *adapter, "--code", "fp4"
        )
    for name, base in (
        ("one", ["--model", str(tiny_folder)]),
        ("two", ["--model", str(four), "--code", "none"]),
    ):
        assert main(["merge", *base, *adapter, "--out", str(tmp_path / name)]) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert "take the unquantized model" in complaint(
        capsys,
        "finetune",
        "--model",
        four,
        "--data",
        data,
        "--out",
        tmp_path / "none",
        "--backend",
        "peft",
        "--method",
        "lora",
    )


def test_the_tokenizer_is_the_folders(tiny_folder):
    """Ids of a chat: those that transformers' own tokenizer gives."""
    from transformers import AutoTokenizer

    from minilora import hub

    theirs = AutoTokenizer.from_pretrained(tiny_folder)
    messages = [{"role": "user", "content": "the cat sat"}]
    wanted = theirs(
        theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        add_special_tokens=False,
    )["input_ids"]
    assert encode_prompt(messages, hub.tokenizer(tiny_folder)) == wanted


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_resume_is_exact(tiny_folder, data, tmp_path, method):
    """With the last state gone, the run goes on from the one before, to the very same bytes:
    dropout and order included.
    """
    out, name = (
        tmp_path / "run",
        "model.safetensors" if method == "full" else "adapter_model.safetensors",
    )
    more = {"lr": 1e-3} if method == "full" else {"dropout": 0.2}
    options = dict(method=method, backend="peft", steps=6, save_every=3, eval_every=2)
    assert finetune(tiny_folder, data, out, **options, **more) == 0
    whole, metrics = (out / name).read_bytes(), lines(out)
    (out / name).unlink()
    shutil.rmtree(out / "state" / "step-00000006")
    assert main(["finetune", "--out", str(out), "--resume"]) == 0
    assert (out / name).read_bytes() == whole
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in lines(out)] == [
        {k: v for k, v in line.items() if k != "seconds"} for line in metrics
    ]


def test_what_the_backend_does_not_have_is_said_before_anything_is_written(
    capsys, tiny_folder, data, runs, tmp_path
):
    options = dict(model=tiny_folder, data=data, out=tmp_path / "none", backend="peft")
    begin = typed("finetune", **options)
    assert "--code int4" in complaint(capsys, *begin, "--code", "int4")
    assert "--init pissa" in complaint(capsys, *begin, "--method", "lora", "--init", "pissa")
    assert "choose from" in complaint(capsys, *begin[:-1], "unsloth")
    assert not (tmp_path / "none").exists()
    assert "--backend minilora" in complaint(
        capsys, "finetune", "--out", runs / "lora-peft", "--resume", "--backend", "minilora"
    )


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_checkpointing_changes_no_number_and_nobody_chatters(
    capsys, tiny_folder, data, runs, tmp_path, method
):
    options = dict(method=method, backend="peft", steps=8)
    options |= {"lr": 1e-3} if method == "full" else {}
    capsys.readouterr()
    assert finetune(tiny_folder, data, tmp_path / "run", "--checkpointing", **options) == 0
    assert capsys.readouterr().err == ""
    found, wanted = (
        [line["loss"] for line in lines(run) if "loss" in line]
        for run in (tmp_path / "run", runs / f"{method}-peft")
    )
    assert found == wanted


def test_a_missing_library_is_named(capsys, monkeypatch, tiny_folder, data, tmp_path):
    import importlib.metadata

    real = importlib.metadata.version

    def version(name):
        if name == "bitsandbytes":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    options = dict(model=tiny_folder, data=data, out=tmp_path / "none", backend="peft")
    line = complaint(capsys, *typed("finetune", **options))
    assert (
        "needs bitsandbytes: pip install 'minilora[hub]'" in line
        and not (tmp_path / "none").exists()
    )

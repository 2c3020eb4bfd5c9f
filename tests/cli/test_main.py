"""The command line, walked through: train three ways, score, merge, answer, chat."""

import importlib.metadata
import io
import json
import re
import subprocess
import sys

import pytest
import torch
from typed_commands import typed, write_letters

from minilora.cli.main import COMMANDS, main
from minilora.llama import Llama
from minilora.text import Tokenizer, encode_prompt


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_letters(tmp_path_factory.mktemp("letters"), "abcdefgh" * 4)


def finetune(model, data, out, *more, **options):
    options = dict(model=model, data=data, out=out, steps=40, lr=1e-2, batch=8) | options
    return main(typed("finetune", *more, **options))


@pytest.fixture(scope="module")
def runs(tiny_folder, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for method in ("lora", "qlora", "int8", "full"):
        assert finetune(tiny_folder, data, folder / method, "--method", method) == 0
    return folder


def score(capsys, *argv):
    capsys.readouterr()
    assert main(["evaluate", *map(str, argv)]) == 0
    return capsys.readouterr().out


QUANTIZATION = {
    "qlora": {"code": "nf4", "double": True, "block": 64},
    "int8": {"code": "llm.int8", "threshold": 6.0},
}


@pytest.mark.parametrize("method", ["lora", "qlora", "int8"])
def test_an_adapter_is_trained_and_scored(capsys, tiny_folder, data, runs, tmp_path, method):
    out = runs / method
    expected = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "loss.png",
        "metrics.jsonl",
        "run.json",
        "state",
    }
    assert {path.name for path in out.iterdir()} == expected
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    about = json.loads((out / "run.json").read_text())
    assert (
        about["settings"]["rank"] == 8
        and about["result"]["steps"] == 40
        and about["versions"]["torch"] == torch.__version__
    )
    assert about["quantization"] == QUANTIZATION.get(method)
    before = score(capsys, "--model", tiny_folder, "--data", data)
    after = score(
        capsys,
        "--model",
        tiny_folder,
        "--adapter",
        out,
        "--data",
        data,
        "--out",
        tmp_path / "answers.jsonl",
    )
    assert before == "exact match 0.00 (0 of 32)\n" and after == "exact match 1.00 (32 of 32)\n"
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert (
        answers[1] == {"prompt": "say bb", "expected": "b", "answer": "b", "hit": True}
        and len(answers) == 32
    )


def test_full_fine_tuning_writes_a_model_folder(capsys, data, runs):
    assert (
        score(capsys, "--model", runs / "full", "--data", data, "--split", "valid", "--limit", "5")
        == "exact match 1.00 (5 of 5)\n"
    )


def test_the_report(capsys, tiny_folder, data, tmp_path):
    options = dict(targets="q_proj,v_proj", steps=3, eval_every=2)
    assert finetune(tiny_folder, data, tmp_path / "run", "--checkpointing", **options) == 0
    out = capsys.readouterr().out
    assert (
        "qlora on" in out
        and "32 rows to learn from, 32 to validate" in out
        and "step 3/3 loss" in out
    )
    assert "validation loss" in out and "adapter_model.safetensors" in out
    records = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [(record["step"], "loss" in record) for record in records] == [
        (0, False),
        (1, True),
        (2, True),
        (2, False),
        (3, True),
        (3, False),
    ]


def test_finetune_again_gives_the_same_bytes(tiny_folder, data, runs, tmp_path):
    assert finetune(tiny_folder, data, tmp_path / "again", "--method", "qlora") == 0
    name = "adapter_model.safetensors"  # the header too: its metadata are sorted
    assert (tmp_path / "again" / name).read_bytes() == (runs / "qlora" / name).read_bytes()


def test_resume_of_a_finished_run_changes_nothing(capsys, runs):
    before = (runs / "lora" / "adapter_model.safetensors").read_bytes()
    assert main(["finetune", "--out", str(runs / "lora"), "--resume"]) == 0
    assert "going on after step 40" in capsys.readouterr().out
    assert (runs / "lora" / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("method", ["lora", "qlora", "int8"])
def test_a_merged_model_answers_as_the_trained_one(
    capsys, tiny_folder, data, runs, tmp_path, method
):
    from minilora import lora, qlora
    from minilora.qlora import int8

    merged = tmp_path / "merged"
    assert main(typed("merge", model=tiny_folder, adapter=runs / method, out=merged)) == 0
    trained = Llama.from_pretrained(tiny_folder)
    if method == "qlora":
        qlora.quantize_model(trained)
    if method == "int8":
        int8.quantize_model_int8(trained)
    lora.load_adapter(trained, runs / method)
    ids = torch.tensor([encode_prompt("say ccc", Tokenizer.from_pretrained(merged))])
    with torch.no_grad():
        # train mode: there an int8 layer multiplies with the very weights that were merged, not
        # with rounded activations
        torch.testing.assert_close(
            Llama.from_pretrained(merged)(ids), trained.train()(ids), rtol=1e-4, atol=1e-4
        )
    assert score(capsys, "--model", merged, "--data", data) == "exact match 1.00 (32 of 32)\n"


@pytest.mark.parametrize("method", ["qlora", "int8"])
def test_layers_without_an_adapter_are_decoded_by_merge(tiny_folder, data, tmp_path, method):
    from minilora import qlora
    from minilora.qlora import QLinear
    from minilora.qlora.int8 import Int8Linear

    run, merged = tmp_path / "run", tmp_path / "merged"
    assert (
        finetune(tiny_folder, data, run, "--method", method, "--targets", "q_proj", "--steps", 2)
        == 0
    )
    assert (
        main(["merge", "--model", str(tiny_folder), "--adapter", str(run), "--out", str(merged)])
        == 0
    )
    base = qlora.load_base(tiny_folder, "cpu", QUANTIZATION[method])
    packed = {
        path: layer
        for path, layer in base.named_modules()
        if isinstance(layer, (QLinear, Int8Linear))
    }
    written = Llama.from_pretrained(merged)
    assert len(packed) == 14
    for path, layer in packed.items():
        assert torch.equal(written.get_submodule(path).weight, layer.dense_weight()) == (
            "q_proj" not in path
        )


def test_the_base_under_an_int8_adapter_is_int8_again(tiny_folder, data, runs):
    """In evaluate, generate and merge alike, unless --code says otherwise; and a base alone where
    --code asks for it.
    """
    from minilora.qlora.int8 import Int8Linear
    from minilora.recipes import load

    def layer(adapter, code):
        model, _ = load.load(str(tiny_folder), adapter, code, "cpu")
        query = model.model.layers[0].self_attn.q_proj
        return query.base if adapter else query

    run = str(runs / "int8")
    assert (
        type(layer(run, None))
        is type(layer(run, "llm.int8"))
        is type(layer(None, "llm.int8"))
        is Int8Linear
    )
    assert type(layer(run, "none")) is torch.nn.Linear and layer(run, "nf4").quantized.code == "nf4"


def test_generate_and_chat(capsys, monkeypatch, tiny_folder, runs):
    model = str(runs / "full")
    capsys.readouterr()
    assert main(["generate", "--model", model, "--prompt", "say dd"]) == 0
    assert capsys.readouterr().out == "d\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("say eee"))
    assert main(["generate", "--model", model, "--prompt", "-"]) == 0
    assert capsys.readouterr().out == "e\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("say f\nsay gg\n"))
    assert main(["generate", "--model", model, "--chat", "--max-new", "4"]) == 0
    assert capsys.readouterr().out.startswith("f\n")
    sampled = []
    for _ in range(2):
        options = dict(prompt="the", temperature=2, seed=3, max_new=12)
        assert main(typed("generate", "--raw", model=tiny_folder, **options)) == 0
        sampled.append(capsys.readouterr().out)
    assert sampled[0] == sampled[1] != "\n"


def test_doctor_looks_everything_up(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in (
        "machine:",
        f"torch {importlib.metadata.version('torch')}",
        "cpu:",
        "bitsandbytes:",
        "tiny:",
        "tasks:",
    ):
        assert word in out


def test_help_lists_every_command(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert f"minilora {name}" in capsys.readouterr().out
    assert main(["--version"]) == 0


def test_help_and_typing_errors_load_no_torch():
    code = (
        "import sys; from minilora.cli.main import main; main(['finetune', '--help']); "
        "main(['tune']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def kl_of(text: str) -> list[float]:
    """The divergences that merge reports."""
    return [float(number) for number in re.findall(r"(\d\.\de[-+]\d\d)", text.splitlines()[-1])]


@pytest.mark.parametrize("options", [[], ["--data"]])
def test_merge_reports_how_far_the_answers_moved(
    capsys, tiny_folder, data, runs, tmp_path, options
):
    options = options + [str(data)] * len(options)
    merge = typed("merge", *options, model=tiny_folder, adapter=runs / "qlora")
    assert main([*merge, "--out", str(tmp_path / "exact")]) == 0
    (exact,) = kl_of(capsys.readouterr().out)
    assert main([*merge, "--out", str(tmp_path / "again"), "--requantize", "nf4"]) == 0
    dense, moved = kl_of(capsys.readouterr().out)
    assert dense == exact and abs(exact) < 1e-9 < 1e-5 < moved, (exact, moved)


def test_a_model_merged_into_four_bits_is_read_again(capsys, tiny_folder, data, runs, tmp_path):
    out = str(tmp_path / "again")
    merge = typed("merge", model=tiny_folder, adapter=runs / "qlora", out=out, requantize="nf4")
    assert main(merge) == 0
    assert (tmp_path / "again" / "model.safetensors").stat().st_size < (
        tiny_folder / "model.safetensors"
    ).stat().st_size
    capsys.readouterr()
    assert score(capsys, "--model", out, "--data", data, "--limit", "4").startswith("exact match ")
    asked = ["evaluate", "--model", out, "--data", str(data), "--limit", "4"]
    assert main([*asked, "--code", "nf4"]) == 0  # what it is already
    capsys.readouterr()
    assert main([*asked, "--code", "fp4"]) == 2
    assert "is in 4 bits already (nf4), not in fp4" in capsys.readouterr().err

"""Fine-tuning over a folder that is in 4 bits already, by the commands that a user types."""

import json
import shutil

import pytest
import torch
from four_bit_folders import dense, packed, reconfigured, rewritten
from safetensors.torch import load_file

from minilora.cli.main import main
from minilora.errors import MiniloraError
from minilora.recipes import finetune, load
from minilora.recipes.merge import copy_tokenizer
from minilora.recipes.settings import Settings, settle

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")

SKIPPED = {"llm_int8_skip_modules": ["lm_head", "model.layers.1.mlp"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rows = [
        {"prompt": f"say {word}", "response": word} for word in ("cat", "dog", "mat", "bird") * 3
    ]
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "valid", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines)
    return folder


def with_tokenizer(folder, tiny_folder):
    copy_tokenizer(tiny_folder, folder)
    return folder


@pytest.fixture(scope="module")
def four(tiny_folder, tmp_path_factory):
    """A folder as Unsloth uploads it: bf16, double quantization, some layers left dense."""
    place = tmp_path_factory.mktemp("four")
    source = dense(
        place / "dense", vocab_size=320, dtype=torch.bfloat16, max_position_embeddings=256
    )
    folder = packed(source, place / "unsloth-bnb-4bit", torch.bfloat16, **SKIPPED)
    with_tokenizer(source, tiny_folder)
    return reconfigured(with_tokenizer(folder, tiny_folder), unsloth_fixed=True)


def say(capsys, *words, code=0):
    assert main([str(word) for word in words]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def train(capsys, model, data, out, *more, code=0):
    words = ["--model", model, "--data", data, "--out", out, "--steps", 3, "--batch", 2]
    return say(capsys, "finetune", *words, "--device", "cpu", *more, code=code)


@pytest.fixture
def run(capsys, four, data, tmp_path):
    train(capsys, four, data, tmp_path / "run")
    return tmp_path / "run"


def about(run):
    return json.loads((run / "run.json").read_text())


def adapter(run):
    return load_file(run / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_lora_and_qlora_are_the_same_run(capsys, four, data, run, tmp_path):
    """The folder says how it is quantized; there is nothing left to choose."""
    train(capsys, four, data, tmp_path / "lora", "--method", "lora")
    train(capsys, four, data, tmp_path / "named", "--method", "qlora", "--code", "nf4")
    train(capsys, four, data, tmp_path / "none", "--code", "none")
    for other in ("lora", "named", "none"):
        assert same(adapter(run), adapter(tmp_path / other)), other
        form = about(tmp_path / other)["quantization"]
        assert form == {"code": "nf4", "block": 64, "double": True}
    keys = adapter(run)
    assert any("layers.1.mlp.up_proj" in key for key in keys), "the dense layers learn too"
    assert all(each.abs().max() > 0 for key, each in keys.items() if "lora_B" in key)


def test_the_base_is_the_folder_s_own(four, run):
    """Not the folder's weights decoded and quantized again."""
    model, _ = load.load(str(four), str(run), device="cpu")
    state = load_file(four / "model.safetensors")
    key = "model.layers.0.mlp.up_proj"
    assert torch.equal(model.get_submodule(key).base.weight, state[key + ".weight"])
    dense_one = model.get_submodule("model.layers.1.mlp.up_proj").base
    assert torch.equal(dense_one.weight, state["model.layers.1.mlp.up_proj.weight"].float())


def test_it_is_used_as_any_other(capsys, four, data, run):
    base = ["--model", four, "--adapter", run, "--device", "cpu"]
    asked = ["generate", *base, "--prompt", "say cat", "--max-new", 3]
    one = say(capsys, *asked)
    assert one == say(capsys, *asked, "--code", "nf4") == say(capsys, *asked, "--code", "none")
    assert "is in 4 bits already (nf4), not in int4" in say(
        capsys, *asked, "--code", "int4", code=2
    )
    assert say(capsys, "evaluate", *base, "--data", data).startswith("exact match ")


def test_resume_is_byte_for_byte(capsys, four, data, run, tmp_path):
    from minilora.train import loop

    real = loop.fit
    with pytest.MonkeyPatch.context() as patch:

        def stopped(*args, **more):
            seen = more.get("on_step")

            def on_step(step, loss):
                seen(step, loss)
                if step == 2:
                    raise KeyboardInterrupt

            return real(*args, **more | {"on_step": on_step})

        patch.setattr(loop, "fit", stopped)
        words = ["--model", four, "--data", data, "--out", tmp_path / "cut"]
        words += ["--steps", 3, "--batch", 2, "--save-every", 1, "--device", "cpu"]
        assert main([str(word) for word in ["finetune", *words]]) != 0
    say(capsys, "finetune", "--out", tmp_path / "cut", "--resume")
    assert same(adapter(run), adapter(tmp_path / "cut"))


def test_merged_and_merged_into_4_bits_and_trained_over_that(capsys, four, data, run, tmp_path):
    base = ["--model", four, "--adapter", run, "--device", "cpu"]
    say(capsys, "merge", *base, "--out", tmp_path / "merged")
    types = {each.dtype for each in load_file(tmp_path / "merged" / "model.safetensors").values()}
    assert types == {torch.bfloat16}
    told = say(capsys, "merge", *base, "--out", tmp_path / "again", "--requantize", "nf4")
    assert "after nf4" in told
    packed_layers = [
        {key for key in load_file(folder / "model.safetensors") if key.endswith("absmax")}
        for folder in (four, tmp_path / "again")
    ]
    assert packed_layers[0] == packed_layers[1], "what Unsloth left dense is dense again"
    for number, method in enumerate(("lora", "qlora")):
        out = tmp_path / f"second{number}"
        train(capsys, tmp_path / "again", data, out, "--method", method)
        second = ["--model", tmp_path / "again", "--adapter", out, "--device", "cpu"]
        assert say(capsys, "evaluate", *second, "--data", data).startswith("exact match")
    assert same(adapter(tmp_path / "second0"), adapter(tmp_path / "second1"))


def test_fp4_is_taken_as_it_is_unless_another_code_is_typed(
    capsys, four, data, tiny_folder, tmp_path
):
    fp4 = packed(
        four.parent / "dense",
        tmp_path / "fp4",
        bnb_4bit_quant_type="fp4",
        bnb_4bit_use_double_quant=False,
    )
    with_tokenizer(fp4, tiny_folder)
    train(capsys, fp4, data, tmp_path / "run")
    told = about(tmp_path / "run")
    assert told["settings"]["code"] == "fp4"
    assert told["quantization"] == {"code": "fp4", "block": 64, "double": False}
    line = train(capsys, fp4, data, tmp_path / "no", "--code", "nf4", code=2)
    assert "is in 4 bits already (fp4), not in nf4; give --code fp4" in line
    assert not (tmp_path / "no").exists()
    assert settle({"model": str(fp4)}).code == "fp4" and Settings(model=str(fp4)).code == "nf4"
    assert settle({"model": "tiny"}).code == settle({"model": "no/body"}).code == "nf4"


@pytest.mark.parametrize(
    "more, words",
    [
        (["--method", "full"], "is in 4 bits already (nf4), and --method full"),
        (["--method", "int8"], "is in 4 bits already (nf4), and llm.int8 (--method int8)"),
        (["--code", "int4"], "is in 4 bits already (nf4), not in int4"),
        (["--init", "pissa", "--method", "lora"], "--init pissa starts from the unquantized"),
        (["--init", "loftq"], "--init loftq starts from the unquantized"),
        (["--backend", "peft"], "take the unquantized model"),
        (["--backend", "peft", "--method", "lora"], "take the unquantized model"),
    ],
)
def test_what_cannot_be_over_4_bits_is_one_line(capsys, four, data, tmp_path, more, words):
    line = train(capsys, four, data, tmp_path / "no", *more, code=2)
    assert words in line and line.count("\n") == 1
    assert not (tmp_path / "no" / "run.json").exists()


def test_a_head_in_4_bits_is_trained_over_and_merged(capsys, four, data, tiny_folder, tmp_path):
    folder = packed(four.parent / "dense", tmp_path / "four", llm_int8_skip_modules=[])
    with_tokenizer(folder, tiny_folder)
    assert "lm_head.weight.absmax" in load_file(folder / "model.safetensors")
    train(capsys, folder, data, tmp_path / "run")
    base = ["--model", folder, "--adapter", tmp_path / "run", "--device", "cpu"]
    for more in ([], ["--requantize", "nf4"]):
        out = tmp_path / f"merged{len(more)}"
        say(capsys, "merge", *base, "--out", out, *more)
        assert "lm_head.weight.absmax" not in load_file(out / "model.safetensors")
        assert say(capsys, "evaluate", "--model", out, "--data", data).startswith("exact match")


def test_nan_in_the_folder_is_said_before_anything_is_written(capsys, four, data, tmp_path):
    copy = shutil.copytree(four, tmp_path / "copy")

    def spoil(state):
        state["model.layers.0.mlp.up_proj.weight.nested_absmax"][0] = float("nan")

    rewritten(copy, spoil)
    for words in (
        ["generate", "--prompt", "say cat"],
        ["evaluate", "--data", data],
        ["finetune", "--data", data, "--out", tmp_path / "no"],
    ):
        line = say(capsys, *words, "--model", copy, "--device", "cpu", code=2)
        assert "up_proj.weight.nested_absmax holds 1 NaN" in line and line.count("\n") == 1
    assert not (tmp_path / "no" / "run.json").exists()


def test_the_budget_counts_a_4_bit_base_by_either_method(four, tiny_folder):
    settings = Settings(model=str(four), method="lora")
    assert finetune.counted(settings, four).method == "qlora"
    assert finetune.counted(settings, tiny_folder) == settings


@pytest.mark.parametrize(
    "name, warned",
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", True),
        ("unsloth/Llama-3.2-1B-unsloth-bnb-4bit", True),
        ("mlx-community/Qwen3-0.6B-4bit", True),
        ("meta-llama/Llama-3.2-1B", False),
        ("someone/model-of-4bits-and-pieces", True),
        (None, False),
    ],
)
def test_an_adapter_of_a_4_bit_base_on_another_is_said_once(capsys, four, run, name, warned):
    reconfigured(run, name="adapter_config.json", base_model_name_or_path=name)
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(told | {"quantization": None}))
    whole = four.parent / "dense"
    for base, code, wanted in (
        (whole, None, warned),
        (whole, "none", False),
        (whole, "nf4", False),
        (four, None, False),
    ):
        capsys.readouterr()
        load.load(str(base), str(run), code, device="cpu")
        err = capsys.readouterr().err
        assert err.count("is not in 4 bits; --code nf4") == wanted, (base, code, err)


def test_a_python_caller_is_told_the_same(four, data, tmp_path):
    with pytest.raises(MiniloraError, match="is in 4 bits already"):
        settings = Settings(model=str(four), data=str(data), method="full", device="cpu")
        finetune.run(settings, tmp_path / "no", say=lambda line: None)

"""From a folder to an answer, as people type it: every end that the folder names is one, for
training, scoring and chats, and transformers' `generate` stops where ours does.
"""

import json

import pytest
import torch

from minilora.cli.main import main
from minilora.recipes import load
from minilora.text import encode_prompt
from minilora.text.chat import reply
from minilora.text.ends import answer_ends

EOS, TURN = 2, 4  # the template ends a turn with <|assistant|>, which so is an end of turn here
CHAT = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<|assistant|>"
    "{% else %}<|user|>{{ m['content'] }}?{% endif %}{% endfor %}"
)
EXAMPLES = [
    {"prompt": question, "response": answer}
    for question, answer in (
        ("who sat", "the cat"),
        ("who was there", "the bird and the dog"),
        ("on the mat", "who"),
        ("the dog", "sat on the mat"),
    )
]
# the tokenizer's EOS, config.json's, generation_config.json's, and what a model trained there says
FOLDERS = {
    "A: the turn's end in generation_config.json": ("<|eos|>", EOS, [EOS, TURN], TURN),
    "B: both in config.json": ("<|eos|>", [EOS, TURN], None, TURN),
    "C: the turn's end is the tokenizer's": ("<|assistant|>", [EOS, TURN], None, TURN),
    "D: the tokenizer's alone names the turn's end": ("<|assistant|>", EOS, None, TURN),
    "E: none in config.json": ("<|assistant|>", None, None, TURN),
    "F: generation_config.json alone": ("<|eos|>", None, TURN, TURN),
    "G: another in each": ("<|assistant|>", 0, [EOS], TURN),
    "H: nobody names the turn's end": ("<|eos|>", EOS, None, EOS),
    "I: nobody but the tokenizer names any": ("<|eos|>", None, {"temperature": 0.6}, EOS),
}


def make(tiny_folder, folder, eos, own, generation):
    folder.mkdir()
    for file in tiny_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name, fields in (
        ("config.json", {"eos_token_id": own}),
        ("tokenizer_config.json", {"eos_token": eos, "chat_template": CHAT}),
    ):
        read = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(read | fields))
    if generation is not None:
        fields = generation if isinstance(generation, dict) else {"eos_token_id": generation}
        (folder / "generation_config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(example) + "\n" for example in EXAMPLES))
    return file


def finetune(model, data, out, *more):
    given = ["--model", model, "--data", data, "--out", out, "--batch", 4, "--device", "cpu", *more]
    return main(["finetune", *map(str, given)])


def theirs(folder, ids, new=14):
    """What transformers alone writes, of the folder alone."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    out = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)
    return out[0, len(ids) :].tolist()


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("backend", ["minilora", "peft"])
@pytest.mark.parametrize("eos, own, generation, last", FOLDERS.values(), ids=FOLDERS)
def test_an_answer_ends_for_everyone(
    capsys, tiny_folder, tmp_path, data, eos, own, generation, last, backend
):
    model, out = make(tiny_folder, tmp_path / "model", eos, own, generation), tmp_path / "run"
    rate = ("--method", "full", "--steps", 80, "--lr", 0.01, "--backend", backend)
    assert finetune(model, data, out, *rate) == 0
    capsys.readouterr()

    llama, tokenizer = load.load(str(out), device="cpu")
    for example in EXAMPLES:
        ids = encode_prompt(example["prompt"], tokenizer)
        wanted = tokenizer.encode(example["response"])
        assert reply(llama, tokenizer, ids, 14) == example["response"]
        said = llama.generate(torch.tensor([ids]), 14)[0, len(ids) :].tolist()
        assert said == theirs(out, ids)
        assert said[: len(wanted)] == wanted and said[-1] == last
        assert set(said[len(wanted) :]) <= {last, TURN}
    assert main(["evaluate", "--model", str(out), "--data", str(data), "--device", "cpu"]) == 0
    assert "exact match 1.00 (4 of 4)" in capsys.readouterr().out
    shown = ["generate", "--model", str(out), "--prompt", "the dog", "--device", "cpu"]
    assert main(shown) == 0 and capsys.readouterr().out.strip() == "sat on the mat"


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("requantize", [(), ("--requantize", "nf4")], ids=["dense", "nf4"])
def test_a_merged_folder_names_every_end(capsys, tiny_folder, tmp_path, data, requantize):
    """Also of an adapter that was trained by the tokenizer's EOS, which config.json lacks."""
    model = make(tiny_folder, tmp_path / "model", "<|assistant|>", EOS, {"eos_token_id": [EOS, 9]})
    assert finetune(model, data, tmp_path / "run", "--steps", 2) == 0
    merge = ["--model", model, "--adapter", tmp_path / "run", "--out", tmp_path / "merged"]
    assert main(["merge", *map(str, merge), *requantize, "--device", "cpu"]) == 0
    saved = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert sorted(saved["eos_token_id"]) == [EOS, TURN, 9]
    llama, tokenizer = load.load(str(tmp_path / "merged"), device="cpu")
    assert answer_ends(llama, tokenizer) == [EOS, TURN, 9]


# ----------------------------------------------------------------------- what is refused, and where


def told(capsys, *call):
    """The one line of a refusal."""
    assert finetune(*call) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("backend", ["minilora", "peft"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_row_with_an_id_that_the_model_lacks_is_named(
    capsys, tiny_folder, tmp_path, backend, split
):
    """One row of forty holds a token that was added to the tokenizer and not to the model."""
    from tokenizers import AddedToken, Tokenizer

    model = make(tiny_folder, tmp_path / "model", "<|eos|>", EOS, None)
    tokens = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokens.add_special_tokens([AddedToken("<tool>", special=True)])
    number = tokens.token_to_id("<tool>")
    tokens.save(str(model / "tokenizer.json"))
    config = json.loads((model / "config.json").read_text())
    assert number <= config["vocab_size"]
    cut(model, number)

    data = tmp_path / "data"
    data.mkdir()
    good = [json.dumps(example) for example in EXAMPLES] * 9
    bad = json.dumps({"prompt": "who <tool>", "response": "the cat"})
    for name in ("train", "valid"):
        lines = [*good, "", *([bad] if name == split else []), good[0]]
        (data / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    line = told(capsys, model, data, tmp_path / "run", "--steps", 2, "--backend", backend)
    assert f"{data / split}.jsonl, line 38 holds token id {number}, the model knows 0 to" in line
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def cut(folder, size):
    """Give the model in `folder` that many rows for tokens, the tied head with them."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:size].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": size}))


@pytest.mark.parametrize("backend", ["minilora", "peft"])
def test_padding_that_the_model_lacks_is_named(capsys, tiny_folder, tmp_path, data, backend):
    from tokenizers import AddedToken, Tokenizer

    model = make(tiny_folder, tmp_path / "model", "<|eos|>", EOS, None)
    tokens = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokens.add_special_tokens([AddedToken("<more>", special=True)])
    number = tokens.token_to_id("<more>")
    tokens.save(str(model / "tokenizer.json"))
    fields = json.loads((model / "tokenizer_config.json").read_text()) | {"pad_token": "<more>"}
    (model / "tokenizer_config.json").write_text(json.dumps(fields))
    cut(model, number)
    line = told(capsys, model, data, tmp_path / "run", "--steps", 2, "--backend", backend)
    assert f"pad_token '<more>' has the id {number}, and the model knows 0 to {number - 1};" in line
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


@pytest.mark.parametrize("pad", [-1, None])
def test_a_padding_id_that_is_none_is_no_hindrance(capsys, tiny_folder, tmp_path, data, pad):
    model = make(tiny_folder, tmp_path / "model", "<|eos|>", EOS, None)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"pad_token_id": pad}))
    for number, backend in enumerate(("minilora", "peft")):
        out = tmp_path / str(number)
        assert finetune(model, data, out, "--steps", 2, "--backend", backend) == 0
    assert main(["evaluate", "--model", str(model), "--data", str(data), "--device", "cpu"]) == 0


# ------------------------------------------------------------------------- a run that made it worse


@pytest.mark.slow
def test_a_run_that_diverged_is_no_success(capsys, data, tmp_path):
    """The line, the exit code and run.json agree; what was trained is there for whoever looks."""
    out = tmp_path / "run"
    given = ("--steps", 4, "--warmup", 0)
    assert finetune("tiny", data, out, *given, "--lr", 1) == 2
    heard = capsys.readouterr()
    lines = heard.err.strip().splitlines()
    assert len(lines) == 1 and "the run diverged: on the rows of its first step" in lines[0]
    result = json.loads((out / "run.json").read_text())["result"]
    assert result["status"] == "diverged" and result["why"] in lines[0]
    assert (out / "adapter_model.safetensors").is_file()

    assert finetune("tiny", data, out, "--resume") == 2  # it has not become one since
    assert "the run diverged" in capsys.readouterr().err

    assert finetune("tiny", data, out, "--overwrite", *given, "--lr", 0.001) == 0
    assert capsys.readouterr().err.strip() == ""
    result = json.loads((out / "run.json").read_text())["result"]
    assert result["status"] == "finished" and "why" not in result

"""Qwen2, Qwen3 and Mistral through the commands: fine-tune, score, ask, merge."""

import json

import pytest
import torch
from family_twins import SMALL, their_model
from safetensors.torch import load_file

from minilora.cli.main import main
from minilora.llama import Llama

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.parity, pytest.mark.slow]

KINDS = {
    "qwen2": dict(model_type="qwen2", tie_word_embeddings=True),
    "qwen3": dict(model_type="qwen3", head_dim=24),
    "mistral": dict(model_type="mistral", sliding_window=12),
}


@pytest.fixture
def folder(tiny_folder, tmp_path, request):
    """A model of the family with the tiny one's tokenizer, its pad id said as old files say it."""
    place = tmp_path / "model"
    sizes = dict(vocab_size=320, hidden_size=64, intermediate_size=96, max_position_embeddings=256)
    their_model(SMALL | sizes | KINDS[request.param]).save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / name).write_bytes((tiny_folder / name).read_bytes())
    fields = json.loads((place / "config.json").read_text()) | {"pad_token_id": -1}
    (place / "config.json").write_text(json.dumps(fields))
    return place


@pytest.mark.parametrize("method", ["lora", "qlora", "int8", "full"])
@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_a_family_is_trained_scored_asked_and_merged(folder, tmp_path, capsys, method):
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": f"say {c * (1 + i % 5)}", "response": c} for i, c in enumerate("abcd" * 4)]
    for split in ("train", "valid", "test"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*argv):
        assert main([str(part) for part in argv]) == 0
        return capsys.readouterr().out

    out, merged = tmp_path / "out", tmp_path / "merged"
    steps = ("--steps", 30, "--lr", 1e-2, "--batch", 8)
    run("finetune", "--model", folder, "--data", data, "--out", out, "--method", method, *steps)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in metrics if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    given = ("--model", out) if method == "full" else ("--model", folder, "--adapter", out)
    assert "exact match" in run("evaluate", *given, "--data", data, "--limit", 4)
    answer = run("generate", *given, "--prompt", "say a", "--max-new", 5)
    if method != "full":
        run("merge", "--model", folder, "--adapter", out, "--out", merged)
        again = run("generate", "--model", merged, "--prompt", "say a", "--max-new", 5)
        assert method != "lora" or again == answer
    result = out if method == "full" else merged
    config = transformers.AutoConfig.from_pretrained(result)
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    assert config.model_type == kind
    ids = torch.arange(5, 25)[None]
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(
        result, output_loading_info=True, dtype=torch.float32
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    with torch.no_grad():
        ours = Llama.from_pretrained(result)(ids)
        assert (theirs(ids).logits - ours).abs().max() <= 1e-5 * ours.abs().max()
        if method == "lora":
            base = transformers.AutoModelForCausalLM.from_pretrained(folder)
            adapted = peft.PeftModel.from_pretrained(base, out)(ids).logits
            assert (adapted - ours).abs().max() <= 1e-5 * ours.abs().max()
    assert len(load_file(result / "model.safetensors")) == len(
        [name for name in theirs.state_dict() if name != "lm_head.weight"]
    ) + (not config.tie_word_embeddings)

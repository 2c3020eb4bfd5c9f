"""`minilora export`: adapters are merged in, 4 bits decoded, nothing that is there is replaced."""

import shutil
import sys

import numpy as np
import pytest
import torch
from exported_gguf import gguf, tensors, value

from minilora import lora
from minilora.cli.main import main
from minilora.llama import Llama
from minilora.system.files import data_folder
from minilora.text.tokenizer import Tokenizer


def test_the_shipped_base_begins_texts_as_its_folder_says(tmp_path):
    assert main(["export", "--type", "q8_0", "--out", str(tmp_path / "m.gguf")]) == 0
    told = Tokenizer.from_pretrained(data_folder() / "base").opening != []
    assert value(gguf.GGUFReader(tmp_path / "m.gguf"), "tokenizer.ggml.add_bos_token") is told


def test_a_missing_package_is_named(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    out = tmp_path / "m.gguf"
    assert main(["export", "--model", str(tiny_folder), "--out", str(out)]) == 2
    assert "pip install 'minilora[hub]'" in capsys.readouterr().err and not out.exists()


def adapter_for(folder, path):
    """A trained-looking adapter over the model in `folder`."""
    model = Llama.from_pretrained(folder)
    lora.add_lora(model, rank=4, alpha=8)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape) * 0.05)
    lora.save_adapter(model, path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_export_merges_the_adapter_as_merge_does(dtype, tiny_folder, tmp_path, capsys):
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    Llama.from_pretrained(tiny_folder).to(dtype).save_pretrained(base)
    adapter_for(base, tmp_path / "adapter")
    common = ["--model", str(base), "--adapter", str(tmp_path / "adapter")]
    assert main(["merge", *common, "--out", str(tmp_path / "merged")]) == 0
    assert main(["export", *common, "--type", "f32", "--out", str(tmp_path / "a.gguf")]) == 0
    again = ["--model", str(tmp_path / "merged"), "--type", "f32"]
    assert main(["export", *again, "--out", str(tmp_path / "b.gguf")]) == 0
    one, other = (tensors(gguf.GGUFReader(tmp_path / f"{name}.gguf")) for name in "ab")
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name].data, other[name].data) for name in one)
    assert "merged in, f32" in capsys.readouterr().out


@pytest.mark.parametrize("there", ["file", "folder", "link", "empty", "slash"])
def test_nothing_that_is_there_is_replaced(there, tiny_folder, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    if there == "file":
        out.write_text("mine")
    elif there == "folder":
        out.mkdir()
    elif there == "link":
        out.symlink_to(tmp_path / "nowhere")
    name = {"empty": "", "slash": f"{tmp_path}/new/"}.get(there, str(out))
    before = sorted(tmp_path.iterdir())
    assert main(["export", "--model", str(tiny_folder), "--out", name]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "--out" in line
    assert sorted(tmp_path.iterdir()) == before
    assert there != "file" or out.read_text() == "mine"


def test_a_model_in_4_bits_is_decoded(tiny_folder, tmp_path):
    options = ["--model", str(tiny_folder), "--type", "f32"]
    assert main(["export", *options, "--code", "nf4", "--out", str(tmp_path / "a.gguf")]) == 0
    from minilora import qlora

    model = qlora.quantize_model(Llama.from_pretrained(tiny_folder), "nf4")
    layer = model.model.layers[0].mlp.down_proj
    kept = tensors(gguf.GGUFReader(tmp_path / "a.gguf"))["blk.0.ffn_down.weight"]
    assert np.array_equal(kept.data, layer.dense_weight().detach().numpy())

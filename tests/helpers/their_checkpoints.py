"""Folders that transformers wrote, changed by hand, and how ours and theirs read them."""

import json

import pytest
import torch
from llama_twins import tokens
from safetensors.torch import save_file

from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.llama.weight_files import SINGLE


def store(folder, state):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / SINGLE)


def change(folder, **fields):
    """Other fields in config.json; "DROP": none of that name."""
    file = folder / "config.json"
    fields = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in fields.items() if value != "DROP"}))


def same(folder, atol=1e-5):
    """Whether ours reads the folder as transformers does, which must find every weight."""
    import transformers  # tests skip where it is missing

    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not told["missing_keys"], "the library itself reads something else"
    return equal(Llama.from_pretrained(folder), theirs, atol)


def equal(ours, theirs, atol=1e-5):
    ids = tokens(ours, 2, 11)
    with torch.no_grad():
        return float((ours(ids) - theirs(ids).logits).abs().max()) <= atol


def refusal(folder, **options):
    """The line in which ours refuses to read the folder."""
    with pytest.raises(MiniloraError) as told:
        Llama.from_pretrained(folder, **options)
    line = str(told.value)
    assert line.isprintable() and len(line) < len(str(folder)) + 400
    return line

"""Every way to stretch rope against transformers, in both of its spellings."""

import json

import pytest
from family_twins import TOLERANCE, YARN, difference, their_model
from llama_twins import tokens

from minilora.llama import Llama

pytestmark = pytest.mark.parity  # beside the library that people use

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

STRETCHED = {
    "yarn": YARN,
    "yarn, old spelling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
    "yarn, all its numbers": YARN
    | {"beta_fast": 4.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.5, "truncate": False},
    "yarn, unrounded": YARN | {"original_max_position_embeddings": 4096, "truncate": False},
    "yarn, its own temperature": YARN | {"attention_factor": 1.3},
    "yarn, no old length": {"rope_type": "yarn", "factor": 2.0},
    "linear": {"type": "linear", "factor": 3},
    "llama3, no old length": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "default": {"rope_type": "default"},
    "part of a head, which a Llama does not know": {
        "rope_type": "default",
        "partial_rotary_factor": 0.5,
    },
}


@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("outside", [{}, {"original_max_position_embeddings": 9}])
@pytest.mark.parametrize("name", STRETCHED)
def test_every_way_to_stretch_equals_transformers(tmp_path, name, outside, place):
    theirs = their_model(dict(model_type="llama"))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    del fields["rope_parameters"]
    fields |= {place: dict(STRETCHED[name]), "rope_theta": 123.0} | outside
    file.write_text(json.dumps(fields))
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ours = Llama.from_pretrained(tmp_path)
    ids = tokens(ours, 1, 60)
    assert difference(again, ours, ids) <= TOLERANCE
    assert difference(theirs, ours, ids) > 100 * TOLERANCE
    ours.save_pretrained(tmp_path / "ours")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert difference(back, ours, ids) <= TOLERANCE


def test_which_of_two_ropes_holds_is_as_in_transformers(tmp_path):
    their_model(dict(model_type="qwen2")).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    fields |= {
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
        "rope_theta": 500.0,
    }
    file.write_text(json.dumps(fields))
    theirs, ours = (
        make.from_pretrained(tmp_path) for make in (transformers.AutoModelForCausalLM, Llama)
    )
    assert difference(theirs, ours, tokens(ours, 1, 30)) <= TOLERANCE
    assert ours.config.rope_scaling["factor"] == 4.0 and ours.config.rope_theta == 500.0

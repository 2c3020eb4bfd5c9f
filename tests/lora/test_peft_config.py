"""Every field of PEFT's LoraConfig: answers as PEFT's, or a refusal that names it."""

import dataclasses
import json
import warnings

import pytest
import torch
from little_llamas import llama, our_llama, ours, theirs, write_adapter

from minilora import lora
from minilora.errors import MiniloraError, MiniloraWarning
from minilora.lora.peft_config import FIELDS, NO_EFFECT, OFF_WHEN_EMPTY, UNSUPPORTED

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity

SETTINGS = "adapter_config.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_adapter(llama(), folder, target_modules="all-linear")
    return folder, json.loads((folder / SETTINGS).read_text()), theirs(folder)


def edited(written, folder, fields):
    """The adapter with other settings, in a folder of its own."""
    (folder / "adapter_model.safetensors").write_bytes(
        (written[0] / "adapter_model.safetensors").read_bytes()
    )
    (folder / SETTINGS).write_text(json.dumps(written[1] | fields))
    return folder


def test_every_field_of_pefts_is_known():
    """A new PEFT with a new field turns this red: somebody has to say what it does."""
    known = [*FIELDS, *NO_EFFECT, *UNSUPPORTED]
    assert sorted(known) == sorted(field.name for field in dataclasses.fields(peft.LoraConfig))
    assert set(OFF_WHEN_EMPTY) <= set(UNSUPPORTED)


ON = {
    "alora_invocation_tokens": [1, 2],
    "arrow_config": {},
    "exclude_modules": ["k_proj"],
    "fan_in_fan_out": True,
    "kasa_config": {},
    "layer_replication": [[0, 1], [0, 2]],
    "layers_pattern": "layers",
    "layers_to_transform": 0,  # the first layer, and no "false"
    "lora_bias": True,
    "megatron_config": {"a": 1},
    "monteclora_config": {},
    "target_parameters": ["q_proj.weight"],
    "trainable_token_indices": [],
    "use_bdlora": {},
    "use_qalora": True,
    "velora_config": {},
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_what_is_not_done_here_is_refused_by_name(written, tmp_path, field):
    model = our_llama()
    with pytest.raises(MiniloraError, match=f"{SETTINGS}: {field} is .*does not support"):
        lora.load_adapter(model, edited(written, tmp_path, {field: ON[field]}))
    assert not lora.adapted_layers(model)


@pytest.mark.parametrize("field", OFF_WHEN_EMPTY)
@pytest.mark.parametrize("empty", [None, [], ""], ids=str)
def test_what_is_off_is_read_as_peft_reads_it(written, tmp_path, field, empty):
    folder = edited(written, tmp_path, {field: empty})
    found = ours(folder)
    try:
        wanted = theirs(folder)
    except (TypeError, ValueError):  # PEFT asks for None
        wanted = written[2]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_rslora": "false"},
        {"use_rslora": 0},
        {"use_dora": "no"},
        {"use_dora": 1},
        {"r": "4"},
        {"r": True},
        {"r": 4.5},
        {"r": 0},
        {"r": 10**30},
        {"lora_alpha": "6"},
        {"lora_alpha": None},
        {"lora_alpha": 10**400},
        {"lora_alpha": -6},
        {"lora_alpha": 0},
        {"lora_dropout": "0.1"},
        {"lora_dropout": 1.0},
        {"target_modules": 5},
        {"target_modules": [5]},
        {"target_modules": [""]},
        {"target_modules": {"q_proj": 1}},
        {"modules_to_save": 5},
        {"modules_to_save": "lm_head"},
        {"rank_pattern": "x"},
        {"rank_pattern": {"q_proj": "4"}},
        {"rank_pattern": {"q_proj": 0}},
        {"alpha_pattern": [1]},
        {"alpha_pattern": {"q_proj": "6"}},
        {"alpha_pattern": {"q_proj": 0}},
        {"init_lora_weights": 1},
        {"init_lora_weights": []},
        {"init_lora_weights": "none"},
        {"loftq_config": 4},
        {"bias": None},
        {"bias": "lora_only"},
        {"ensure_weight_tying": "true"},
        {"peft_type": None},
        {"peft_type": "lora"},
        {"peft_type": "ADALORA"},
        {"task_type": "SEQ_CLS"},
        {"base_model_name_or_path": 7},
        {"eva_config": 3},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_kind_is_named_with_its_file(written, tmp_path, fields):
    model, field = our_llama(), next(iter(fields))
    with pytest.raises(MiniloraError) as caught:
        lora.load_adapter(model, edited(written, tmp_path, fields))
    told = str(caught.value).partition(f"{tmp_path / SETTINGS}: ")[2]
    ours_alone = {"lora_alpha": "alpha", "lora_dropout": "dropout", "init_lora_weights": "init"}
    assert field in told or ours_alone[field] in told, str(caught.value)
    assert len(told) < 250 and "\n" not in told and not lora.adapted_layers(model)


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": None},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"use_rslora": None},
        {"use_rslora": True},
        {"modules_to_save": []},
        {"rank_pattern": {"nothing": 3}},
        {"alpha_pattern": {"q_proj": 2.5, r"layers\.1\..*": 3}},
        {"target_modules": "ALL-LINEAR"},
        {"target_modules": r".*\.(self_attn|mlp)\..*_proj"},
        {"task_type": None},
        {"eva_config": {"rho": 2.0}},
        {"megatron_core": "nowhere"},
        {"peft_version": "99.0", "revision": "main", "inference_mode": False},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_value_that_peft_reads_means_the_same_here(written, tmp_path, fields):
    folder = edited(written, tmp_path, fields)
    torch.testing.assert_close(ours(folder), theirs(folder), rtol=0, atol=1e-5)


def test_fields_that_peft_does_not_know_are_said(written, tmp_path):
    folder = edited(written, tmp_path, {"use_mora": True, "enable_lora": None, "mora_type": 6})
    with pytest.warns(MiniloraWarning, match="mora_type, use_mora: no fields of PEFT's LoRA"):
        found = ours(folder)
    assert torch.equal(found, written[2])
    with warnings.catch_warnings():
        warnings.simplefilter("error", MiniloraWarning)
        ours(edited(written, tmp_path, {"enable_lora": None}))

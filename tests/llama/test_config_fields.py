"""What config.json may say: wrong fields, sizes that no file has, models that are no Llamas."""

import json
import time

import pytest
import torch
from family_twins import SMALL
from llama_twins import tokens
from their_checkpoints import change, refusal, same

from minilora.errors import MiniloraError
from minilora.llama import Config, Llama

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize(
    "kind",
    [
        *("gemma", "gemma2", "gemma3_text", "phi", "phi3", "mixtral", "qwen2_moe", "qwen3_moe"),
        *("gpt2", "gpt_neox", "llama4", "mllama", "deepseek_v3", "bert", "t5", "falcon", "qwen"),
        *("Llama", "qwen3_next", "qwen2_vl", "ministral", "granite", "cohere", "smollm3", ""),
    ],
)
def test_other_families_are_refused_by_name(kind):
    with pytest.raises(MiniloraError) as told:
        Config.from_hf(SMALL | {"model_type": kind})
    line = str(told.value)
    assert f"model_type is {kind!r}" in line and "llama, mistral, qwen2, qwen3" in line
    assert "did you mean" not in line and "\n" not in line


@pytest.mark.parametrize(
    "classes, family",
    [
        (["MistralForCausalLM"], "mistral"),
        (["Qwen2ForCausalLM"], "qwen2"),
        (["Qwen3Model"], "qwen3"),
        (["LlamaForCausalLM"], "llama"),
        (["GemmaForCausalLM"], "GemmaForCausalLM"),
        (["Qwen2MoeForCausalLM"], "Qwen2MoeForCausalLM"),
        (["MixtralForCausalLM", "X"], "MixtralForCausalLM"),
        ([], "llama"),
    ],
)
def test_without_a_model_type_the_class_says_the_family(classes, family):
    fields = SMALL | {"architectures": classes}
    if family.endswith("LM"):
        with pytest.raises(MiniloraError, match=f"architectures names '{family}'"):
            Config.from_hf(fields)
    else:
        assert Config.from_hf(fields).model_type == family


def test_a_model_of_text_and_pictures_names_its_part():
    fields = {"model_type": "llava", "text_config": SMALL | {"model_type": "qwen2"}}
    with pytest.raises(MiniloraError, match="'llava'.*its text_config is a qwen2"):
        Config.from_hf(fields)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(layer_types=["full_attention"]), "names 1 layers and num_hidden_layers is 3"),
        (dict(layer_types=["linear_attention"] * 3), "'linear_attention'; known are"),
        (dict(layer_types=["sliding_attention"] * 3), "no sliding_window in use"),
        (dict(use_sliding_window="true"), 'use_sliding_window is "true"'),
        (dict(use_sliding_window=True, sliding_window=0), "sliding_window is 0, less than 1"),
        (dict(max_window_layers=-1), "max_window_layers is -1"),
    ],
)
def test_a_window_that_cannot_be_is_refused(changes, said):
    with pytest.raises(MiniloraError, match=said):
        Config.from_hf(SMALL | {"model_type": "qwen2"} | changes)


@pytest.mark.parametrize(
    "fields, said",
    [
        (dict(num_hidden_layers=1_000_000), "num_hidden_layers is 1000000, more than 1000"),
        (dict(num_hidden_layers=10**30), "num_hidden_layers is 1"),
        (dict(num_hidden_layers=1000), "asks for 1000 layers, and the weights hold 3"),
        (dict(num_hidden_layers=4), "asks for 4 layers, and the weights hold 3"),
        (dict(vocab_size=10**8), "config.json asks for [100000000, 32]"),
        (dict(hidden_size=10**6), "config.json asks for [61, 1000000]"),
        (dict(intermediate_size=10**7), "config.json asks for [32, 10000000]"),
        (dict(num_attention_heads=10**5, num_key_value_heads=10**5), "config.json asks for ["),
        (dict(head_dim=10**5), "config.json asks for ["),
        (dict(vocab_size=10**12), "vocab_size is 1000000000000, more than"),
        (dict(head_dim=2**62), "head_dim is 4611686018427387904, more than"),
    ],
)
def test_sizes_are_compared_with_the_files_before_a_model_is_made(make, fields, said):
    folder = make()
    change(folder, **fields)
    start = time.process_time()
    assert said in refusal(folder)
    assert time.process_time() - start < 2


def test_fewer_layers_than_the_file_has_are_not_taken(make):
    folder = make()
    change(folder, num_hidden_layers=2)
    assert "unexpected model.layers.2." in refusal(folder)


def test_a_huge_context_costs_nothing(make):
    folder = make()
    change(folder, max_position_embeddings=10**9)
    assert same(folder)
    assert Llama.from_pretrained(folder).model.rotary.cos.shape[0] == 4096


WRONG = ["x", "1e-6", "", [], [1], {}, {"a": 1}, True, -1, 0, -0.5]


@pytest.mark.parametrize("place", ["", "rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("value", [*WRONG, None, 10**400], ids=lambda value: repr(value)[:9])
def test_a_theta_that_is_none_is_refused(value, place):
    inside = {"rope_theta": value}
    fields = inside if not place else {place: inside | {"rope_type": "default"}}
    with pytest.raises(MiniloraError, match=r"config\.json: .*rope_theta is"):
        Config.from_hf(SMALL | fields)


@pytest.mark.parametrize("field", ["rms_norm_eps", "initializer_range"])
@pytest.mark.parametrize("value", [*WRONG, None, 10**400], ids=lambda value: repr(value)[:9])
def test_a_number_that_is_none_is_refused(field, value):
    if field == "initializer_range" and value == 0 and value is not False:
        return
    with pytest.raises(MiniloraError, match=f"config.json: {field} is"):
        Config.from_hf(SMALL | {field: value})


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["rope_theta", "rms_norm_eps", "hidden_size"])
def test_what_is_no_json_number_is_refused_with_its_field(make, field, text):
    folder = make()
    file = folder / "config.json"
    fields = json.loads(file.read_text())
    fields.pop(field, None)
    file.write_text(json.dumps(fields)[:-1] + f', "{field}": {text}}}')
    assert f"{field} is {text}" in refusal(folder)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
@pytest.mark.parametrize("value", [*WRONG, None, 10**400], ids=lambda value: repr(value)[:9])
def test_a_factor_that_is_none_is_refused(kind, value):
    rope = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": kind, "factor": value}
    with pytest.raises(MiniloraError, match=f"config.json: rope type '{kind}' needs factor"):
        Config.from_hf(SMALL | {"rope_scaling": rope})


@pytest.mark.parametrize(
    "rope, said",
    [
        ("linear", "rope_scaling is"),
        ([1], "rope_scaling is"),
        ({"rope_type": 5}, "rope_scaling.rope_type is 5"),
        ({"rope_type": None}, "rope_scaling.rope_type is null"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope type 'dynamic' is not supported"),
        ({"type": "longrope", "short_factor": [1]}, "rope type 'longrope' is not supported"),
        ({"type": "su", "factor": 2.0}, "rope type 'su' is not supported"),
        ({"rope_type": "linear"}, "needs factor"),
        (
            {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4},
            "high_freq_factor is 4; it must be above",
        ),
        (
            {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
            "partial_rotary_factor is 0.5",
        ),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": "32"}, "needs beta_fast"),
    ],
)
def test_a_rope_that_is_none_is_refused(rope, said):
    with pytest.raises(MiniloraError, match=said):
        Config.from_hf(SMALL | {"rope_scaling": rope})


@pytest.mark.parametrize("field", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
@pytest.mark.parametrize("value", ["false", "true", 0, 1, None, [], {}])
def test_a_switch_is_true_or_false(field, value):
    with pytest.raises(MiniloraError, match=f"config.json: {field} is"):
        Config.from_hf(SMALL | {field: value})


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", ["2", 1.5, 2.0, True, {}, [[1]], ["2"], 10**30])
def test_an_id_is_a_whole_number(field, value):
    with pytest.raises(MiniloraError, match=f"config.json: {field}"):
        Config.from_hf(SMALL | {field: value})


def test_negative_ids_are_none():
    config = Config.from_hf(SMALL | dict(pad_token_id=-1, bos_token_id=-1, eos_token_id=[-1, 7]))
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (None, None, [7])


def test_a_pad_beyond_the_vocabulary_is_refused_as_transformers_does():
    with pytest.raises(MiniloraError, match="pad_token_id is 61, and the ids of .* end at 60"):
        Config.from_hf(SMALL | {"pad_token_id": 61})


@pytest.mark.parity
def test_a_folder_whose_pad_is_minus_one_generates_as_transformers_does(make, family):
    folder = make(model_type=family)
    change(folder, pad_token_id=-1)
    assert same(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ours = Llama.from_pretrained(folder)
    ids = tokens(ours, 1, 5)
    wanted = theirs.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(ours.generate(ids, 6), wanted)


def test_an_end_beyond_the_vocabulary_fills_no_row(make):
    ours = Llama.from_pretrained(make())
    ours.config.pad_token_id = None
    out = ours.generate(tokens(ours, 3, 5), 20, stop=[999, *range(30)])
    assert int(out.max()) < ours.config.vocab_size

"""Configurations of the models that people use: their parameters, and what their fields mean."""

from copy import deepcopy

import pytest
import torch
from llama_sizes import sizes

from minilora.llama import Config, Llama

# the fields that matter, and the parameters that transformers counts
LLAMAS = {
    "Llama 2 7B": (
        sizes(vocab=32000, hidden=4096, ffn=11008, layers=32, heads=32, kv_heads=32, context=4096)
        | dict(rms_norm_eps=1e-5, rope_scaling=None, tie_word_embeddings=False),
        6_738_415_616,
    ),
    "Llama 3.2 1B": (
        sizes(vocab=128256, hidden=2048, ffn=8192, layers=16, heads=32, kv_heads=8, context=131072)
        | dict(
            head_dim=64,
            rms_norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling={
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            tie_word_embeddings=True,
            bos_token_id=128000,
            eos_token_id=[128001, 128008, 128009],
        ),
        1_235_814_400,
    ),
    "TinyLlama 1.1B": (
        sizes(vocab=32000, hidden=2048, ffn=5632, layers=22, heads=32, kv_heads=4, context=2048)
        | dict(rms_norm_eps=1e-5, tie_word_embeddings=False),
        1_100_048_384,
    ),
    "SmolLM2 135M": (
        sizes(vocab=49152, hidden=576, ffn=1536, layers=30, heads=9, kv_heads=3, context=8192)
        | dict(rms_norm_eps=1e-5, rope_theta=100000, tie_word_embeddings=True),
        134_515_008,
    ),
}
FAMILIES = {
    "Qwen/Qwen2.5-0.5B": (
        sizes(vocab=151936, hidden=896, ffn=4864, layers=24, heads=14, kv_heads=2, context=32768)
        | dict(
            model_type="qwen2",
            max_window_layers=24,
            sliding_window=32768,
            use_sliding_window=False,
            use_mrope=False,
            rope_theta=1000000.0,
            tie_word_embeddings=True,
            bos_token_id=151643,
            eos_token_id=151643,
        ),
        494_032_768,
    ),
    "Qwen/Qwen3-0.6B": (
        sizes(vocab=151936, hidden=1024, ffn=3072, layers=28, heads=16, kv_heads=8, context=40960)
        | dict(
            model_type="qwen3",
            head_dim=128,
            max_window_layers=28,
            sliding_window=None,
            use_sliding_window=False,
            rope_scaling=None,
            rope_theta=1000000,
            attention_bias=False,
            tie_word_embeddings=True,
        ),
        596_049_920,
    ),
    "mistralai/Mistral-7B-v0.1": (
        sizes(vocab=32000, hidden=4096, ffn=14336, layers=32, heads=32, kv_heads=8, context=32768)
        | dict(model_type="mistral", sliding_window=4096, rope_theta=10000.0, rms_norm_eps=1e-5),
        7_241_732_096,
    ),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", FAMILIES)
def test_published_configurations_have_their_parameters(name):
    transformers = pytest.importorskip("transformers")
    fields, count = FAMILIES[name]
    with torch.device("meta"):
        ours = Llama(Config.from_hf(fields))
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**fields)
        )
    shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    reference = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    if fields.get("tie_word_embeddings"):
        del reference["lm_head.weight"]
    assert shapes == reference
    assert sum(parameter.numel() for parameter in ours.parameters()) == count


@pytest.mark.parity
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_field_that_is_left_out_is_what_transformers_takes(family):
    transformers = pytest.importorskip("transformers")
    fields = sizes(vocab=64, hidden=64, ffn=64, layers=2, heads=32) | dict(model_type=family)
    theirs, ours = transformers.AutoConfig.for_model(**fields), Config.from_hf(fields)
    for name in (
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.head_dim == getattr(theirs, "head_dim", 2)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)


@pytest.mark.parametrize("name", LLAMAS)
def test_published_configurations_have_their_parameter_counts(name):
    fields, count = LLAMAS[name]
    with torch.device("meta"):
        model = Llama(Config.from_hf(fields | {"model_type": "llama", "hidden_act": "silu"}))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("name", LLAMAS)
def test_both_config_layouts_are_read_alike_and_written_for_both(name):
    transformers = pytest.importorskip("transformers")
    fields = deepcopy(LLAMAS[name][0])  # transformers writes into a rope that it is given
    four = Config.from_hf(fields)
    theirs = transformers.LlamaConfig(**fields).to_dict()
    assert "rope_parameters" in theirs
    five = Config.from_hf(theirs)
    assert vars(five) == vars(four)
    assert Config.from_hf(four.to_hf()) == four
    back = transformers.LlamaConfig(**four.to_hf())
    assert back.rope_parameters == transformers.LlamaConfig(**fields).rope_parameters


def test_what_transformers_writes_into_the_fields_stays_out_of_the_config():
    transformers = pytest.importorskip("transformers")
    config = Config.from_hf(deepcopy(LLAMAS["Llama 3.2 1B"][0]))
    before = deepcopy(config)
    fields = config.to_hf()
    transformers.LlamaConfig(**fields)
    assert fields["rope_scaling"] != before.rope_scaling, "it writes nothing any more"
    assert config == before

"""Shapes and cards: parameter counts against what was published and against the libraries' own
models, and clear errors.
"""

import json

import pytest
import torch

from minilora.budget import catalog
from minilora.errors import MiniloraError


@pytest.mark.parametrize("name", catalog.MODELS)
def test_every_parameter_is_counted(name):
    shape = catalog.MODELS[name]
    assert shape.parameters == shape.published and shape.source


def built(shape):
    """The model of that shape by transformers, without memory."""
    import transformers as t

    with torch.device("meta"):
        if shape.family == "gpt":
            config = t.GPT2Config(
                vocab_size=shape.vocab,
                n_positions=shape.positions,
                n_embd=shape.hidden,
                n_layer=shape.layers,
                n_head=shape.heads,
            )
            return t.GPT2LMHeadModel(config)
        if shape.family == "neox":
            config = t.GPTNeoXConfig(
                vocab_size=shape.vocab,
                hidden_size=shape.hidden,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                intermediate_size=shape.ffn,
            )
            return t.GPTNeoXForCausalLM(config)
        if shape.family == "mt5":
            config = t.MT5Config(
                vocab_size=shape.vocab,
                d_model=shape.hidden,
                d_kv=shape.head_dim,
                d_ff=shape.ffn,
                num_layers=shape.layers,
                num_heads=shape.heads,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
            )
            return t.MT5ForConditionalGeneration(config)
        fields = dict(
            vocab_size=shape.vocab,
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=shape.tied,
        )
        if shape.qkv_bias:
            return t.Qwen2ForCausalLM(t.Qwen2Config(**fields))
        if shape.name.startswith("mistral"):
            return t.MistralForCausalLM(t.MistralConfig(**fields, head_dim=shape.head_dim))
        return t.LlamaForCausalLM(t.LlamaConfig(**fields, head_dim=shape.head_dim))


ONE_OF_EACH = [
    "llama-7b",
    "llama-2-70b",
    "llama-3.2-1b",
    "smollm2-135m",
    "mistral-7b",
    "qwen2.5-0.5b",
    "qwen2.5-7b",
    "gpt-3",
    "gpt-neox-20b",
    "mt0-large",
]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_transformers_counts_the_same(name):
    shape = catalog.model(name)
    model = built(shape)
    # transformers 5 ties mT5's head; the checkpoint has one of its own
    apart = shape.table if shape.family == "mt5" else 0
    assert sum(parameter.numel() for parameter in model.parameters()) + apart == shape.parameters
    linears = [
        m
        for path, m in model.named_modules()
        if path != "lm_head"
        and path != "embed_out"
        and hasattr(m, "weight")
        and m.weight.ndim == 2
        and not isinstance(m, torch.nn.Embedding)
    ]
    assert sum(m.weight.numel() for m in linears) == shape.linear_parameters


def test_our_llama_counts_the_same():
    from minilora.llama import Llama

    for name in ("tiny", "tinyllama-1.1b", "llama-3.2-3b"):
        with torch.device("meta"):
            model = Llama(catalog.llama_config(name))
        assert (
            sum(parameter.numel() for parameter in model.parameters())
            == catalog.model(name).parameters
        )
    with pytest.raises(MiniloraError, match="no plain Llama"):
        catalog.llama_config("gpt-3")


def test_the_shipped_base_is_the_one_in_the_catalogue():
    from tools import project

    read, known = catalog.model(project.ROOT / "data" / "base"), catalog.model("tiny")
    for field in (
        "hidden",
        "ffn",
        "layers",
        "heads",
        "kv_heads",
        "vocab",
        "head_dim",
        "tied",
        "context",
        "parameters",
    ):
        assert getattr(read, field) == getattr(known, field), field


def test_any_config_is_read(tmp_path):
    fields = dict(
        model_type="qwen2",
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        tie_word_embeddings=True,
    )
    (tmp_path / "config.json").write_text(json.dumps(fields))
    for path in (tmp_path, tmp_path / "config.json"):
        assert catalog.model(path).parameters == catalog.model("qwen2.5-0.5b").parameters
    without = {name: value for name, value in fields.items() if name != "num_key_value_heads"}
    assert catalog.shape_of(without).kv_heads == 14


WHOLE = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=100
)


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"model_type": "lama"}, "families that load here are llama, mistral"),
        ({"model_type": "llama", "hidden_size": 0}, "hidden_size is 0"),
        ({"model_type": "llama"}, "hidden_size.* missing"),
        ({"hidden_size": True}, "hidden_size is true"),
        ({"model_type": ["llama"]}, "model_type is"),
        (WHOLE | {"max_position_embeddings": "many"}, 'max_position_embeddings is "many"'),
        (WHOLE | {"num_key_value_heads": 3}, "4 is no multiple of num_key_value_heads 3"),
        (WHOLE | {"num_key_value_heads": 8}, "4 is no multiple of num_key_value_heads 8"),
        (WHOLE | {"hidden_size": 30}, "hidden_size is 30, no multiple of num_attention_heads 4"),
        (WHOLE | {"hidden_size": 28}, "head_dim is 7.*even"),
        (WHOLE | {"head_dim": 5}, "head_dim is 5.*even"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, said):
    with pytest.raises(MiniloraError, match=said):
        catalog.shape_of(fields)


def test_heads_with_a_size_of_their_own_need_not_divide_the_hidden_size():
    assert catalog.shape_of(WHOLE | {"hidden_size": 30, "head_dim": 8}).query == 32


def test_a_broken_config_is_refused(tmp_path):
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(MiniloraError, match="config.json"):
            catalog.model(tmp_path)


@pytest.mark.parametrize(
    "asked, name",
    [
        ("LLAMA-7B", "llama-7b"),
        ("llama-1-65b", "llama-65b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
        ("TinyLlama", "tinyllama-1.1b"),
        ("llama-30b", "llama-33b"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "tinyllama-1.1b"),
        ("mistralai/Mistral-7B-v0.1", "mistral-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("mistralai/Mistral-7B-v0.3", "mistral-7b-v0.3"),
        ("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("meta-llama/Llama-2-13b-chat-hf", "llama-2-13b"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.3-70b"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"),
    ],
)
def test_names_are_read_kindly(asked, name):
    assert catalog.model(asked).name == name


@pytest.mark.parametrize(
    "asked, name",
    [
        ("t4", "T4"),
        ("A100", "A100 80"),
        ("a100-40gb", "A100 40"),
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("H100 SXM", "H100"),
        ("A6000", "RTX A6000"),
        ("Tesla T4", "T4"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_cards_are_read_kindly(asked, name):
    assert catalog.gpu(asked).name == name and catalog.gpu(catalog.gpu(asked)).name == name


@pytest.mark.parametrize(
    "asked",
    [
        "Qwen/Qwen2.5-Coder-7B-Instruct",
        "lmsys/vicuna-7b-v1.5",
        "mistralai/Mistral-7B-v0.4x",
        "someone/llama-2-7b-chatty",
    ],
)
def test_a_name_with_another_word_is_no_guess(asked):
    with pytest.raises(MiniloraError, match="unknown model"):
        catalog.model(asked)


def test_a_folder_is_read_although_its_name_is_in_the_catalogue(tmp_path):
    folder = tmp_path / "Llama-3.2-1B-Instruct"
    folder.mkdir()
    fields = dict(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=100,
    )
    (folder / "config.json").write_text(json.dumps(fields))
    assert catalog.model(folder).hidden == 64


@pytest.mark.parametrize(
    "name",
    ["gemma-7b", "google/gemma-2-9b", "phi-3-mini", "mixtral-8x7b", "falcon-7b", "alpaca-7b"],
)
def test_a_model_of_another_family_is_not_what_was_meant(name):
    with pytest.raises(MiniloraError, match="unknown model") as told:
        catalog.model(name)
    assert "did you mean" not in str(told.value) and "config.json" in str(told.value)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("lama-7b", "llama-7b"),
        ("tinylama-1.1b", "tinyllama-1.1b"),
        ("mistrl-7b", "mistral-7b"),
        ("qwn2.5-7b", "qwen2.5-7b"),
        ("meta/llama-7", "llama-7b"),
    ],
)
def test_a_slip_in_a_familys_name_is_seen(name, meant):
    with pytest.raises(MiniloraError, match=f"did you mean .*{meant}"):
        catalog.model(name)


def test_unknown_names_bring_the_nearest():
    for call, said in [
        (lambda: catalog.model("lama-3-8b"), "did you mean llama-3-8b"),
        (lambda: catalog.gpu("H10"), "H100"),
        (lambda: catalog.link("PCIe 6"), "PCIe 5"),
        (lambda: catalog.gpu("A200"), "A100"),
        (lambda: catalog.gpu("zzz"), "known are T4"),
    ]:
        with pytest.raises(MiniloraError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_cards_hold_what_a_data_sheet_says():
    for card in catalog.GPUS.values():
        assert 0.85 * card.memory < card.usable < 1.08 * card.memory and card.source
        assert card.price is None or (
            card.price.low <= card.price.high and card.price.date and card.price.source
        )
        assert card.rate("fp32") < card.rate("fp16")
    with pytest.raises(
        MiniloraError,
        match="T4 has no bf16 matrix units; choose a precision among fp32, fp16, int8",
    ):
        catalog.gpu("T4").rate("bf16")


def test_a_card_has_what_cuda_reports_not_what_is_marketed():
    for name, gigabytes, reported in (("T4", 16, 14.74), ("L4", 24, 22.03), ("H100", 80, 79.11)):
        card = catalog.gpu(name)
        assert card.memory == gigabytes * 10**9 and card.usable == int(reported * 2**30)

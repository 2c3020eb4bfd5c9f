"""Llama folders that nobody wrote a test for: configurations drawn at random, old and new spelling,
tokenizers with and without BOS, PAD, template.

Tolerance: as in test_hub.py, 2e-5 of losses of about 5 nats; the same folder in two spellings must
give the same bits.
"""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_folders import BOS, EOS, LLAMA3, rows, write

from minilora import hub, lora
from minilora.errors import MiniloraError
from minilora.text import IGNORE, encode_prompt, encode_rows
from minilora.train import fit
from minilora.train.checks import CheckFailed

for library in ("transformers", "peft", "bitsandbytes"):
    pytest.importorskip(library)
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 2e-5
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 10000.0,
}
STACKS = ("minilora", "transformers")


def attach(folder, stack, method, rank=2):
    """The model with an adapter whose first numbers depend on the seed alone."""
    model = hub.load(folder, method, stack=stack, device="cpu")
    torch.manual_seed(5)
    return (lora.add_lora if stack == "minilora" else hub.prepare)(model, rank, 8)


def losses(folder, method, data, **more):
    return [
        fit(
            attach(folder, stack, method),
            data,
            steps=3,
            batch_size=4,
            lr=1e-2,
            warmup=0,
            progress=False,
            **more,
        ).losses
        for stack in STACKS
    ]


# -- drawn at random


@st.composite
def configurations(draw):
    """Fields of config.json: any heads, sizes that are no multiples of anything, every switch of a
    Llama.
    """
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    groups = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6) if heads % n == 0]))
    fields = {
        "num_attention_heads": heads,
        "num_key_value_heads": heads // groups,
        "head_dim": 2 * draw(st.integers(2, 12)),
        "hidden_size": 2 * heads * draw(st.integers(-(-8 // heads), 48 // heads)),
        "intermediate_size": 4 * draw(st.integers(4, 32)),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "rms_norm_eps": draw(st.sampled_from([1e-5, 1e-6])),
        "tie_word_embeddings": draw(st.booleans()),
        "initializer_range": 0.15,
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "rope_parameters": draw(
            st.sampled_from(
                [
                    {"rope_type": "default", "rope_theta": 1e4},
                    {"rope_type": "default", "rope_theta": 5e5},
                    LINEAR,
                    LLAMA3,
                ]
            )
        ),
    }
    return (
        fields,
        draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        draw(st.sampled_from(["lora", "qlora"])),
        draw(st.booleans()),
    )


@settings(
    max_examples=6,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(drawn=configurations())
def test_any_configuration_loses_alike_in_both(tmp_path_factory, drawn):
    fields, dtype, method, old = drawn
    folder = write(tmp_path_factory.mktemp("drawn"), fields, dtype)
    if old:
        spell_as_before(folder)
    ours, theirs = losses(folder, method, rows(8, 2))
    assert ours == pytest.approx(theirs, abs=TOLERANCE)


# -- spelled as transformers 4 did


def spell_as_before(folder):
    """rope_theta beside rope_scaling, in the place of rope_parameters."""
    fields = json.loads((folder / "config.json").read_text())
    rope = fields.pop("rope_parameters")
    fields |= {
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
        "torch_dtype": fields.pop("dtype"),
    }
    (folder / "config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "default", "rope_theta": 123.0}, LINEAR, LLAMA3, YARN],
    ids=lambda rope: rope["rope_type"],
)
def test_both_spellings_mean_the_same(tmp_path, rope):
    new = write(tmp_path / "new", {"rope_parameters": rope}, torch.bfloat16)
    old, other = (
        shutil.copytree(new, tmp_path / "old"),
        write(
            tmp_path / "other",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}},
            torch.bfloat16,
        ),
    )
    spell_as_before(old)
    assert "rope_parameters" not in json.loads((old / "config.json").read_text())
    ids = torch.tensor([[5, 9, 11, 40, 41, 17, 30, 22, 21, 8]])
    for stack in STACKS:
        with torch.no_grad():
            one, two, three = (
                hub.answering(hub.load(each, "lora", stack=stack, device="cpu"))
                if stack == "transformers"
                else hub.load(each, "lora", stack=stack, device="cpu")
                for each in (new, old, other)
            )
            assert torch.equal(one(ids), two(ids)) and not torch.allclose(
                one(ids), three(ids), atol=1e-3
            ), stack


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "llama3", "factor": 8.0},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_a_rope_that_is_not_there_is_refused(tmp_path, stack, rope):
    folder = write(tmp_path, {})
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(fields | {"rope_parameters": {"rope_theta": 1e4, **rope}})
    )
    with pytest.raises(
        MiniloraError,
        match=f"config.json: rope type '{rope['rope_type']}' (is not supported; known are default, "
        "linear, llama3, yarn|needs low_freq_factor)",
    ):
        hub.load(folder, "qlora", stack=stack, device="cpu")


# -- tokenizers


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% if m['role'] == "
    "'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}{% if add_generation_prompt "
    "%}assistant: {% endif %}"
)
PUTS_BOS = {  # a Llama's tokenizer.json: BOS before whatever is encoded
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|bos|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [1], "tokens": ["<|bos|>"]}},
}
# name -> (the template, does tokenizer.json put a BOS itself, the special tokens that are named)
TOKENIZERS = {
    "no template, no pad": (None, True, {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}),
    "a template with its own BOS": (
        TEMPLATE,
        True,
        {"bos_token": "<|bos|>", "eos_token": "<|eos|>"},
    ),
    "no BOS at all": (TEMPLATE, False, {"eos_token": "<|eos|>", "pad_token": "<|pad|>"}),
}
EXAMPLES = [{"prompt": f"say {c}", "response": c * (1 + i % 3)} for i, c in enumerate("abcdefgh")]


@pytest.fixture
def speaking(tiny_folder, tmp_path):
    """name -> a model folder with that tokenizer."""

    def folder(name, **fields):
        template, puts, named = TOKENIZERS[name]
        # more rows than the tokenizer has tokens
        write(tmp_path / "model", {"vocab_size": 384, "max_position_embeddings": 64, **fields})
        tokenizer = json.loads((tiny_folder / "tokenizer.json").read_text())
        (tmp_path / "model" / "tokenizer.json").write_text(
            json.dumps(tokenizer | {"post_processor": PUTS_BOS if puts else None})
        )
        told = {"tokenizer_class": "PreTrainedTokenizerFast", **named} | (
            {"chat_template": template} if template else {}
        )
        (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(told))
        return tmp_path / "model"

    return folder


@pytest.mark.parametrize("name", TOKENIZERS)
def test_one_bos_a_learned_eos_and_the_same_losses(speaking, name):
    """Where PAD is missing it is EOS, which is learned all the same; BOS stands once, wherever it
    comes from; ids are those of transformers.
    """
    from transformers import AutoTokenizer

    folder, (template, _, named) = speaking(name), TOKENIZERS[name]
    tokenizer, theirs = hub.tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    data = encode_rows(EXAMPLES, tokenizer)
    for ids, labels in data:
        assert ids.count(BOS) == ("bos_token" in named) and (ids[0] == BOS) == (
            "bos_token" in named
        )
        assert labels.count(EOS) == 1 and [label for label in labels if label != IGNORE][-1] == EOS
    assert tokenizer.pad_id == (0 if "pad_token" in named else EOS)
    question = [{"role": "user", "content": "say a"}]
    text = (
        theirs.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        if template
        else f"{tokenizer.bos}say a\n"
    )
    assert encode_prompt("say a", tokenizer) == theirs(text, add_special_tokens=False)["input_ids"]
    ours, others = losses(folder, "qlora", data)
    assert ours == pytest.approx(others, abs=TOLERANCE)


@pytest.mark.parametrize("stack", STACKS)
def test_two_bos_and_foreign_ids_are_caught_in_both(speaking, stack):
    folder = speaking("a template with its own BOS")
    data = encode_rows(EXAMPLES, hub.tokenizer(folder))
    with pytest.raises(CheckFailed, match="two BOS tokens"):
        fit(
            attach(folder, stack, "lora"),
            [([BOS, *ids], [IGNORE, *labels]) for ids, labels in data],
            steps=1,
            progress=False,
        )
    # added to the tokenizer alone
    with pytest.raises(
        CheckFailed, match="token id 400, the model knows 0 to 383; use the tokenizer of this model"
    ):
        fit(
            attach(folder, stack, "lora"),
            [
                (ids[:3] + [400] + ids[3:], labels[:3] + [IGNORE] + labels[3:])
                for ids, labels in data
            ],
            steps=1,
            progress=False,
        )


def test_a_tokenizer_without_eos_is_refused(speaking):
    folder = speaking("no BOS at all")
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(MiniloraError, match="names no eos_token"):
        hub.tokenizer(folder)

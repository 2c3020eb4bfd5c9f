"""A Llama out of a GGUF: the weights and logits of the model that was put into it, and those of
transformers' `gguf_file=`. What is no Llama is refused by name.
"""

import numpy as np
import pytest
import torch
from llama_twins import LLAMA3, twins
from tiny_gguf import write

from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.llama import gguf as reading

transformers = pytest.importorskip("transformers")

QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]  # what the package encodes
WIDE = dict(hidden_size=64, head_dim=16, intermediate_size=96, num_attention_heads=4)
WIDE |= dict(num_key_value_heads=2, rope_scaling=None, attention_bias=False, mlp_bias=False)


def ids_of(model, rows=2, length=20):
    torch.manual_seed(0)
    return torch.randint(0, model.config.vocab_size, (rows, length))


def require_same_logits(ours, theirs, bound=1e-5):
    ids = ids_of(theirs)
    with torch.no_grad():
        assert float((ours(ids) - theirs(ids).logits).abs().max()) < bound


def theirs_from(path, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype
    ).eval()


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(12))
def test_weights_and_logits_are_those_that_were_put_in(tmp_path, seed):
    """Heads in groups, sizes of heads, biases, tied tables, stretched positions."""
    scaling = {"rope_scaling": None} if seed % 3 == 1 else {}
    theirs, ours = twins(seed, **scaling)
    rope = theirs.config.rope_parameters
    fields = {}
    if rope["rope_type"] == "linear":
        fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    read = Llama.from_pretrained(write(tmp_path / "m.gguf", theirs, fields=fields))
    for name, tensor in ours.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    require_same_logits(read, theirs)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *QUANTIZED])
def test_every_type_is_decoded_as_transformers_does(tmp_path, kind):
    theirs, _ = twins(1, **WIDE)
    path = write(tmp_path / "m.gguf", theirs, kind)
    peer, read = theirs_from(path), Llama.from_pretrained(path)
    require_same_logits(read, peer)
    state = peer.state_dict()
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, state[name].float()), name


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_in_bf16_the_numbers_are_those_of_transformers_in_bf16(tmp_path, kind):
    theirs, _ = twins(1, **WIDE)
    path = write(tmp_path / "m.gguf", theirs, kind)
    peer = theirs_from(path, torch.bfloat16).state_dict()
    read = Llama.from_pretrained(path, dtype=torch.bfloat16).state_dict()
    assert {tensor.dtype for tensor in read.values()} == {torch.bfloat16}
    for name, tensor in read.items():
        assert torch.equal(tensor, peer[name].bfloat16()), name


@pytest.mark.parity
@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_families_whose_rows_are_in_hugging_faces_order(tmp_path, arch, tied):
    make = {"qwen2": transformers.Qwen2ForCausalLM, "qwen3": transformers.Qwen3ForCausalLM}[arch]
    torch.manual_seed(0)
    config = make.config_class(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        tie_word_embeddings=tied, initializer_range=0.2,
    )  # fmt: skip
    theirs = make(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    path = write(tmp_path / "m.gguf", theirs, arch=arch)
    read = Llama.from_pretrained(path)
    assert read.config.model_type == arch and read.config.tie_word_embeddings is tied
    require_same_logits(read, theirs)
    if arch == "qwen2":  # transformers takes no size of heads out of a GGUF, and 128 for a Qwen3
        require_same_logits(read, theirs_from(path))


@pytest.mark.parity
@pytest.mark.parametrize(
    "scaling",
    [
        {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
        {**LLAMA3, "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 16.0},
    ],
)
def test_llama_3s_positions_are_found_again_in_their_factors(tmp_path, scaling):
    changes = dict(WIDE, head_dim=32, rope_scaling=scaling, rope_theta=500000.0)
    theirs, ours = twins(3, **changes, max_position_embeddings=512)
    read = Llama.from_pretrained(write(tmp_path / "m.gguf", theirs))
    from minilora.llama.rope import rope_frequencies

    torch.testing.assert_close(
        rope_frequencies(read.config), rope_frequencies(ours.config), rtol=1e-6, atol=0
    )
    ids = ids_of(theirs, 1, 300)
    with torch.no_grad():
        assert float((read(ids) - theirs(ids).logits).abs().max()) < 1e-4


@pytest.mark.parity
def test_yarn(tmp_path):
    scaling = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
    theirs, _ = twins(3, **dict(WIDE, rope_scaling=scaling))
    fields = {f"llama.rope.scaling.{key}": value for key, value in (
        ("type", "yarn"), ("factor", 4.0), ("original_context_length", 32),
    )}  # fmt: skip
    require_same_logits(
        Llama.from_pretrained(write(tmp_path / "m.gguf", theirs, fields=fields)), theirs
    )


def test_a_qwen3_that_is_silent_on_its_heads_is_llama_cpps(tmp_path):
    theirs, _ = twins(1, **WIDE)
    fields = {"qwen3.attention.key_length": None, "qwen3.attention.value_length": None}
    path = write(tmp_path / "m.gguf", theirs, arch="qwen3", fields=fields)
    assert reading.read_config(path).head_dim == 16  # and not the 128 of config.json


def test_a_number_of_32_bits_reads_as_it_was_written(tmp_path):
    theirs, _ = twins(1, **WIDE, rms_norm_eps=1e-5, rope_theta=500000.0)
    config = reading.read_config(write(tmp_path / "m.gguf", theirs))
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 500000.0)


def test_without_a_type_what_is_exact_stays_exact_and_blocks_become_bf16(tmp_path):
    theirs, _ = twins(1, **WIDE)
    for kind, matrix in (("F32", torch.float32), ("F16", torch.float16), ("Q8_0", torch.bfloat16)):
        path = write(tmp_path / f"{kind}.gguf", theirs, kind)
        exact = Llama.from_pretrained(path).state_dict()
        kept = reading.load(Llama, path, dtype=None).state_dict()
        assert kept["model.embed_tokens.weight"].dtype == matrix
        assert kept["model.norm.weight"].dtype == torch.float32  # random, so not exact in 16 bits
        if kind != "Q8_0":
            assert all(torch.equal(kept[name].float(), exact[name]) for name in exact)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "norm" in name:
                parameter.fill_(1.5)
    kept = reading.load(Llama, write(tmp_path / "n.gguf", theirs, "Q8_0"), dtype=None)
    assert {tensor.dtype for tensor in kept.state_dict().values()} == {torch.bfloat16}


def test_ends_of_a_text_are_llama_cpps(tmp_path):
    theirs, _ = twins(1, **WIDE)
    names = ["<|pad|>", "<s>", "</s>", "<|eot_id|>", "<|im_end|>", "x"]
    rows = theirs.config.vocab_size

    def words(writer):
        writer.add_token_list(names + [f"[PAD{i}]" for i in range(6, rows)])
        writer.add_token_types([3, 3, 3, 3, 1, 1] + [5] * (rows - 6))
        writer.add_eos_token_id(5), writer.add_eot_token_id(4), writer.add_pad_token_id(0)

    config = reading.read_config(write(tmp_path / "m.gguf", theirs, words=words))
    # the file's end, the end of a turn, then control tokens that llama.cpp knows by their text
    assert config.eos_token_id == [5, 4, 2, 3] and config.pad_token_id == 0


@pytest.mark.parametrize(
    "changes, told",
    [
        (dict(fields={"general.architecture": "gemma2"}), "architecture"),
        (dict(fields={"llama.expert_count": 8}), "llama.expert_count is 8"),
        (dict(fields={"llama.logit_scale": 2.0}), "llama.logit_scale is 2.0"),
        (dict(fields={"llama.attention.causal": False}), "llama.attention.causal"),
        (dict(fields={"llama.rope.scaling.type": "longrope"}), '"longrope"'),
        (dict(fields={"llama.rope.dimension_count": 8}), "llama.rope.dimension_count is 8"),
        (dict(fields={"llama.attention.value_length": 8}), "value_length is 8"),
        (dict(fields={"llama.block_count": 4000000000}), "num_hidden_layers is 4000000000"),
        (dict(fields={"llama.block_count": None}), "lacks llama.block_count"),
        (dict(fields={"llama.embedding_length": "64"}), 'hidden_size is "64"'),
        (dict(fields={"llama.attention.head_count": [4, 4]}), "num_attention_heads is [4, 4]"),
        (dict(fields={"llama.feed_forward_length": 97}), "the metadata asks for"),
        (dict(fields={"llama.attention.layer_norm_rms_epsilon": float("nan")}), "epsilon is nan"),
        (dict(drop=["blk.0.ffn_up.weight"]), "has no tensor blk.0.ffn_up.weight"),
        (dict(drop=["token_embd.weight"]), "no table of tokens"),
        (dict(extra={"blk.0.ffn_gate_inp.weight": np.ones((2, 64), np.float32)}), "ffn_gate_inp"),
        (dict(extra={"rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}), "no scheme"),
        (dict(extra={"rope_freqs.weight": np.zeros(8, np.float32)}), "none for heads of 16"),
    ],
)
def test_what_is_no_plain_llama_is_refused_in_one_line(tmp_path, changes, told):
    theirs, _ = twins(1, **WIDE)
    arch = changes.get("fields", {}).pop("general.architecture", "llama")
    path = write(tmp_path / "m.gguf", theirs, arch=arch, **changes)
    with pytest.raises(MiniloraError) as caught:
        Llama.from_pretrained(path)
    assert told in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nan_is_refused(tmp_path):
    theirs, _ = twins(1, **WIDE)
    with torch.no_grad():
        theirs.model.layers[0].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(MiniloraError, match="blk.0.ffn_up.weight holds 1 NaN"):
        Llama.from_pretrained(write(tmp_path / "m.gguf", theirs))

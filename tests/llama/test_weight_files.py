"""Checkpoints as they lie about: which mean the same model, and what is said of the rest."""

import json
import time

import pytest
import torch
from family_twins import SMALL, their_model
from llama_twins import tokens
from safetensors.torch import load_file, save_file

from minilora.errors import MiniloraError
from minilora.llama import Config, Llama
from minilora.llama.checkpoint import EMBEDDING, HEAD
from minilora.llama.weight_files import INDEX, SINGLE, own_name

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def make(tmp_path):
    """Fields → a folder that transformers wrote."""

    def folder(**fields):
        their_model({"model_type": "llama"} | fields).save_pretrained(tmp_path)
        return tmp_path

    return folder


def store(folder, state):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / SINGLE)


def change(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def same(folder, atol=1e-5):
    """Whether ours reads the folder as transformers does, which must find every weight."""
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not told["missing_keys"], "the library itself reads something else"
    return equal(Llama.from_pretrained(folder), theirs, atol)


def equal(ours, theirs, atol=1e-5):
    ids = tokens(ours, 2, 11)
    with torch.no_grad():
        return float((ours(ids) - theirs(ids).logits).abs().max()) <= atol


def refusal(folder):
    with pytest.raises(MiniloraError) as told:
        Llama.from_pretrained(folder)
    line = str(told.value)
    assert line.isprintable() and len(line) < len(str(folder)) + 400
    return line


# one of two tables that are tied


@pytest.mark.parity
def test_either_of_two_tied_tables_is_enough(make, family):
    folder = make(model_type=family, tie_word_embeddings=True)
    state = load_file(folder / SINGLE)
    assert HEAD not in state
    store(folder, state | {HEAD: state[EMBEDDING].clone()})
    assert same(folder)
    store(folder, {HEAD if name == EMBEDDING else name: state[name] for name in state})
    assert same(folder)


def test_two_tied_tables_that_differ_are_refused(make):
    folder = make(tie_word_embeddings=True)
    state = load_file(folder / SINGLE)
    store(folder, state | {HEAD: state[EMBEDDING] + 1})
    assert "set tie_word_embeddings to false" in refusal(folder)
    change(folder, tie_word_embeddings=False)  # as the line says
    assert same(folder)
    store(folder, state | {HEAD: torch.randn(70, 32)})
    change(folder, tie_word_embeddings=True)
    assert "lm_head.weight has shape [70, 32], config.json asks for [61, 32]" in refusal(folder)


def test_a_head_that_is_missing_is_not_drawn_at_random(make):
    folder = make(model_type="qwen2")
    state = load_file(folder / SINGLE)
    del state[HEAD]
    store(folder, state)
    assert "lack lm_head.weight; if its head is its embedding" in refusal(folder)
    store(folder, state | {"score.weight": torch.ones(2, 32)})
    assert "it is a classifier" in refusal(folder)


# names


@pytest.mark.parity
@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_saved_without_its_head_lacks_a_prefix(make, family, tied):
    """`LlamaModel.save_pretrained` writes such names; transformers reads them back."""
    folder = make(model_type=family, tie_word_embeddings=tied)
    state = load_file(folder / SINGLE)
    store(folder, {name.removeprefix("model."): tensor for name, tensor in state.items()})
    assert same(folder)


@pytest.mark.parametrize(
    "wrapped",
    [
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "_fsdp_wrapped_module.{}",
    ],
)
def test_the_names_of_wrappers_are_taken_off(make, wrapped):
    """transformers warns and draws every weight at random."""
    folder = make(model_type="qwen3")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    state = load_file(folder / SINGLE)
    store(folder, {wrapped.format(name): tensor for name, tensor in state.items()})
    assert equal(Llama.from_pretrained(folder), theirs)


def test_wrappers_inside_a_name_are_taken_off():
    assert (
        own_name("model.layers.0._orig_mod.self_attn._checkpoint_wrapped_module.q_proj.weight")
        == "model.layers.0.self_attn.q_proj.weight"
    )
    assert own_name("layers.1.mlp.up_proj.weight") == "model.layers.1.mlp.up_proj.weight"
    assert own_name("lm_head.weight") == HEAD and own_name("norm.weight") == "model.norm.weight"


def test_two_names_of_one_tensor_are_refused(make):
    folder = make()
    state = load_file(folder / SINGLE)
    store(folder, state | {"module." + EMBEDDING: state[EMBEDDING].clone()})
    assert "stands in model.safetensors too" in refusal(folder)


@pytest.mark.parity
def test_frequencies_that_old_versions_saved_do_not_count(make):
    folder = make()
    state = load_file(folder / SINGLE)
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    store(folder, state | buffers | {"model.rotary_emb.inv_freq": torch.full((4,), 9.0)})
    assert same(folder)
    store(folder, state | {"model.layers.0.self_attn.rotary.inv_freq": torch.ones(4)})
    assert "unexpected model.layers.0.self_attn.rotary.inv_freq" in refusal(folder)


def test_an_adapter_in_a_models_place_is_named(make):
    folder = make()
    store(folder, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(1)})
    assert "an adapter's weights; give them as --adapter" in refusal(folder)


def test_a_name_that_spoils_the_line_is_cut(make):
    folder = make()
    state = load_file(folder / SINGLE)
    store(folder, state | {"a\nb\x1b[31m" + "x" * 5000: torch.ones(1)})
    assert "unexpected a b" in refusal(folder)


# types


@pytest.mark.parity
@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64]
)
def test_every_float_is_read_and_types_may_be_mixed(make, family, dtype):
    folder = make(model_type=family)
    state = load_file(folder / SINGLE)
    store(folder, {name: t.to(dtype) if "proj" in name else t for name, t in state.items()})
    assert same(folder)


def test_nan_in_a_float_of_one_byte_is_seen(make):
    folder = make()
    state = load_file(folder / SINGLE)
    weight = state["model.norm.weight"]
    weight[5] = float("nan")
    store(folder, state | {"model.norm.weight": weight.to(torch.float8_e4m3fn)})
    assert "model.norm.weight holds 1 NaN" in refusal(folder)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64]
)
def test_what_is_no_float_is_refused_by_its_type(make, dtype):
    folder = make()
    state = load_file(folder / SINGLE)
    store(folder, state | {"model.norm.weight": state["model.norm.weight"].to(dtype)})
    assert f"model.norm.weight is {dtype}, not a float" in refusal(folder)


def test_a_double_beyond_fp32_is_refused(make):
    folder = make()
    state = load_file(folder / SINGLE)
    weight = state["model.norm.weight"].double()
    weight[0] = 1e300
    store(folder, state | {"model.norm.weight": weight})
    line = refusal(folder)
    assert "float32 is too narrow for it, download" in line


# files


def shards(folder, more=None):
    """The single file in two, with an index."""
    state = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names, mapping = sorted(state), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({each: state[each] for each in part} | (more or {}), folder / name)
        mapping |= {each: name for each in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    return mapping


@pytest.mark.parity
def test_shards_are_read(make, family):
    folder = make(model_type=family)
    shards(folder)
    assert same(folder)


def test_a_single_file_beside_shards_is_refused(make):
    folder = make()
    single = (folder / SINGLE).read_bytes()
    shards(folder)
    (folder / SINGLE).write_bytes(single)
    line = refusal(folder)
    assert "two models; move the one away" in line and SINGLE in line and INDEX in line
    (folder / INDEX).write_text(json.dumps({"weight_map": {HEAD: SINGLE}}))
    assert same(folder)  # an index may name the single file


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        ".",
        "",
        "a\\b",
        "\x00",
        "n" * 5000,
    ],
)
def test_an_index_names_files_of_its_own_folder(make, name):
    folder = make()
    mapping = shards(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": mapping | {HEAD: name}}))
    assert INDEX in refusal(folder)


@pytest.mark.parametrize("where", ["..", "inside", "absolute"])
def test_a_shard_that_lies_elsewhere_is_not_read(make, where):
    folder = make()
    (folder / "inside").mkdir()
    state = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    place = {"..": "../inside/x.safetensors", "inside": "inside/x.safetensors"}
    inner = folder / "inner"
    inner.mkdir()
    (folder / "config.json").rename(inner / "config.json")
    (inner / "inside").mkdir()
    name = place.get(where, str(folder / "inside" / "x.safetensors"))
    save_file(state, inner / name)
    (inner / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, name)}))
    assert "must name files in this folder" in refusal(inner)


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "it is []"),
        ("{}", "there is no weight_map"),
        ('{"weight_map": {}}', "weight_map"),
        ('{"weight_map": ["a"]}', "weight_map"),
        ('{"weight_map": {"a": 5}}', "weight_map"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_an_index_that_is_none(make, content, said):
    folder = make()
    shards(folder)
    (folder / INDEX).write_text(content)
    line = refusal(folder)
    assert INDEX in line and said in line


def test_pointers_of_git_lfs_are_named(make):
    folder = make()
    shards(folder)
    (folder / "model-00002-of-00002.safetensors").write_bytes(POINTER)
    line = refusal(folder)
    assert "model-00002-of-00002.safetensors is a pointer of Git LFS" in line and "lfs pull" in line


@pytest.mark.parametrize(
    "name, said",
    [
        ("pytorch_model.bin", "could run code when read; convert it to safetensors"),
        ("pytorch_model-00001-of-00002.bin", "M.from_pretrained('OLD').save_pretrained('NEW')"),
        ("model.pt", "could run code"),
        ("consolidated.00.pth", "in its maker's own layout"),
        ("consolidated.safetensors", "in its maker's own layout"),
        ("llama-q4_k_m.gguf", "give that file itself"),
        ("adapter_model.safetensors", "--adapter"),
        ("weights.safetensors", "call it model.safetensors"),
        ("tf_model.h5", "TensorFlow's"),
        ("flax_model.msgpack", "Flax's"),
    ],
)
def test_what_lies_there_instead_is_named_and_never_opened(make, name, said):
    folder = make()
    (folder / SINGLE).unlink()
    assert "with its weights" in refusal(folder)
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/read'\ntR.")
    line = refusal(folder)
    assert name in line and said in line


def test_a_file_in_a_folders_place_is_named(tmp_path):
    file = tmp_path / SINGLE
    file.write_bytes(b"x")
    assert "give the folder that holds config.json" in refusal(file)


# sizes, before anything is made


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


# fields of config.json


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

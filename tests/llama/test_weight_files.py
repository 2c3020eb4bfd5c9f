"""Weights as they lie about: shards and their index, pointers, and files that are none of ours."""

import json

import pytest
from safetensors.torch import load_file, save_file
from their_checkpoints import refusal, same

from minilora.llama.checkpoint import HEAD
from minilora.llama.weight_files import INDEX, SINGLE

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


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

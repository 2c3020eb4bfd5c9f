"""The tensors of a 4-bit weight in a file: read in every form that is stored, and checked."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minilora.errors import MiniloraError
from minilora.quantize import bnb_format, quantize
from minilora.quantize.bnb_format import from_tensors, part_keys, part_keys_by_name, to_tensors
from minilora.quantize.stored_form import refuse_foreign

NAME = "model.layers.0.mlp.up_proj.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__nf4"


def tensors(shape=(48, 64), code="nf4", double=True, block=64):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return to_tensors(quantize(x, code, block, double), NAME)


def facts(stored, **changes):
    """The JSON beside the weight with some fields changed; None takes one out."""
    told = json.loads(bytes(stored[STATE].tolist())) | changes
    text = json.dumps({key: value for key, value in told.items() if value is not None})
    stored[STATE] = torch.tensor(list(text.encode()), dtype=torch.uint8)


def put(part, value):
    return lambda stored: stored.update({NAME + part: value(stored[NAME + part])})


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 40)),
    st.sampled_from(["nf4", "fp4", "int4", "int3", "int8"]),
    st.booleans(),
    st.sampled_from([32, 64]),
    st.sampled_from(["column", "row", "flat"]),
)
def test_what_was_written_is_read_in_any_shape(shape, code, double, block, form):
    stored = tensors(shape, code, double, block)
    wanted, written = from_tensors(stored, NAME).dequantize(), dict(stored)
    shapes = {"column": (-1, 1), "row": (1, -1), "flat": (-1,)}
    stored = {
        key: each if ".quant_state." in key else each.reshape(shapes[form])
        for key, each in stored.items()
    }
    found = from_tensors(stored, NAME)
    assert torch.equal(found.dequantize(), wanted) and found.code == code
    again = to_tensors(found, NAME)
    assert again.keys() == written.keys()
    for key in again:
        assert torch.equal(again[key].reshape(-1), written[key].reshape(-1)), key


@pytest.mark.parametrize(
    "storage", [torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_bytes_seen_as_numbers_of_another_type(storage):
    """transformers' bnb_4bit_quant_storage, with which FSDP shards what is packed."""
    stored = tensors()
    wanted = from_tensors(stored, NAME)
    stored[NAME] = stored[NAME].reshape(-1).view(storage).reshape(-1, 1)
    assert torch.equal(from_tensors(stored, NAME).packed, wanted.packed)


@pytest.mark.parametrize(
    "change, words",
    [
        (put(".nested_absmax", lambda t: t * float("nan")), "nested_absmax holds 1 NaN"),
        (put(".nested_absmax", lambda t: t / 0), "nested_absmax holds 1 NaN or infinite"),
        (put(".nested_quant_map", lambda t: t * float("nan")), "nested_quant_map holds 256 NaN"),
        (put(".quant_map", lambda t: t + 0.01), "does not hold nf4's 16 levels"),
        (put(".quant_map", lambda t: t[:15]), "does not hold nf4's 16 levels"),
        (
            put(".nested_quant_map", lambda t: t[:200]),
            "nested_quant_map has 200 entries.*needs 256",
        ),
        (put(".nested_absmax", lambda t: torch.cat([t, t])), "nested_absmax has 2 entries"),
        (put(".absmax", lambda t: t[:-1]), r"absmax has 47 entries, shape \[48, 64\].*needs 48"),
        (put("", lambda t: t[:-1]), r"weight has 1535 entries.*needs 1536"),
        (put(".absmax", lambda t: t.view(torch.int8)), "absmax is torch.int8.*torch.uint8 belongs"),
        (put(".absmax", lambda t: t.float()), "absmax is torch.float32.*torch.uint8 belongs"),
        (
            put(".quant_map", lambda t: t.half()),
            "quant_map is torch.float16.*torch.float32 belongs",
        ),
        (put(".absmax", lambda t: t.reshape(6, 8)), r"absmax is torch.uint8 of shape \[6, 8\]"),
        (put("", lambda t: t.reshape(1, -1, 1)), r"shape \[1, 1536, 1\], which holds no packed"),
        (put("", lambda t: t.to(torch.int64)), "torch.int64 .*holds no packed codes"),
        (lambda s: facts(s, shape=[48, 65]), "needs"),
        (lambda s: facts(s, shape=[-48, -64]), r"shape\.\d is -\d+, less than 0"),
        (lambda s: facts(s, shape=[10**30, 10**30]), "needs"),
        (lambda s: facts(s, shape="x"), 'shape is "x", where a list belongs'),
        (lambda s: facts(s, blocksize=0), "blocksize is 0, less than 1"),
        (lambda s: facts(s, blocksize="64"), "blocksize is .*where a whole number belongs"),
        (lambda s: facts(s, blocksize=None), "there is no blocksize"),
        (lambda s: facts(s, dtype="int8"), 'dtype is "int8", and not one of'),
        (lambda s: facts(s, quant_type="fp4"), 'says "fp4"'),
        (lambda s: facts(s, nested_blocksize=0), "nested_blocksize is 0, less than 1"),
        (lambda s: facts(s, nested_blocksize=None), "nested_blocksize"),
        (lambda s: facts(s, nested_blocksize=10**30), "nested_blocksize is 10+, more than"),
        (lambda s: facts(s, blocksize=10**30), "blocksize is 10+, more than"),
        (lambda s: facts(s, nested_offset="x"), "nested_offset is .*where a number belongs"),
        (lambda s: facts(s, nested_offset=None), "absmax is torch.uint8"),
        (lambda s: facts(s, nested_offset=1e39), "absmax, decoded, holds 48 NaN or infinite"),
        (lambda s: s.update({STATE: s[STATE].repeat(100)}), "is no short text in bytes"),
        (lambda s: s.update({STATE: s[STATE].float()}), "is no short text in bytes"),
        (
            lambda s: s.update({STATE: torch.tensor(list(b"[" * 9000), dtype=torch.uint8)}),
            "nested too deep|cannot be read as JSON",
        ),
        (
            lambda s: s.update({f"{NAME}.quant_state.bitsandbytes__fp4": s[STATE]}),
            "expected one .*found 2",
        ),
        (lambda s: s.pop(NAME), f"lacks {NAME}, which"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_tensor(change, words):
    stored = tensors()
    change(stored)
    with (
        warnings.catch_warnings(),
        pytest.raises(MiniloraError, match=words) as caught,
    ):
        warnings.simplefilter("error")  # it would be a second line
        from_tensors(stored, NAME, "folder/model.safetensors")
    line = str(caught.value)
    assert "folder/model.safetensors" in line and NAME in line and "\n" not in line


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_scales_of_one_level_are_checked(value):
    stored = tensors(double=False)
    stored[f"{NAME}.absmax"][5] = value
    with pytest.raises(MiniloraError, match="absmax holds 1 NaN or infinite"):
        from_tensors(stored, NAME)


def test_levels_that_other_versions_rounded_are_still_nf4():
    stored = tensors()
    wanted = from_tensors(stored, NAME).dequantize()
    stored[f"{NAME}.quant_map"] = stored[f"{NAME}.quant_map"] + 1e-7
    found = from_tensors(stored, NAME)
    assert found.code == "nf4" and torch.equal(found.dequantize(), wanted)


def test_levels_of_your_own_keep_their_numbers_and_are_checked():
    levels = np.linspace(-1, 1, 16).astype(np.float32) ** 3
    stored = to_tensors(quantize(torch.randn(8, 64), levels), NAME)
    assert np.array_equal(from_tensors(stored, NAME).book.levels, levels)
    stored[f"{NAME}.quant_map"] = torch.ones(1)
    with pytest.raises(MiniloraError, match="quant_map: a code book of 1 levels"):
        from_tensors(stored, NAME)


def test_the_keys_of_each_weight_are_found_in_one_walk():
    keys = [key for name in ("a.weight", "b.weight") for key in to_tensors_of(name)]
    keys += ["a.bias", "norm.weight", "c.weight.absmax"]
    found = part_keys_by_name(keys)
    assert list(found) == ["a.weight", "b.weight", "c.weight"]
    assert {name: sorted(each) for name, each in found.items()} == {
        name: sorted(part_keys(keys, name)) for name in found
    }
    assert found["c.weight"] == ["c.weight.absmax"]
    assert bnb_format.codes_of(keys) == {"nf4"}


def to_tensors_of(name):
    return to_tensors(quantize(torch.randn(4, 64), double=True), name)


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "(gptq)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "(awq)"),
        ({"quantization_config": {"quant_method": "hqq"}}, "(hqq)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "(fp8)"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "(compressed-tensors)"),
        ({"compression_config": {"format": "pack-quantized"}}, "(compressed-tensors)"),
        ({"quantization_config": {"group_size": 64, "bits": 4}}, "(mlx)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "(mlx)"),
        ({"quantization_config": {"x": 1}}, "(unknown)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "int8"),
        ({"quantization_config": {"_load_in_8bit": True}}, "int8"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "(bitsandbytes)"),
        ({"quantization_config": {"quant_method": ["gptq"]}}, "quant_method is"),
        ({"quantization_config": {"load_in_4bit": "yes"}}, "load_in_4bit is"),
        ({"quantization_config": [1]}, "quantization_config: it is [1]"),
        ({"quantization_config": "gptq"}, "quantization_config: it is"),
    ],
)
def test_every_other_form_is_refused_by_its_name(fields, named):
    with pytest.raises(MiniloraError) as caught:
        refuse_foreign(fields, "folder/config.json")
    line = str(caught.value)
    assert line.startswith("folder/config.json: ") and named in line and "\n" not in line
    assert "take the unquantized model" in line or "copy it again" in line


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "bitsandbytes", "_load_in_4bit": True, "llm_int8_skip_modules": "null"},
        {"quant_method": "bitsandbytes_4bit", "load_in_4bit": True},
        {"load_in_4bit": True, "load_in_8bit": False, "quant_method": None},
    ],
)
def test_what_is_read_here_passes(entry):
    refuse_foreign({"quantization_config": entry}, "config.json")
    refuse_foreign({}, "config.json")

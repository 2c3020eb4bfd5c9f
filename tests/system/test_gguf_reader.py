"""The header of a GGUF is what the `gguf` package reads; whatever is damaged ends in one line, and
no length in a file is believed.
"""

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_gguf import add_tensor, finish, gguf

from minilora.errors import MiniloraError
from minilora.system import gguf_reader
from minilora.system.gguf_reader import decodable, is_gguf, read_header

KINDS = [kind for kind in gguf.GGMLQuantizationType if kind.name in decodable()]


def small(path, **more):
    """A file with every kind of metadata and two tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(f"a.{name}", 7)
    writer.add_float32("a.f32", 0.1), writer.add_float64("a.f64", 0.1), writer.add_bool("a.b", True)
    writer.add_string("a.text", "Ġé中"), writer.add_string("a.nothing", "")
    writer.add_array("a.texts", ["", "x", "▁y"]), writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -1.0])
    for key, value in more.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(
            key.replace("_", "."), value
        )
    add_tensor(writer, "one.weight", np.arange(64, dtype=np.float32).reshape(2, 32), "F32")
    add_tensor(writer, "two.weight", np.ones((3, 32), np.float32), "Q8_0")
    finish(writer)
    return path


def line(path):
    with pytest.raises(MiniloraError) as caught:
        read_header(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_metadata_and_tensors_are_what_the_package_reads(tmp_path):
    path = small(tmp_path / "m.gguf")
    header, peer = read_header(path), gguf.GGUFReader(path)
    theirs = {k: f.contents() for k, f in peer.fields.items() if not k.startswith("GGUF.")}
    assert header.fields == theirs and len(theirs) > 15
    for tensor in peer.tensors:
        entry = header.tensors[tensor.name]
        assert entry.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert (entry.start, entry.size) == (tensor.data_offset, tensor.n_bytes)
        made = np.concatenate([*header.rows(tensor.name)])
        np.testing.assert_array_equal(made, gguf.dequantize(tensor.data, tensor.tensor_type))


@pytest.mark.parity
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_is_decoded_some_rows_at_a_time(tmp_path, monkeypatch, kind):
    """Random bytes: most make numbers, some NaN, and both come out as from the package."""
    block, width = gguf.GGML_QUANT_SIZES[kind]
    columns = 2 * block if block > 1 else 40
    packed = np.random.default_rng(0).integers(0, 256, (7, columns // block * width), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", packed, raw_shape=packed.shape, raw_dtype=kind)
    finish(writer)
    monkeypatch.setattr(gguf_reader, "PORTION", 2 * columns)
    header = read_header(tmp_path / "m.gguf")
    parts = [*header.rows("w")]
    assert header.tensors["w"].shape == (7, columns) and [len(p) for p in parts] == [2, 2, 2, 1]
    with np.errstate(all="ignore"):
        whole = gguf.dequantize(packed, kind).reshape(7, columns)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_all_types_that_the_package_decodes_are_among_them():
    assert {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "Q4_1", "Q8_0"} <= decodable()
    assert not {"Q8_K", "I32", "F64"} & decodable()


@settings(max_examples=60)
@given(st.floats(0, 1))
def test_a_file_that_is_cut_short_anywhere(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("cut")
    data = small(folder / "m.gguf").read_bytes()
    end = max(entry.start + entry.size for entry in read_header(folder / "m.gguf").tensors.values())
    cut = folder / "cut.gguf"
    cut.write_bytes(data[: int(share * (end - 1))])
    assert "damaged or cut short" in line(cut) or "begins with" in line(cut)


@settings(max_examples=300)
@example([(0.13210282869713355, 93)])  # a length grows, and a name swallows the lines behind it
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_end_in_one_line_or_in_a_file_that_reads(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("changed")
    data = bytearray(small(folder / "m.gguf").read_bytes())
    for share, byte in changes:
        data[int(share * (len(data) - 1))] = byte
    changed = folder / "changed.gguf"
    changed.write_bytes(data)
    try:
        header = read_header(changed)
    except MiniloraError as error:
        assert str(error).isprintable()
    else:
        for name, entry in header.tensors.items():
            made = np.concatenate([*header.rows(name)])
            assert made.size == math.prod(entry.shape) < 10**6


def header_of(*parts, tensors=0, fields=0, version=3):
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, fields) + b"".join(parts)


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


HUGE = 1 << 40
PLAIN = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def tensor(columns, rows=1, kind=0, place=0, name="w"):
    return text(name) + struct.pack("<IQQIQ", 2, columns, rows, kind, place)


def one(*parts):
    return header_of(*parts, bytes(500), tensors=1)


def entry(kind, *parts):
    """A file whose one entry of metadata is of that type."""
    return header_of(text("k"), struct.pack("<I", kind), *parts, b"x" * 9, fields=1)


def listed(kind, count):
    return entry(9, struct.pack("<IQ", kind, count))


@pytest.mark.parametrize(
    "data, told",
    [
        (b"", "no GGUF"),
        (b"version https://git-lfs", "no GGUF"),
        (header_of(tensors=HUGE), "tensors"),
        (header_of(fields=HUGE), "entries"),
        (header_of(struct.pack("<Q", HUGE) + b"x" * 40, fields=1), "bytes of the name"),
        (listed(4, HUGE), "elements of k"),
        (listed(8, HUGE), "elements of k"),
        (listed(9, 1), "a list of the unknown type"),
        (entry(99), "unknown type 99"),
        (header_of(text(b"\xff\xfe"), struct.pack("<I", 4), b"x" * 9, fields=1), "no UTF-8"),
        (header_of(PLAIN, PLAIN, fields=2), "two entries"),
        (header_of(tensor(32), tensor(32), bytes(500), tensors=2), "two tensors"),
        (header_of(tensor(32), tensor(32, name="v"), bytes(500), tensors=2), "overlap"),
        (one(tensor(0)), "the shape [0, 1]"),
        (one(tensor(1 << 30, 1 << 30)), "the shape"),
        (one(tensor(1 << 20, 9)), "lies at bytes"),
        (one(tensor(32, place=5)), "lies at bytes"),
        (one(tensor(33, kind=8)), "rows of 33 numbers, and Q8_0 packs 32"),
        (one(text("w"), struct.pack("<I", 9)), "9 dimensions"),
        (one(tensor(32, kind=26)), "I32"),
        (one(tensor(32, kind=777)), "pip install --upgrade gguf"),
        (header_of(version=1), "version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "high byte first"),
    ],
)
def test_what_no_file_can_say_is_refused_before_memory_is_taken(tmp_path, data, told):
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    assert told in line(path)


@pytest.mark.parametrize(
    "more, told",
    [
        ({"general_type": "adapter"}, "holds 'adapter'"),
        ({"general_type": "mmproj"}, "holds 'mmproj'"),
        ({"split_count": 3}, "one of 3 parts"),
    ],
)
def test_what_is_no_whole_model_is_named(tmp_path, more, told):
    assert told in line(small(tmp_path / "m.gguf", **more))


def test_a_file_is_known_by_its_name_or_its_first_bytes(tmp_path):
    path = small(tmp_path / "m.gguf")
    other = tmp_path / "blob"
    other.write_bytes(path.read_bytes())
    (tmp_path / "text").write_text("GG")
    assert is_gguf(path) and is_gguf(other)
    assert not is_gguf(tmp_path / "text") and not is_gguf(tmp_path) and not is_gguf("nowhere.gguf")


def test_a_missing_file_is_named(tmp_path):
    assert "No such file" in line(tmp_path / "nowhere.gguf")

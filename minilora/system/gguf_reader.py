"""A file of llama.cpp's format, GGUF: its metadata, the list of its tensors, and their numbers.

What it replaces: `GGUFReader` of the package `gguf`, which makes four arrays for each word of a
vocabulary (7 s for 49,000) and believes the lengths that it reads.
How it works: the header is read once from front to back. Every length is compared with what is left
of the file before memory is taken for it, and every tensor's place with the file's size. The
package `gguf` knows the types of numbers and decodes them, some rows at a time.
What it leaves out: what the metadata means (llama/gguf.py, text/gguf_tokenizer.py); files of
several parts; lists in lists; files for processors that put the high byte first.
Where numerics differ: nowhere; the decoding is the package's.
"""

from __future__ import annotations

import functools
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..errors import MiniloraError, printed

if TYPE_CHECKING:
    import numpy as np

SUFFIX = ".gguf"
MAGIC = b"GGUF"
AGAIN = "copy it again from where it came"
VERSIONS = (2, 3)
# Above every file there is: metadata entries, tensors, elements of a list, bytes of a text.
MOST_FIELDS, MOST_TENSORS, MOST_ELEMENTS, MOST_TEXT = 1 << 16, 1 << 17, 1 << 24, 1 << 26
MOST_DIMS = 4
PORTION = 1 << 20  # numbers that are decoded at once
SCALARS = {  # the metadata's types by number, as `struct` and NumPy call them
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
TEXT, LIST = 8, 9


class Entry(NamedTuple):
    """One tensor of a file. shape: as torch has it, (out, in); kind: its type's name, such as Q4_K;
    start and size: of its bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int
    size: int


@dataclass
class Header:
    """What a file says before its numbers: `fields` by key, `tensors` by name."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, Entry]

    def rows(self, name: str) -> Iterator[np.ndarray]:
        """The numbers of a tensor in fp32, some whole rows at a time, (rows, in)."""
        import numpy as np

        entry = self.tensors[name]
        columns = entry.shape[-1]
        count = math.prod(entry.shape) // columns
        width = entry.size // count  # bytes of a row
        step = max(1, PORTION // columns)
        kind = library().GGMLQuantizationType[entry.kind]
        try:
            with open(self.path, "rb") as file:
                file.seek(entry.start)
                for start in range(0, count, step):
                    here = min(step, count - start)
                    data = bytearray(here * width)
                    if file.readinto(data) < len(data):
                        raise _damaged(self.path, f"it ends within the tensor {name[:80]!r}")
                    packed = np.frombuffer(data, np.uint8).reshape(here, width)
                    with np.errstate(all="ignore"):  # a damaged scale is found by who reads it
                        yield library().quants.dequantize(packed, kind).reshape(here, columns)
        except OSError as error:
            raise _damaged(self.path, error.strerror or str(error)) from error


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether `path` is a file that calls itself a GGUF, by its name or by its first bytes."""
    path = Path(path)
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() == SUFFIX:
            return True
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def library() -> Any:
    """The package `gguf`. Raises MiniloraError where it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise MiniloraError(
            "GGUF files need the package gguf; install it with `pip install 'minilora[hub]'`"
        ) from error
    return gguf


@functools.cache
def decodable() -> frozenset[str]:
    """The names of the types that the package decodes."""
    import numpy as np

    gguf = library()
    found = set()
    for kind, (_, width) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.quants.dequantize(np.zeros((1, width), np.uint8), kind)
        except NotImplementedError:
            continue
        found.add(kind.name)
    return frozenset(found)


def read_header(path: str | os.PathLike) -> Header:
    """The header of a GGUF, every length and place in it compared with the file.

    Raises MiniloraError, naming the file, for what is no GGUF, cut short, damaged, one part of
    several, or written in types that are not decoded here.
    """
    path = Path(path)
    library()
    try:
        with open(path, "rb") as file:
            return _Walk(path, file, os.fstat(file.fileno()).st_size).header()
    except OSError as error:
        raise MiniloraError(
            f"{path} cannot be read ({error.strerror or error}); {AGAIN}"
        ) from error


def _damaged(path: Path, what: str) -> MiniloraError:
    return MiniloraError(f"{path} is damaged or cut short: {what}; {AGAIN}")


class _Walk:
    """Reads a header from front to back; never more than what is left of the file."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self.file, self.size = path, file, size
        self.at = 0

    def header(self) -> Header:
        start = self.file.read(len(MAGIC))
        self.at = len(start)
        if start != MAGIC:
            raise MiniloraError(
                f"{self.path} is no GGUF file: it begins with {start!r}; give one that llama.cpp "
                "reads, or a model's folder"
            )
        self._version()
        tensors, fields = self._one("Q"), self._one("Q")
        self._bound(tensors, MOST_TENSORS, 24, "tensors")
        self._bound(fields, MOST_FIELDS, 13, "entries")
        told = self._fields(fields)
        self._require_whole(told)
        listed = [self._tensor() for _ in range(tensors)]
        return Header(self.path, told, self._placed(listed, told))

    def _version(self) -> None:
        version = self._one("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in VERSIONS:
                raise MiniloraError(
                    f"{self.path} is written with the high byte first (big-endian), which is not "
                    "read here; convert the model again on this kind of machine"
                )
            raise MiniloraError(
                f"{self.path} is GGUF version {version}, and versions 2 and 3 are read here; "
                "convert the model again with a llama.cpp of today"
            )

    # -------------------------------------------------------------------------------- the metadata

    def _fields(self, count: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            key = self._text("the name of an entry")
            if key in found:
                raise _damaged(self.path, f"it has two entries {key[:80]!r}")
            found[key] = self._value(self._one("I"), printed(key, 80))
        return found

    def _value(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            return self._one(SCALARS[kind])
        if kind == TEXT:
            return self._text(key)
        if kind != LIST:
            raise _damaged(self.path, f"{key} has the unknown type {kind}")
        kind, count = self._one("I"), self._one("Q")
        if kind == TEXT:
            self._bound(count, MOST_ELEMENTS, 8, f"elements of {key}")
            return [self._text(key) for _ in range(count)]
        if kind not in SCALARS:
            raise _damaged(self.path, f"{key} is a list of the unknown type {kind}")
        width = struct.calcsize("<" + SCALARS[kind])
        self._bound(count, MOST_ELEMENTS, width, f"elements of {key}")
        return list(struct.unpack(f"<{count}{SCALARS[kind]}", self._bytes(count * width)))

    def _require_whole(self, fields: dict[str, Any]) -> None:
        """Raise MiniloraError for what is no model, or only a part of one."""
        kind = fields.get("general.type", "model")
        if kind != "model":
            raise MiniloraError(
                f"{self.path} holds {_shown(kind)} (general.type), not a model; give the GGUF of "
                "the model itself"
            )
        parts = fields.get("split.count", 1)
        if parts not in (0, 1):
            raise MiniloraError(
                f"{self.path} is one of {_shown(parts)} parts of a model; join them with "
                "`llama-gguf-split --merge` and give the whole"
            )

    # --------------------------------------------------------------------------------- the tensors

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape as torch has it, number of the type, place in the data)"""
        name = self._text("the name of a tensor")
        dims = self._one("I")
        if not 1 <= dims <= MOST_DIMS:
            raise _damaged(self.path, f"the tensor {name[:80]!r} has {dims} dimensions")
        shape = struct.unpack(f"<{dims}Q", self._bytes(8 * dims))
        if 0 in shape or math.prod(shape) > 1 << 48:
            raise _damaged(self.path, f"the tensor {name[:80]!r} has the shape {list(shape)}")
        kind, place = struct.unpack("<IQ", self._bytes(12))
        return name, shape[::-1], kind, place

    def _placed(self, listed: list, fields: dict[str, Any]) -> dict[str, Entry]:
        """The tensors with their places in the file, which is compared with its size."""
        align = fields.get("general.alignment", 32)
        if isinstance(align, bool) or not isinstance(align, int) or not 1 <= align <= 1 << 20:
            raise _damaged(self.path, f"general.alignment is {_shown(align)}")
        begin = -(-self.at // align) * align
        found: dict[str, Entry] = {}
        for name, shape, number, place in listed:
            if name in found:
                raise _damaged(self.path, f"it has two tensors {name[:80]!r}")
            kind, size = self._size(name, shape, number)
            start = begin + place
            if place % align or start + size > self.size:
                raise _damaged(
                    self.path,
                    f"the tensor {name[:80]!r} lies at bytes {start:,} to {start + size:,}, and "
                    f"the file has {self.size:,}",
                )
            found[name] = Entry(name, shape, kind, start, size)
        ordered = sorted(found.values(), key=lambda entry: entry.start)
        for one, next_one in zip(ordered, ordered[1:]):
            if one.start + one.size > next_one.start:
                raise _damaged(
                    self.path, f"the tensors {one.name[:80]!r} and {next_one.name[:80]!r} overlap"
                )
        return found

    def _size(self, name: str, shape: tuple[int, ...], number: int) -> tuple[str, int]:
        """(name of the type, bytes). Raises MiniloraError for a type that is not decoded."""
        gguf = library()
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError as error:
            raise MiniloraError(
                f"{self.path}: the tensor {name[:80]!r} has the type {number}, which the installed "
                "package gguf does not know; `pip install --upgrade gguf`, or take the model in "
                "another type, such as Q4_K_M"
            ) from error
        if kind.name not in decodable():
            raise MiniloraError(
                f"{self.path}: the tensor {name[:80]!r} has the type {kind.name}, which the "
                "package gguf does not decode; take the model in another type, such as Q4_K_M"
            )
        block, width = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise _damaged(
                self.path,
                f"the tensor {name[:80]!r} has rows of {shape[-1]} numbers, and {kind.name} packs "
                f"{block} at a time",
            )
        return kind.name, math.prod(shape) // block * width

    # ----------------------------------------------------------------------------------- the bytes

    def _bytes(self, count: int) -> bytes:
        data = self.file.read(count) if count <= self.size - self.at else b""
        if len(data) < count:
            raise _damaged(self.path, f"{count:,} bytes are missing at {self.at:,}")
        self.at += count
        return data

    def _one(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self._bytes(struct.calcsize("<" + kind)))[0]

    def _text(self, what: str) -> str:
        count = self._one("Q")
        self._bound(count, MOST_TEXT, 1, f"bytes of {what}")
        try:
            return self._bytes(count).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _damaged(self.path, f"{what} is no UTF-8 text") from error

    def _bound(self, count: int, most: int, least: int, what: str) -> None:
        """Raise MiniloraError for a number that the file cannot hold, `least` bytes for each."""
        if count > most or count * least > self.size - self.at:
            raise _damaged(self.path, f"it speaks of {count:,} {what}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"

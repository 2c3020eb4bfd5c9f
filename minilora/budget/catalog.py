"""Published models and graphics cards by name: shapes, and what cards hold, move and cost.

What it replaces: looking up `config.json` files and data sheets by hand.
How it works: `data/models.toml` and `data/cards.toml` are read when a name is first asked for.
`model(name)` knows the names there and reads any folder or config.json of a Llama, Mistral or
Qwen2; a hub id is read without its organisation and without what does not change the shape
(-Instruct, -Chat, -hf, -v1.0); `gpu(name)` gives memory, rates and prices; prices carry date and
source.
What it leaves out: cards of other makers; prices of clouds that we did not look at.
Where numerics differ: GB is 10⁹ bytes and GiB 2³⁰; rates are the makers', for dense matrices.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import MiniloraError
from ..system.gguf_reader import is_gguf
from .shapes import Shape, nearest, read_config, same_family, shape_of, shape_of_gguf

if TYPE_CHECKING:
    from ..llama.config import Config

GIB = 2**30

CONTEXT = 512 * 2**20  # about what driver and kernels' code take on cards from Ampere on

# Words in a hub id that leave the shape as it is; a version is dropped last, since mistral-7b-v0.3
# has a shape of its own.
TUNED, VERSION, MAKER = (
    re.compile(r"-(instruct|chat|base|it|hf|intermediate-step-\w+-\w+)(?=-|$)"),
    re.compile(r"-v\d+\.\d+$"),
    "meta-",
)


class Price(NamedTuple):
    """$ per hour from the cheapest spot offer to the dearest on-demand one that was seen, when and
    where.
    """

    low: float
    high: float
    date: str
    source: str


@dataclass(frozen=True)
class GPU:
    """A card. memory: bytes as marketed (GB = 10⁹); usable: bytes that CUDA reports in all; rates:
    10¹² operations a second.
    """

    name: str
    memory: int
    usable: int
    bandwidth: float  # bytes a second
    rates: dict[str, float]
    price: Price | None
    source: str
    context: int = CONTEXT

    def rate(self, dtype: str) -> float:
        """Operations a second in `dtype`. Raises MiniloraError where the card has no units for
        it.
        """
        if dtype not in self.rates:
            have = ", ".join(self.rates)
            raise MiniloraError(
                f"{self.name} has no {dtype} matrix units; choose a precision among {have}"
            )
        return self.rates[dtype] * 1e12


@functools.cache
def told(name: str) -> dict[str, Any]:
    """A file of `data/`: "models" or "cards"."""
    path = Path(__file__).parent / "data" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@functools.cache
def models() -> dict[str, Shape]:
    """The catalogue's shapes by name."""
    sources = told("models")["sources"]
    found = {}
    for name, fields in told("models")["models"].items():
        rest = {key: value for key, value in fields.items() if key not in ("sizes", "source")}
        source = sources.get(fields["source"], fields["source"])
        found[name] = Shape(name, **fields["sizes"], **rest, source=source)
    return found


@functools.cache
def cards() -> dict[str, GPU]:
    """The catalogue's cards by name."""
    every = told("cards")
    date, source = every["prices"]["date"], every["prices"]["source"]
    return {
        name: GPU(
            name,
            memory=fields["memory"] * 10**9,
            usable=int(fields["usable"] * GIB),
            bandwidth=fields["bandwidth"] * 1e9,
            rates=fields["rates"],
            price=Price(*fields["price"], date, source) if "price" in fields else None,
            source=every["sheet"],
            context=fields.get("context", CONTEXT),
        )
        for name, fields in every["cards"].items()
    }


def __getattr__(name: str) -> Any:
    """MODELS, ALIASES, GPUS and LINKS, read when they are asked for."""
    if name == "MODELS":
        return models()
    if name == "GPUS":
        return cards()
    if name == "ALIASES":
        return told("models")["aliases"]
    if name == "LINKS":
        return told("cards")["links"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def model(name: str | Path | Shape) -> Shape:
    """The shape of a model of the catalogue, or of a folder, config.json or GGUF. Raises
    MiniloraError with the nearest names.
    """
    if isinstance(name, Shape):
        return name
    key = str(name).lower().replace("_", "-")
    # a folder is read, whatever it is called
    known, aliases = models(), told("models")["aliases"]
    local = Path(str(name)).exists() and key not in known
    for each in [key] if local else spellings(key):
        each = aliases.get(each, each)
        if each in known:
            return known[each]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if is_gguf(path):
        return shape_of_gguf(path)
    if path.is_file():
        return shape_of(read_config(path), path.parent.name or str(path))
    remedy = " (or give the path of a config.json)"
    raise nearest("model", str(name), known, remedy, same_family)


def spellings(key: str) -> list[str]:
    """A hub id in lower case as the catalogue may have it: as it is, then without what does not
    change the shape.
    """
    key = key.rpartition("/")[2].removeprefix(MAKER)
    tuned = TUNED.sub("", key)
    return [key, tuned, VERSION.sub("", tuned)]


def llama_config(name: str | Path | Shape):
    """The same shape as a `minilora.llama.Config`. Raises MiniloraError for a family that our Llama
    cannot run.
    """
    shape = model(name)
    if shape.family != "llama":
        raise MiniloraError(
            f"{shape.name} is no plain Llama (it is a {shape.family}); choose a Llama, Mistral, "
            "Qwen or SmolLM2"
        )
    return config_of(shape)


def config_of(shape: Shape) -> Config:
    """A shape's numbers as our Config holds them, whatever its family."""
    from ..llama.config import Config

    alone = shape.qkv_bias and not shape.out_bias
    return Config(
        shape.vocab,
        shape.hidden,
        shape.ffn,
        shape.layers,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
        shape.context,
        tie_word_embeddings=shape.tied,
        attention_bias=shape.out_bias,
        mlp_bias=shape.mlp_bias,
        model_type="qwen3" if shape.qk_norm else "qwen2" if alone else "llama",
    )


# words of CUDA's names that tell no card from another
SPOKEN = set("nvidia tesla geforce gpu gb sxm sxm2 sxm3 sxm4 sxm5 hbm2 hbm2e hbm3 hbm3e".split())


def words(name: str) -> set[str]:
    """A card's name cut into words and numbers: "NVIDIA A100-SXM4-40GB" → nvidia, a100, sxm4, 40,
    gb.
    """
    return set(re.findall(r"[a-z]+\d*[a-z]*|\d+", str(name).lower()))


def gpu(name: str | GPU) -> GPU:
    """A card by name; case, spaces and hyphens do not matter, and CUDA's own names ("NVIDIA H100
    80GB HBM3") are known. Raises MiniloraError with the nearest names.
    """
    if isinstance(name, GPU):
        return name
    plain = {_plain(each): card for each, card in cards().items()}
    wanted = _plain(name).removesuffix("gb")
    wanted = _plain(told("cards")["aliases"].get(wanted, wanted))
    if wanted in plain:
        return plain[wanted]
    for card in cards().values():
        if (
            words(card.name)
            <= words(name)
            <= words(card.name) | SPOKEN | {f"{card.memory / 1e9:g}"}
        ):
            return card
    raise nearest("GPU", name, cards())


def _plain(name: str) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


def link(name: str) -> float:
    """Bytes a second between host and card, or of the host's memory. Raises MiniloraError with the
    nearest names.
    """
    known = told("cards")["links"]
    if name not in known:
        raise nearest("link", name, known)
    return known[name]

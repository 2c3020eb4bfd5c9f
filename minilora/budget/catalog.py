"""Shapes of published models, and what graphics cards hold, move and cost.

What it replaces: looking up `config.json` files and data sheets by hand.
How it works: a `Shape` has the numbers of a config.json; its linear layers and norms are listed by
`linears()` and `vectors()`, so that every parameter is counted and none is estimated. `model(name)`
knows the names below and reads any folder or config.json of a Llama, Mistral or Qwen2; a hub id is
read without its organisation and without what does not change the shape (-Instruct, -Chat, -hf,
-v1.0); `gpu(name)` gives memory, rates and prices; prices carry date and source.
What it leaves out: mixtures of experts, vision towers, cards of other makers; prices of clouds that
we did not look at.
Where numerics differ: parameter counts are exact, GB is 10⁹ bytes and GiB 2³⁰; rates are the
makers', for dense matrices.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ..errors import MiniloraError

GIB = 2**30

CONTEXT = 512 * 2**20  # about what driver and kernels' code take on cards from Ampere on

T4_CONTEXT = 147_744_358  # 140.9 MiB, measured

# model_type in config.json → the family whose forms hold
FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "llama"}


class Linear(NamedTuple):
    """One kind of linear layer: `count` of them in the model, each (out, in), with or without a
    bias.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool
    count: int

    @property
    def size(self) -> int:
        """Numbers in one weight matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """The numbers that decide what a transformer weighs. Sizes in elements.

    family: "llama" (gated MLP, rotary positions, RMSNorm), "gpt" (learned positions), "neox" (one
    matrix for query, key and value) or "mt5" (encoder and decoder, `layers` each).
    """

    name: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int = 0  # 0: hidden / heads
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    positions: int = 0  # learned position vectors
    context: int = 2048  # the longest input that the model was made for
    family: str = "llama"
    published: int = 0  # the parameter count that its makers or its checkpoint give
    source: str = ""

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden // self.heads)

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    def linears(self) -> list[Linear]:
        """The linear layers inside the blocks (the output head is not among them), in the order in
        which they are used.
        """
        h, f, n = self.hidden, self.ffn, self.layers
        if self.family == "gpt":
            square = [
                Linear(name, h, h, True, n) for name in ("q_proj", "k_proj", "v_proj", "out_proj")
            ]
            return [*square, Linear("fc1", h, f, True, n), Linear("fc2", f, h, True, n)]
        if self.family == "neox":
            return [
                Linear("query_key_value", h, 3 * h, True, n),
                Linear("dense", h, h, True, n),
                Linear("dense_h_to_4h", h, f, True, n),
                Linear("dense_4h_to_h", f, h, True, n),
            ]
        if (
            self.family == "mt5"
        ):  # self-attention on both sides, and the decoder's attention to the encoder: 3 per layer pair
            attention = [Linear(name, h, self.query, False, 3 * n) for name in ("q", "k", "v")]
            return [
                *attention,
                Linear("o", self.query, h, False, 3 * n),
                Linear("wi_0", h, f, False, 2 * n),
                Linear("wi_1", h, f, False, 2 * n),
                Linear("wo", f, h, False, 2 * n),
            ]
        return [
            Linear("q_proj", h, self.query, self.qkv_bias, n),
            Linear("k_proj", h, self.key, self.qkv_bias, n),
            Linear("v_proj", h, self.key, self.qkv_bias, n),
            Linear("o_proj", self.query, h, self.out_bias, n),
            Linear("gate_proj", h, f, self.mlp_bias, n),
            Linear("up_proj", h, f, self.mlp_bias, n),
            Linear("down_proj", f, h, self.mlp_bias, n),
        ]

    def vectors(self) -> list[tuple[str, int, int]]:
        """(name, size, count) of norms and other tensors that are no linear layer and no token
        table.
        """
        h, n = self.hidden, self.layers
        if self.family == "mt5":
            buckets = [("relative_attention_bias", 32 * self.heads, 2)]
            return [("layer_norm", h, 5 * n), ("final_layer_norm", h, 2), *buckets]
        if self.family in ("gpt", "neox"):
            table = [("position_embeddings", self.positions * h, 1)] if self.positions else []
            return [*table, ("layernorm.weight", h, 2 * n + 1), ("layernorm.bias", h, 2 * n + 1)]
        return [("input_layernorm", h, n), ("post_attention_layernorm", h, n), ("norm", h, 1)]

    @property
    def table(self) -> int:
        """Numbers in the token table, and in an untied head."""
        return self.vocab * self.hidden

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear layers in the blocks, biases left out."""
        return sum(each.size * each.count for each in self.linears())

    @property
    def parameters(self) -> int:
        """Every parameter, a tied head counted once."""
        biases = sum(each.outputs * each.count for each in self.linears() if each.bias)
        rest = sum(size * count for _, size, count in self.vectors())
        return self.linear_parameters + biases + rest + self.table * (1 if self.tied else 2)


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


_LLAMA1 = "Touvron et al. 2023, arXiv:2302.13971, table 2"

_LLAMA2 = "Touvron et al. 2023, arXiv:2307.09288; config.json of the checkpoint"

_LLAMA3 = "Grattafiori et al. 2024, arXiv:2407.21783, table 3; config.json of the checkpoint"

_LLAMA33 = "model card and config.json of Llama-3.3-70B-Instruct, December 2024"

_QWEN = "Yang et al. 2024, arXiv:2412.15115; config.json of the checkpoint"

_SMOL = "Ben Allal et al. 2025, arXiv:2502.02737; config.json of the checkpoint"


def _qwen(name: str, sizes: tuple[int, ...], tied: bool, published: int) -> Shape:
    return Shape(
        name, *sizes, tied=tied, qkv_bias=True, published=published, context=32768, source=_QWEN
    )


_SHAPES = [  # name, hidden, ffn, layers, heads, key/value heads, vocabulary
    Shape("llama-7b", 4096, 11008, 32, 32, 32, 32000, published=6_738_415_616, source=_LLAMA1),
    Shape("llama-13b", 5120, 13824, 40, 40, 40, 32000, published=13_015_864_320, source=_LLAMA1),
    Shape("llama-33b", 6656, 17920, 60, 52, 52, 32000, published=32_528_943_616, source=_LLAMA1),
    Shape("llama-65b", 8192, 22016, 80, 64, 64, 32000, published=65_285_660_672, source=_LLAMA1),
    Shape(
        "llama-2-7b",
        4096,
        11008,
        32,
        32,
        32,
        32000,
        published=6_738_415_616,
        context=4096,
        source=_LLAMA2,
    ),
    Shape(
        "llama-2-13b",
        5120,
        13824,
        40,
        40,
        40,
        32000,
        published=13_015_864_320,
        context=4096,
        source=_LLAMA2,
    ),
    Shape(
        "llama-2-70b",
        8192,
        28672,
        80,
        64,
        8,
        32000,
        published=68_976_648_192,
        context=4096,
        source=_LLAMA2,
    ),
    Shape(
        "llama-3-8b",
        4096,
        14336,
        32,
        32,
        8,
        128256,
        published=8_030_261_248,
        context=8192,
        source=_LLAMA3,
    ),
    Shape(
        "llama-3-70b",
        8192,
        28672,
        80,
        64,
        8,
        128256,
        published=70_553_706_496,
        context=8192,
        source=_LLAMA3,
    ),
    Shape(
        "llama-3.1-8b",
        4096,
        14336,
        32,
        32,
        8,
        128256,
        published=8_030_261_248,
        context=131072,
        source=_LLAMA3,
    ),
    Shape(
        "llama-3.1-70b",
        8192,
        28672,
        80,
        64,
        8,
        128256,
        published=70_553_706_496,
        context=131072,
        source=_LLAMA3,
    ),
    Shape(
        "llama-3.3-70b",
        8192,
        28672,
        80,
        64,
        8,
        128256,
        published=70_553_706_496,
        context=131072,
        source=_LLAMA33,
    ),
    Shape(
        "llama-3.1-405b",
        16384,
        53248,
        126,
        128,
        8,
        128256,
        published=405_853_388_800,
        context=131072,
        source=_LLAMA3,
    ),
    Shape(
        "llama-3.2-1b",
        2048,
        8192,
        16,
        32,
        8,
        128256,
        tied=True,
        published=1_235_814_400,
        context=131072,
        source=_LLAMA3,
    ),
    Shape(
        "llama-3.2-3b",
        3072,
        8192,
        28,
        24,
        8,
        128256,
        tied=True,
        published=3_212_749_824,
        context=131072,
        source=_LLAMA3,
    ),
    Shape(
        "tinyllama-1.1b",
        2048,
        5632,
        22,
        32,
        4,
        32000,
        published=1_100_048_384,
        source="Zhang et al. 2024, arXiv:2401.02385",
    ),
    Shape(
        "smollm2-135m",
        576,
        1536,
        30,
        9,
        3,
        49152,
        tied=True,
        published=134_515_008,
        context=8192,
        source=_SMOL,
    ),
    Shape(
        "smollm2-360m",
        960,
        2560,
        32,
        15,
        5,
        49152,
        tied=True,
        published=361_821_120,
        context=8192,
        source=_SMOL,
    ),
    Shape(
        "smollm2-1.7b",
        2048,
        8192,
        24,
        32,
        32,
        49152,
        tied=True,
        published=1_711_376_384,
        context=8192,
        source=_SMOL,
    ),
    Shape(
        "mistral-7b",
        4096,
        14336,
        32,
        32,
        8,
        32000,
        published=7_241_732_096,
        context=32768,
        source="Jiang et al. 2023, arXiv:2310.06825",
    ),
    Shape(
        "mistral-7b-v0.3",
        4096,
        14336,
        32,
        32,
        8,
        32768,
        published=7_248_023_552,
        context=32768,
        source="config.json of Mistral-7B-v0.3, May 2024: a larger vocabulary",
    ),
    _qwen("qwen2.5-0.5b", (896, 4864, 24, 14, 2, 151936), True, 494_032_768),
    _qwen("qwen2.5-1.5b", (1536, 8960, 28, 12, 2, 151936), True, 1_543_714_304),
    _qwen("qwen2.5-3b", (2048, 11008, 36, 16, 2, 151936), True, 3_085_938_688),
    _qwen("qwen2.5-7b", (3584, 18944, 28, 28, 4, 152064), False, 7_615_616_512),
    _qwen("qwen2.5-14b", (5120, 13824, 48, 40, 8, 152064), False, 14_770_033_664),
    _qwen("qwen2.5-32b", (5120, 27648, 64, 40, 8, 152064), False, 32_763_876_352),
    _qwen("qwen2.5-72b", (8192, 29568, 80, 64, 8, 152064), False, 72_706_203_648),
    Shape(
        "gpt-3",
        12288,
        49152,
        96,
        96,
        96,
        50257,
        tied=True,
        positions=2048,
        family="gpt",
        published=174_604_259_328,
        source="Brown et al. 2020, arXiv:2005.14165, tables 2.1 and D.1 (174,600M)",
    ),
    Shape(
        "gpt-neox-20b",
        6144,
        24576,
        44,
        64,
        64,
        50432,
        family="neox",
        published=20_554_567_680,
        source="Black et al. 2022, arXiv:2204.06745",
    ),
    Shape(
        "mt0-large",
        1024,
        2816,
        24,
        16,
        16,
        250112,
        head_dim=64,
        family="mt5",
        published=1_229_581_312,
        source="Muennighoff et al. 2022, arXiv:2211.01786; an mT5-large",
    ),
    Shape(
        "tiny",
        256,
        512,
        5,
        4,
        2,
        3072,
        head_dim=64,
        tied=True,
        published=3_738_368,
        context=512,
        source="the base that minilora ships",
    ),
]

MODELS = {shape.name: shape for shape in _SHAPES}

ALIASES = {
    "llama-1-7b": "llama-7b",
    "llama-1-13b": "llama-13b",
    "llama-1-33b": "llama-33b",
    "llama-1-65b": "llama-65b",
    "llama-30b": "llama-33b",
    "tinyllama": "tinyllama-1.1b",
    "gpt-3-175b": "gpt-3",
    "gpt3": "gpt-3",
}

# Words in a hub id that leave the shape as it is; a version is dropped last, since mistral-7b-v0.3
# has a shape of its own.
TUNED, VERSION, MAKER = (
    re.compile(r"-(instruct|chat|base|it|hf|intermediate-step-\w+-\w+)(?=-|$)"),
    re.compile(r"-v\d+\.\d+$"),
    "meta-",
)


_MARCH = "March 2026"

_OFFERS = "lowest spot to highest on-demand offer seen at public GPU clouds"

_SHEET = "NVIDIA data sheet; usable: total capacity in PyTorch's own messages"


def _card(
    name: str,
    gigabytes: int,
    usable: float,
    bandwidth: float,
    rates: tuple,
    price: tuple | None = None,
) -> GPU:
    """rates: fp32, bf16, fp16, int8 in 10¹² a second, 0 where there are no units; usable in GiB."""
    known = {kind: rate for kind, rate in zip(("fp32", "bf16", "fp16", "int8"), rates) if rate}
    money = Price(*price, _MARCH, _OFFERS) if price else None
    return GPU(
        name,
        gigabytes * 10**9,
        int(usable * GIB),
        bandwidth * 1e9,
        known,
        money,
        _SHEET,
        T4_CONTEXT if name == "T4" else CONTEXT,
    )


_CARDS = [
    _card("T4", 16, 14.74, 320, (8.1, 0, 65, 130)),
    _card("P100", 16, 15.89, 732, (10.6, 0, 21.2, 0)),
    _card("L4", 24, 22.03, 300, (30.3, 121, 121, 242), (0.44, 0.78)),
    _card("A10G", 24, 22.06, 600, (35, 70, 70, 140), (1.0, 1.0)),
    _card("RTX 3090", 24, 23.69, 936, (35.6, 71, 71, 284), (0.22, 0.39)),
    _card("RTX 4090", 24, 23.64, 1008, (82.6, 165, 165, 660), (0.34, 0.60)),
    _card("RTX 5090", 32, 31.36, 1792, (104.8, 209.5, 209.5, 838), (0.69, 1.22)),
    _card("RTX A6000", 48, 47.54, 768, (38.7, 154.8, 154.8, 309.7)),
    _card("A100 40", 40, 39.39, 1555, (19.5, 312, 312, 624), (1.19, 2.45)),
    _card("A100 80", 80, 79.15, 2039, (19.5, 312, 312, 624), (1.19, 2.45)),
    _card("H100", 80, 79.11, 3350, (67, 989, 989, 1979), (1.99, 4.76)),
    _card("H200", 141, 139.72, 4800, (67, 989, 989, 1979), (3.59, 6.35)),
    _card("B200", 192, 178.36, 8000, (75, 2250, 2250, 4500), (5.98, 10.57)),
]

GPUS = {card.name: card for card in _CARDS}

# bytes a second; ×16 slots, two channels
LINKS = {"PCIe 3": 15.8e9, "PCIe 4": 31.5e9, "PCIe 5": 63e9, "DDR5 ×2": 90e9}


def nearest(kind: str, name: str, known: Iterable[str], remedy: str = "") -> MiniloraError:
    """The error for a name that is not known: one line with those that look most like it."""
    known = list(known)
    folded = {each.lower(): each for each in reversed(known)}
    close = [
        folded[each]
        for each in difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.4)
    ]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
    return MiniloraError(f"unknown {kind} {name!r}; {hint}{remedy}")


def model(name: str | Path | Shape) -> Shape:
    """The shape of a model of the catalogue, or of a folder or config.json. Raises MiniloraError
    with the nearest names.
    """
    if isinstance(name, Shape):
        return name
    key = str(name).lower().replace("_", "-")
    # a folder is read, whatever it is called
    local = Path(str(name)).exists() and key not in MODELS
    for each in [key] if local else spellings(key):
        each = ALIASES.get(each, each)
        if each in MODELS:
            return MODELS[each]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        return shape_of(read_config(path), path.parent.name or str(path))
    raise nearest("model", str(name), MODELS, " (or give the path of a config.json)")


def spellings(key: str) -> list[str]:
    """A hub id in lower case as the catalogue may have it: as it is, then without what does not
    change the shape.
    """
    key = key.rpartition("/")[2].removeprefix(MAKER)
    tuned = TUNED.sub("", key)
    return [key, tuned, VERSION.sub("", tuned)]


def read_config(path: Path) -> dict:
    """The fields of a config.json. Raises MiniloraError if it is none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MiniloraError(
            f"{path} cannot be read as JSON ({error}); give a model's config.json"
        ) from None
    if not isinstance(fields, dict):
        raise MiniloraError(f"{path} holds no JSON object; give a model's config.json")
    return fields


def shape_of(fields: dict, name: str = "config.json") -> Shape:
    """The shape in a config.json's fields. Raises MiniloraError for another architecture or a
    missing number.
    """
    kind = str(fields.get("model_type", "llama"))
    if kind not in FAMILIES:
        raise nearest("model_type", kind, FAMILIES, "; the closed forms hold for these")
    needed = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
    )
    for field in (*needed, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        value = fields.get(field)
        if not (value is None and field not in needed) and (
            not isinstance(value, int) or isinstance(value, bool) or value < 1
        ):
            raise MiniloraError(
                f"{name}: {field} is {value!r}; it must be a whole number of at least 1"
            )
    numbers = [fields[field] for field in needed]
    hidden, heads = numbers[0], numbers[3]
    kv_heads = fields.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise MiniloraError(
            f"{name}: num_attention_heads is {heads}, no multiple of num_key_value_heads "
            f"{kv_heads}; each key head serves equally many"
        )
    if not fields.get("head_dim") and hidden % heads:
        raise MiniloraError(
            f"{name}: hidden_size is {hidden}, no multiple of num_attention_heads {heads}; "
            "give head_dim, too"
        )
    if (fields.get("head_dim") or hidden // heads) % 2:
        raise MiniloraError(
            f"{name}: the heads' size is {fields.get('head_dim') or hidden // heads}; rotary "
            "positions turn pairs, so it must be even"
        )
    qwen, bias = kind == "qwen2", bool(fields.get("attention_bias"))
    shape = Shape(
        name,
        *numbers[:4],
        kv_heads,
        numbers[4],
        fields.get("head_dim") or 0,
        bool(fields.get("tie_word_embeddings")),
    )
    return replace(
        shape,
        family=FAMILIES[kind],
        qkv_bias=qwen or bias,
        out_bias=bias and not qwen,
        mlp_bias=bool(fields.get("mlp_bias")),
        context=fields.get("max_position_embeddings") or 2048,
        source="config.json",
    )


def llama_config(name: str | Path | Shape):
    """The same shape as a `minilora.llama.Config`. Raises MiniloraError for a family that our Llama
    cannot run.
    """
    from ..llama.config import Config

    shape = model(name)
    if shape.family != "llama" or shape.qkv_bias != shape.out_bias:
        raise MiniloraError(
            f"{shape.name} is no plain Llama (it is a {shape.family} with other biases); "
            "choose a Llama, Mistral or SmolLM2"
        )
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
        attention_bias=shape.qkv_bias,
        mlp_bias=shape.mlp_bias,
    )


# words of CUDA's names that tell no card from another
SPOKEN = {
    "nvidia",
    "tesla",
    "geforce",
    "gpu",
    "gb",
    "sxm",
    "sxm2",
    "sxm3",
    "sxm4",
    "sxm5",
    "hbm2",
    "hbm2e",
    "hbm3",
    "hbm3e",
}


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
    plain = {_plain(each): card for each, card in GPUS.items()}
    wanted = _plain(name).removesuffix("gb")
    wanted = {
        "a100": "a10080",
        "h100sxm": "h100",
        "4090": "rtx4090",
        "3090": "rtx3090",
        "5090": "rtx5090",
        "a6000": "rtxa6000",
    }.get(wanted, wanted)
    if wanted in plain:
        return plain[wanted]
    for card in GPUS.values():
        if (
            words(card.name)
            <= words(name)
            <= words(card.name) | SPOKEN | {f"{card.memory / 1e9:g}"}
        ):
            return card
    raise nearest("GPU", name, GPUS)


def _plain(name: str) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


def link(name: str) -> float:
    """Bytes a second between host and card, or of the host's memory. Raises MiniloraError with the
    nearest names.
    """
    if name not in LINKS:
        raise nearest("link", name, LINKS)
    return LINKS[name]

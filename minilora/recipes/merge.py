"""`minilora merge`: an adapter written into its model's weights, as a plain Hugging Face folder.

What it replaces: PEFT's `merge_and_unload`. How it works: W + (B A)·s per layer. An adapter trained
over a 4-bit or int8 base is merged into what that base *decodes to* — the weights it was trained
against — and not into the original ones: the merged model then answers as the trained one did.
Layers without an adapter are decoded, too. The KL divergence from the trained model is reported,
over the answers of `--data` or over text that the model writes itself. Only where `--requantize`
asks for it is the result quantized again, which does move the answers; the report says how far.
What it leaves out: requantizing to int8.
Where numerics differ: the merged weights are rounded once, to the base's type.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MiniloraError
from ..qlora.base import resolve
from .load import find_data, load

if TYPE_CHECKING:
    from torch import nn

    from ..llama.model import Llama
    from ..text.rows import Row
    from ..text.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer's files beside the model's, each whole or not at all."""
    from ..system.files import atomic_write

    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            with atomic_write(target / name) as temporary:
                shutil.copyfile(source / name, temporary)


def decode_rest(model: nn.Module) -> None:
    """Put an nn.Linear in place of each layer that is quantized and had no adapter, so that the
    folder is a plain Llama.
    """
    from torch import nn

    from ..lora.layer import LoRALinear
    from ..lora.targets import put

    made: dict[nn.Module, nn.Module] = {}  # a layer that stands twice is decoded once
    for path, layer in list(model.named_modules(remove_duplicate=False)):
        if hasattr(layer, "dense_weight") and not isinstance(layer, nn.Linear):
            if layer not in made:
                made[layer] = LoRALinear(layer).merged_base([])
            put(model, path, made[layer])


def compared_rows(model: Llama, tokenizer: Tokenizer, data: str | None) -> list[Row]:
    """The rows on which the model is compared with itself: 16 of the data's valid split, or its own
    text.
    """
    from .. import text
    from ..train import kl_divergence

    if data is not None:
        return text.encode_rows(text.read_split(find_data(data), "valid")[:16], tokenizer)
    starts = (tokenizer.bos_id, tokenizer.eos_id, 0)
    return kl_divergence.own_text(model, next(each for each in starts if each is not None))


def write(model: Llama, out: Path, code: str | None) -> None:
    """The folder: dense as it is, or in 4 bits where a code is named."""
    if code is None:
        model.save_pretrained(out)
        return
    from ..qlora.checkpoint import save_quantized

    save_quantized(model, out)


@dataclass(frozen=True)
class Merged:
    """How far the answers moved from the trained model's, in nats a token over so many tokens:
    merged, and requantized where that was asked for.
    """

    kl: float
    requantized: float | None
    tokens: int


def run(
    adapter: str,
    out: str | os.PathLike,
    model: str = "tiny",
    *,
    code: str | None = None,
    device: str | None = None,
    data: str | None = None,
    requantize: str | None = None,
) -> Merged:
    """Write `model` with `adapter` merged in to the folder `out`. code: as `load` takes it. data:
    compare on its valid split (None: on text that the model writes itself).
    """
    folder, out = resolve(model), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MiniloraError(f"{out} is there already and not empty; choose another --out")

    from .. import lora, qlora
    from ..train.kl_divergence import kl, log_probabilities

    llama, tokenizer = load(model, adapter, code, device)
    rows = compared_rows(llama, tokenizer, data)
    trained = log_probabilities(llama, rows)
    decode_rest(lora.unload(lora.merge(llama)))
    exact = kl(trained, log_probabilities(llama, rows))
    moved = None
    if requantize:
        qlora.quantize_model(llama, code=requantize)
        moved = kl(trained, log_probabilities(llama, rows))
    write(llama, out, requantize)
    copy_tokenizer(folder, out)
    return Merged(exact, moved, len(trained))

"""`minilora merge`: an adapter written into its model's weights, as a plain Hugging Face folder.

What it replaces: PEFT's `merge_and_unload`. How it works: W + (B A)·s per layer. An adapter trained
over a 4-bit or int8 base is merged into what that base *decodes to* — the weights it was trained
against — and not into the original ones: the merged model then answers as the trained one did.
Layers without an adapter are decoded, too. The KL divergence from the trained model is reported,
over the answers of `--data` or over text that the model writes itself. Only where `--requantize`
asks for it is the result quantized again, which does move the answers; the report says how far.
Layers that a 4-bit base had left dense then stay dense.
The folder has the base's types: a base that is stored in bf16 gives a folder in bf16, whatever
type it was loaded in.
What it leaves out: requantizing to int8.
Where numerics differ: the sum is made in fp32 (on a GPU in the type in which the base stands there)
and rounded once, to the type in which the base is stored; PEFT rounds B A to that type first, and
then the sum. What is reported is measured after the rounding.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MiniloraError
from ..qlora.base import resolve
from ..qlora.stored import left_dense, stored_types
from ..system.files import atomic_folder, atomic_write
from ..system.json_files import read_json
from ..system.outputs import alone, require_folder
from ..train.made import Made
from .load import find_data, load

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..llama.model import Llama
    from ..text.rows import Row
    from ..text.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)

RECORD = ".minilora-merge.json"


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer's files beside the model's, each whole or not at all."""
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


def types_of(model: nn.Module, folder: Path) -> dict[str, torch.dtype]:
    """The type in which each weight of the merged `model` is written: the one that it has in the
    base's folder, and for a weight that is not there under its name the one that most have.
    """
    stored = stored_types(folder)
    usual = Counter(stored.values()).most_common(1)[0][0]
    return {name: stored.get(name, usual) for name, _ in model.named_parameters()}


def rounded(model: nn.Module, types: dict[str, torch.dtype], keep: bool) -> None:
    """Round each weight to its type, in place. keep: the numbers are rounded, and stay in the type
    in which the model computes. Raises MiniloraError for a number that its type cannot hold.
    """
    import torch

    for name, parameter in model.named_parameters():
        dtype = types.get(name, parameter.dtype)
        narrow = parameter.data.to(dtype)
        if not bool(torch.isfinite(narrow).all()):
            raise MiniloraError(
                f"{name} has a merged weight of {parameter.abs().max().item():g}, which the base's "
                f"{str(dtype).removeprefix('torch.')} cannot hold; the adapter is broken, train it "
                "again with a lower learning rate"
            )
        parameter.data = narrow.to(parameter.dtype) if keep else narrow


def write(model: Llama, out: Path, code: str | None) -> None:
    """The folder: dense as it is, or in 4 bits where a code is named."""
    if code is None:
        model.save_pretrained(out)
        return
    from ..qlora.checkpoint import save_quantized

    save_quantized(model, out)


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes `out`. Where that is there already, empty, and its files can only
    come one by one, a record says whose they are until all have come.
    """
    made, record = Made(out), out / RECORD

    def claim(temporary: Path) -> None:
        made.claim(temporary)
        if out.exists():
            with atomic_write(record) as file:
                file.write_text(json.dumps({"files": made.marks}), encoding="utf-8")

    with atomic_folder(out, before=claim) as temporary:
        yield temporary
    record.unlink(missing_ok=True)


def take_back(out: Path) -> None:
    """Remove what a merge that was killed between two files has left in `out`."""
    if (out / RECORD).is_file():
        made = Made(out)
        made.take(read_json(out / RECORD, {"type": "object", "required": ["files"]}))
        made.remove()
        (out / RECORD).unlink()


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
    folder = resolve(model)
    read = [("--model", folder), ("--adapter", Path(adapter))]
    out = require_folder(out, read=read + ([("--data", find_data(data))] if data else []))
    with alone(out):
        take_back(out)
        if out.exists() and any(out.iterdir()):
            raise MiniloraError(f"{out} is there already and not empty; choose another --out")
        return _merge(adapter, out, model, folder, code, device, data, requantize)


def _merge(adapter, out, model, folder, code, device, data, requantize) -> Merged:
    from .. import lora, qlora
    from ..train.kl_divergence import kl, log_probabilities

    llama, tokenizer = load(model, adapter, code, device)
    rows = compared_rows(llama, tokenizer, data)
    trained = log_probabilities(llama, rows)
    decode_rest(lora.unload(lora.merge(llama)))
    types = types_of(llama, folder)
    rounded(llama, types, keep=True)
    exact = kl(trained, log_probabilities(llama, rows))
    moved = None
    if requantize:
        qlora.quantize_model(llama, code=requantize, skip=left_dense(folder))
        for path, layer in llama.named_modules():
            if isinstance(layer, qlora.QLinear):
                layer.rounds_to = types[f"{path}.weight"]  # as every reader of the folder will
        moved = kl(trained, log_probabilities(llama, rows))
    rounded(llama, types, keep=False)
    with whole(out) as made:
        write(llama, made, requantize)
        copy_tokenizer(folder, made)
    return Merged(exact, moved, len(trained))

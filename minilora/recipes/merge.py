"""`minilora merge`: an adapter written into its model's weights, as a plain Hugging Face folder.

What it replaces: PEFT's `merge_and_unload`. How it works: W + (B A)·s per layer. An adapter trained
over a 4-bit or int8 base is merged into what that base *decodes to* — the weights it was trained
against — and not into the original ones: the merged model then answers as the trained one did.
Layers without an adapter are decoded, too. The KL divergence from the trained model is reported,
over the answers of `--data` or over text that the model writes itself. Only where `--requantize`
asks for it is the result quantized again, which does move the answers; the report says how far.
What it leaves out: requantizing to int8.
Where numerics differ: see lora/adapters.py; the merged weights are rounded once, to the base's
type.
"""

from __future__ import annotations

import shutil
from pathlib import Path

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


def decode_rest(model) -> None:
    """Put an nn.Linear in place of each layer that is quantized and had no adapter, so that the
    folder is a plain Llama.
    """
    from torch import nn

    from ..lora.layer import LoRALinear

    for path, layer in list(model.named_modules()):
        if hasattr(layer, "dense_weight") and not isinstance(layer, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, LoRALinear(layer).merged_base([]))


def probe(args, model, tokenizer) -> list:
    """The rows on which the model is compared with itself: 16 of the data's valid split, or its own
    text.
    """
    from .. import text
    from ..train import kl_divergence

    if args.data is None:
        return kl_divergence.own_text(
            model, next(i for i in (tokenizer.bos_id, tokenizer.eos_id, 0) if i is not None)
        )
    return text.encode_rows(text.read_split(args.data, "valid")[:16], tokenizer)


def write(model, out: Path, code: str | None) -> None:
    """The folder: dense as it is, or in 4 bits where a code is named."""
    if code is None:
        model.save_pretrained(out)
        return
    from ..qlora.checkpoint import save_quantized

    save_quantized(model, out)

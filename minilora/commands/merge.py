"""`minilora merge`: an adapter written into its model's weights, as a plain Hugging Face folder.

What it replaces: PEFT's `merge_and_unload`. How it works: W + (B A)·s per layer. An adapter trained over a 4-bit or int8 base
is merged into what that base *decodes to* — the weights it was trained against — and not into the original ones: the merged
model then answers as the trained one did. Layers without an adapter are decoded, too. What it leaves out: quantizing the result again, which would move the answers.
Where numerics differ: see lora/adapters.py; the merged weights are rounded once, to the base's type.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import MiniloraError
from . import models

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


def add_arguments(parser) -> None:
    models.add_model_arguments(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write: config.json, safetensors, tokenizer")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer's files beside the model's, each whole or not at all."""
    from ..files import atomic_write

    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            with atomic_write(target / name) as temporary:
                shutil.copyfile(source / name, temporary)


def decode_rest(model) -> None:
    """Put an nn.Linear in place of each layer that is quantized and had no adapter, so that the folder is a plain Llama."""
    from torch import nn

    from ..lora.layer import LoRALinear

    for path, layer in list(model.named_modules()):
        if hasattr(layer, "dense_weight") and not isinstance(layer, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, LoRALinear(layer).merged_base([]))


def run(args) -> int:
    if not args.adapter:
        raise MiniloraError("merge needs --adapter DIR: the --out folder of a finetune run")
    folder, out = models.resolve(args.model), Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MiniloraError(f"{out} is there already and not empty; choose another --out")

    from .. import lora

    model, _ = models.load(args)
    decode_rest(lora.unload(lora.merge(model)))
    model.save_pretrained(out)
    copy_tokenizer(folder, out)
    print(f"{out}: {args.model} with {args.adapter} merged in, a Hugging Face folder")
    return 0

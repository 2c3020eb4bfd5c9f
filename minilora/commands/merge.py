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

from ..errors import MiniloraError
from . import models

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def add_arguments(parser) -> None:
    models.add_model_arguments(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the folder to write: config.json, safetensors, tokenizer",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        help="measure how far the answers moved on its valid split (default: on text the model "
        "writes itself)",
    )
    parser.add_argument(
        "--requantize",
        metavar="CODE",
        choices=("nf4", "fp4"),
        help="write the merged model in 4 bits again, for bitsandbytes; moves the answers",
    )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put the tokenizer's files beside the model's, each whole or not at all."""
    from ..files import atomic_write

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
    from .. import divergence, text

    if args.data is None:
        return divergence.own_text(
            model, next(i for i in (tokenizer.bos_id, tokenizer.eos_id, 0) if i is not None)
        )
    return text.encode_rows(text.read_split(args.data, "valid")[:16], tokenizer)


def write(model, out: Path, code: str | None) -> None:
    """The folder: dense as it is, or in 4 bits where a code is named."""
    if code is None:
        model.save_pretrained(out)
        return
    from ..qcheckpoint import save_quantized

    save_quantized(model, out)


def run(args) -> int:
    if not args.adapter:
        raise MiniloraError("merge needs --adapter DIR: the --out folder of a finetune run")
    folder, out = models.resolve(args.model), Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MiniloraError(f"{out} is there already and not empty; choose another --out")

    from .. import divergence, lora, qlora

    model, tokenizer = models.load(args)
    rows = probe(args, model, tokenizer)
    trained = divergence.log_probabilities(model, rows)
    decode_rest(lora.unload(lora.merge(model)))
    moved = (
        "KL from the trained model "
        f"{divergence.kl(trained, divergence.log_probabilities(model, rows)):.1e}"
    )
    if args.requantize:
        qlora.quantize_model(model, code=args.requantize)
        moved += (
            f", after {args.requantize} "
            f"{divergence.kl(trained, divergence.log_probabilities(model, rows)):.1e}"
        )
    write(model, out, args.requantize)
    copy_tokenizer(folder, out)
    print(f"{out}: {args.model} with {args.adapter} merged in, a Hugging Face folder")
    print(f"{moved} nats a token, over {len(trained):,} tokens of {args.data or 'its own text'}")
    return 0

"""`minilora merge`: the options, and what is printed."""

from __future__ import annotations

from pathlib import Path

from ..cli import options
from ..errors import MiniloraError
from ..qlora import base
from ..recipes import load
from ..recipes.merge import copy_tokenizer, decode_rest, probe, write


def add_arguments(parser) -> None:
    options.add_model_arguments(parser)
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


def run(args) -> int:
    if not args.adapter:
        raise MiniloraError("merge needs --adapter DIR: the --out folder of a finetune run")
    folder, out = base.resolve(args.model), Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MiniloraError(f"{out} is there already and not empty; choose another --out")

    from .. import lora, qlora
    from ..train.kl_divergence import kl, log_probabilities

    model, tokenizer = load.load(args)
    rows = probe(args, model, tokenizer)
    trained = log_probabilities(model, rows)
    decode_rest(lora.unload(lora.merge(model)))
    moved = f"KL from the trained model {kl(trained, log_probabilities(model, rows)):.1e}"
    if args.requantize:
        qlora.quantize_model(model, code=args.requantize)
        moved += f", after {args.requantize} {kl(trained, log_probabilities(model, rows)):.1e}"
    write(model, out, args.requantize)
    copy_tokenizer(folder, out)
    print(f"{out}: {args.model} with {args.adapter} merged in, a Hugging Face folder")
    print(f"{moved} nats a token, over {len(trained):,} tokens of {args.data or 'its own text'}")
    return 0

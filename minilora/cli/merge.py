"""`minilora merge`: the options, and what is printed."""

from __future__ import annotations

from ..errors import MiniloraError
from ..recipes import merge
from . import options

EXAMPLE = """example:
  minilora merge --adapter runs/extract --out merged"""


def add_arguments(parser) -> None:
    parser.usage, parser.epilog = "minilora merge --adapter DIR --out DIR [options]", EXAMPLE
    options.add_model_arguments(parser)
    add = parser.add_argument_group("what is written, and measured").add_argument
    add(
        "--out",
        required=True,
        metavar="DIR",
        help="the folder to write: config.json, safetensors, tokenizer (default: none: it is "
        "needed)",
    )
    add(
        "--data",
        metavar="DATA",
        help="measure how far the answers moved on the valid split of this folder or shipped task "
        "(default: on text that the model writes itself)",
    )
    add(
        "--requantize",
        choices=("nf4", "fp4"),
        help="write the merged model in 4 bits again, for bitsandbytes; moves the answers "
        "(default: no)",
    )


def run(args) -> int:
    if not args.adapter:
        raise MiniloraError("merge needs --adapter DIR: the --out folder of a finetune run")
    done = merge.run(
        args.adapter,
        args.out,
        args.model,
        code=args.code,
        device=args.device,
        data=args.data,
        requantize=args.requantize,
    )
    moved = f"KL from the trained model {done.kl:.1e}"
    if args.requantize:
        moved += f", after {args.requantize} {done.requantized:.1e}"
    print(f"{args.out}: {args.model} with {args.adapter} merged in, a Hugging Face folder")
    print(f"{moved} nats a token, over {done.tokens:,} tokens of {args.data or 'its own text'}")
    return 0

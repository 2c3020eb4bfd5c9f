"""`minilora export`: the options, and what is printed."""

from __future__ import annotations

from pathlib import Path

from . import options

EXAMPLE = """example:
  minilora export --adapter runs/extract --type q8_0 --out extract.gguf"""

TYPES = ("f16", "bf16", "q8_0", "f32")


def add_arguments(parser) -> None:
    parser.usage, parser.epilog = "minilora export --out FILE.gguf [options]", EXAMPLE
    options.add_model_arguments(parser)
    add = parser.add_argument_group("what is written").add_argument
    add(
        "--to",
        choices=("gguf",),
        default="gguf",
        help="the format: gguf, for llama.cpp, Ollama and what is built on them (default: gguf)",
    )
    add(
        "--type",
        choices=TYPES,
        default="f16",
        help="how matrices are kept: in 16 bits, in 8 with a scale for each 32, or in 32 "
        "(default: f16)",
    )
    add(
        "--out",
        required=True,
        metavar="FILE",
        help="the file to write; it must not be there yet (default: none: it is needed)",
    )


def run(args) -> int:
    from ..qlora.base import resolve
    from ..system import outputs

    folder = resolve(args.model)
    read = [("--model", folder)]
    if args.adapter:
        read.append(("--adapter", Path(args.adapter)))
    path = outputs.require_file(args.out, "--out", read)
    with outputs.alone(path):
        notes = _write(args, folder, path)
    for note in notes:
        print(f"note: {note}")
    megabytes = path.stat().st_size / 1e6
    named = f"{args.model} with {args.adapter} merged in" if args.adapter else args.model
    print(f"{path}: {named}, {args.type}, {megabytes:.1f} MB")
    return 0


def _write(args, folder: Path, path: Path) -> list[str]:
    """The model, merged as `minilora merge` does it, in the file; returns what is to be said."""
    from .. import lora
    from ..hub import gguf_file
    from ..recipes import load, merge
    from ..text.chat import answer_ends

    gguf_file.library()
    llama, tokenizer = load.load(args.model, args.adapter, args.code, args.device)
    merge.decode_rest(lora.unload(lora.merge(llama)))
    merge.rounded(llama, merge.types_of(llama, folder), keep=True)
    ends = answer_ends(llama, tokenizer)
    stops = [tokenizer.eos_id, *(end for end in ends if end != tokenizer.eos_id)]
    return gguf_file.write(llama, tokenizer, stops, path, args.type, folder.resolve().name)

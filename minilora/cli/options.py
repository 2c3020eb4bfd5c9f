"""The options that name a model, the same for each command that loads one."""

from __future__ import annotations

from ..qlora.base import INT8


def add_model_arguments(parser) -> None:
    """The options that name a model, the same for each command that loads one."""
    parser.add_argument(
        "--model",
        default="tiny",
        help="tiny (the shipped base), a Hugging Face folder, or a Hub name",
    )
    parser.add_argument(
        "--adapter", metavar="DIR", help="the --out folder of a finetune run, or a PEFT adapter"
    )
    parser.add_argument(
        "--code",
        help=f"quantize the base: nf4, fp4, int8 … in blocks, or {INT8} as --method int8 does; "
        "none: do not (default: as the adapter was trained)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")

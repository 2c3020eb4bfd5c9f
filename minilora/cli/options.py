"""Options that several commands share, and how a declared setting becomes one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..errors import MiniloraError
from ..qlora.base import INT8
from ..recipes.settings import GROUPS, Settings, flag
from ..system.ranges import Range
from ..train.config import declared

DEVICE = declared(Settings)["device"]

ANY = Range(-(10**30), 10**30)

# by the annotation of a field: what parses it, and how its value is called
PARSED: dict[str, tuple[Any, str | None]] = {
    "int": (int, "N"),
    "float": (float, "X"),
    "str": (str, None),
}


def within(name: str, numbers: Range) -> Callable[[str], Any]:
    """What parses the option `name`: a number in the range, or a line that says which can be."""

    def parse(text: str) -> int | float:
        try:
            return numbers.parse(text, name)
        except MiniloraError as error:  # a ValueError, whose words argparse would not tell
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def add_setting(where: Any, name: str, unbounded: bool = False, **more: Any) -> None:
    """The option of a setting of `finetune`, with its meaning, its choices and its default in the
    help. more: what this command says otherwise. Without `default` an option that was not typed is
    not in the result. unbounded: the command has limits of its own.
    """
    each = declared(Settings)[name]
    told = each.metadata
    shown = told["shown"] or _said(each.default)
    meaning = more.pop("meaning", told["meaning"])
    more = {"help": f"{meaning} (default: {shown})", "default": argparse.SUPPRESS, **more}
    if each.type == "bool":
        where.add_argument(flag(name), action=argparse.BooleanOptionalAction, **more)
        return
    if told["choices"]:
        more.setdefault("choices", told["choices"])
    parse, called = PARSED[each.type.removesuffix(" | None")]
    if "within" in told:
        parse = within(flag(name), ANY if unbounded else told["within"])
    more.setdefault("metavar", told["metavar"] or called)
    where.add_argument(flag(name), type=parse, **more)


def _said(default: Any) -> str:
    """A default as it is typed."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)


def groups(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """One group of options for each of the settings'."""
    return {name: parser.add_argument_group(title) for name, title in GROUPS.items()}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a model, the same for each command that loads one."""
    group = parser.add_argument_group("the model")
    add_setting(group, "model", default="tiny")
    group.add_argument(
        "--adapter",
        metavar="DIR",
        help="the --out folder of a finetune run, or a PEFT adapter (default: none)",
    )
    group.add_argument(
        "--code",
        help=f"quantize the base: nf4, fp4, int8 … in blocks, or {INT8} as --method int8 does; "
        "none: do not (default: as the adapter was trained)",
    )
    group.add_argument(
        "--device", help=f"{DEVICE.metadata['meaning']} (default: {DEVICE.metadata['shown']})"
    )

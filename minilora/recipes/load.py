"""What the commands share: a model by name with its adapter, and data by path or by name.

What it replaces: `PeftModel.from_pretrained`. How it works: qlora/base.py turns the name into a
model; if the adapter's run.json says that it was trained over a quantized base, the base is
quantized in the same way before the adapter goes on, whichever backend trained it.
What it leaves out: models other than Llama.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import MiniloraError
from ..qlora.base import form_of, load_base, recipe, resolve
from ..system.files import data_folder
from ..system.json_files import read_json, shown

FOUR_BITS = re.compile(r"(bnb|[-_.])4-?bit", re.IGNORECASE)

if TYPE_CHECKING:
    from ..llama.model import Llama
    from ..text.tokenizer import Tokenizer


def tasks() -> dict[str, Path]:
    """The shipped tasks by name; none where the data is not there."""
    try:
        folders = (data_folder() / "tasks").glob("*")
    except MiniloraError:
        return {}
    return {path.name: path for path in sorted(folders) if (path / "train.jsonl").is_file()}


def find_data(name: str | None, say: Callable[[str], object] = print) -> Path:
    """The data that `name` stands for: what is at that path, else the shipped task of that name.
    Where it might be either, `say` gets which it is.
    """
    if name is None:
        raise MiniloraError(
            "--data is missing; give a .jsonl file, a folder, or a shipped task such as extract"
        )
    here, shipped = Path(name), tasks().get(name)
    if shipped is None:
        return here
    if here.exists():
        say(f"{name}: what is here under that name, {here.resolve()}, not the shipped task")
        return here
    say(f"{name}: the shipped task, {shipped}")
    return shipped


def place(model: str) -> Path:
    """Where a model's folder is, if it is on this machine under that name; nothing is fetched."""
    try:
        return data_folder() / "base" if model == "tiny" else Path(model).expanduser()
    except (MiniloraError, RuntimeError):  # `resolve` says it
        return Path(model)


def positions(folder: Path) -> int:
    """How many tokens the model in `folder` was made for."""
    from ..llama.checkpoint import read_config

    return read_config(folder).max_position_embeddings


def adapter_quantization(adapter: str, code: str | None) -> dict | None:
    """How the base under `adapter` is to be quantized: `code` if given ("none": not at all), else
    as its run.json says.
    """
    if code == "none":
        return None
    from ..train.run_json import read_about

    about = read_about(Path(adapter), "name the base's code with --code nf4 or --code none")
    saved = (about or {}).get("quantization")
    if code is not None:
        return saved if saved and saved.get("code") == code else recipe(code)
    return saved


def warn_of_base(adapter: str, model: str) -> None:
    """Say that `adapter` names a 4-bit base, as those of Unsloth are called, where the base here is
    not quantized: both answer, and not alike.
    """
    from ..lora.folder import CONFIG, find_folder

    base = read_json(find_folder(adapter, "default") / CONFIG).get("base_model_name_or_path")
    if isinstance(base, str) and FOUR_BITS.search(base):
        print(
            f"minilora: warning: {adapter} was trained over {shown(base)}, and {model} is not in 4 "
            "bits; --code nf4 makes it such a base, --code none says that it is meant",
            file=sys.stderr,
            flush=True,
        )


def load(
    model: str = "tiny",
    adapter: str | None = None,
    code: str | None = None,
    device: str | None = None,
) -> tuple[Llama, Tokenizer]:
    """The model of that name with its adapter, ready to answer, and its tokenizer. code: what the
    base is quantized with (None: as the adapter was trained, "none": not at all).
    """
    folder = resolve(model)
    if adapter is not None and not Path(adapter).is_dir():
        raise MiniloraError(f"no adapter at {adapter}; give the --out folder of a finetune run")
    if adapter is not None:
        quantization = adapter_quantization(adapter, code)
    else:
        quantization = None if code in (None, "none") else recipe(code)

    from .. import lora
    from ..system.precision import pick_device
    from ..text.ends import tell_end
    from ..text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(folder)
    llama = load_base(folder, pick_device(device), quantization)
    if adapter is not None:
        lora.load_adapter(llama, adapter)
        lora.use_adapter(llama, "default", trainable=False)
        if code is None and form_of(llama) is None:
            warn_of_base(adapter, model)
    tell_end(llama, tokenizer)
    return llama.eval(), tokenizer

"""What the commands share: a model by name with its adapter, and the options that name one.

What it replaces: `PeftModel.from_pretrained`. How it works: `loading.py` turns the name into a
model; if the adapter's run.json says that it was trained over a quantized base, the base is
quantized in the same way before the adapter goes on, whichever backend trained it.
What it leaves out: models other than Llama.
Where numerics differ: nowhere; see llama.py, qlora.py, int8.py, lora/.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import MiniloraError
from ..qlora.base import load_base, recipe, resolve


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
    saved = None
    path = Path(adapter) / "run.json"
    if path.is_file():
        try:
            saved = json.loads(path.read_text(encoding="utf-8")).get("quantization")
        except (OSError, ValueError, AttributeError) as error:
            raise MiniloraError(
                f"{path} is damaged ({error}); name the base's code with --code nf4 or --code none"
            ) from error
    if code is not None:
        return saved if saved and saved.get("code") == code else recipe(code)
    return saved


def load(args):
    """(model, tokenizer) for `--model`, `--adapter`, `--code` and `--device` of generate, evaluate
    and merge.
    """
    folder = resolve(args.model)
    adapter = args.adapter
    if adapter is not None and not Path(adapter).is_dir():
        raise MiniloraError(f"no adapter at {adapter}; give the --out folder of a finetune run")
    quantization = (
        adapter_quantization(adapter, args.code)
        if adapter
        else None
        if args.code in (None, "none")
        else recipe(args.code)
    )

    from .. import lora
    from ..system.precision import pick_device
    from ..text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(folder)
    model = load_base(folder, pick_device(args.device), quantization)
    if adapter:
        lora.load_adapter(model, adapter)
        lora.use_adapter(model, "default", trainable=False)
    return model.eval(), tokenizer

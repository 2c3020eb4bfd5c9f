"""`minilora finetune --backend peft`: the same run with transformers' model, PEFT's adapter and
bitsandbytes' quantization.

What it replaces: a second training script. How it works: rows, loss mask, batches, seed, learning
rates, loop, resume and the run's folder are finetune's own; only the model comes from `hub`, and
what it learned is written by the libraries. `evaluate`, `generate` and `merge` read the folder as
any other: they quantize the base in the same way and put the adapter on our Llama.
What it leaves out: code books other than bitsandbytes', the starts pissa and loftq.
Where numerics differ: see hub/adapters.py; the adapter starts from the same numbers for the same
seed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from ..errors import MiniloraError
from ..qlora import base
from .settings import Settings, parse_targets

LIBRARIES = ("transformers", "peft", "bitsandbytes")


def refuse(settings: Settings) -> None:
    """Raise MiniloraError for settings that only our own backend has, and where a library is
    missing.
    """
    from ..hub.loading import CODES

    method = settings.method
    if method == "qlora" and settings.code not in CODES:
        raise MiniloraError(
            f"--code {settings.code} is not among bitsandbytes' ({', '.join(CODES)}); "
            "choose one of them, or --backend minilora"
        )
    if method != "full" and settings.init not in ("kaiming", "gaussian"):
        raise MiniloraError(
            f"--init {settings.init} changes the base, which --backend peft leaves as it "
            "is; choose kaiming or gaussian, or --backend minilora"
        )
    needed = (
        LIBRARIES
        if method in ("qlora", "int8")
        else LIBRARIES[:2]
        if method == "lora"
        else LIBRARIES[:1]
    )
    for name in needed:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise MiniloraError(
                f"--backend peft needs {name}: pip install 'minilora[hub]'"
            ) from error


def versions() -> dict:
    """Of the libraries that are installed."""
    return {
        name: importlib.metadata.version(name)
        for name in LIBRARIES
        if importlib.util.find_spec(name)
    }


def build(settings: Settings, folder: Path, device: str):
    """The model, ready to be trained; returns (model, how to quantize the base when the adapter is
    used).
    """
    import torch

    from .. import hub
    from ..system.precision import HALVES

    # auto: what the device has
    wanted = torch.float32 if settings.precision == "fp32" else HALVES.get(settings.precision)
    model = hub.load(str(folder), settings.method, device=device, code=settings.code, dtype=wanted)
    torch.manual_seed(settings.seed)
    if not settings.adapts:
        model.requires_grad_(True)
        if settings.checkpointing:
            hub.recompute(model)
        return model, None
    names = ("rank", "alpha", "dropout", "init", "variant", "checkpointing")
    model = hub.prepare(
        model,
        targets=parse_targets(settings.targets),
        **{name: getattr(settings, name) for name in names},
    )
    return model, base.recipe(settings.base_code) if settings.base_code else None


def export(model, settings: Settings, folder: Path, out: Path) -> str:
    """Write what was trained into `out`; returns the name of the weights' file."""
    from .. import hub
    from .merge import copy_tokenizer

    if not settings.adapts:
        hub.save_model(model, out)
        copy_tokenizer(folder, out)
        return "model.safetensors"
    hub.save_adapter(model, out, settings.base_name(folder))
    return "adapter_model.safetensors"

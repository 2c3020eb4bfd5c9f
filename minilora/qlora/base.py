"""From the name a user types to a model in memory: `tiny`, a model of the catalogue, a folder, a
GGUF, or a name on the Hugging Face hub.

What it replaces: `snapshot_download` and `AutoModelForCausalLM.from_pretrained` with its
quantization config.
How it works: the name is resolved to a folder, which for a hub name is fetched first (config,
safetensors and tokenizer alone, after a look at the free space) and for a GGUF decoded first. The
folder is read into our Llama
and quantized by a recipe: a code book's name means its blocks (four_bit.py), `llm.int8` means rows
with the outliers apart (int8.py).
What it leaves out: models other than Llama, pickled weights; `hub` loads the same folders with
transformers.
Where numerics differ: see llama/decoder.py, four_bit.py, int8.py.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import MiniloraError
from ..llama.weight_files import model_folder
from ..models import names
from ..models.catalogue import catalogue
from ..system.fetch import fetch, hub_name
from ..system.files import data_folder
from ..system.gguf_reader import is_gguf
from .stored import stored_codes

INT8 = "llm.int8"  # the name of --method int8's base; `int8` by itself is a code book in blocks


def resolve(name: str) -> Path:
    """The folder that `name` stands for. Raises MiniloraError with the remedy if there is none."""
    if name == "tiny":
        folder = data_folder() / "base"
        if not (folder / "config.json").is_file():
            raise MiniloraError(
                f"the shipped model is not at {folder}; install minilora again, or build one "
                "with `minilora pretrain --out base` and name it by --model base"
            )
        return folder
    if model := names.known(name):
        return names.folder_of(model)
    folder = Path(name).expanduser()
    if is_gguf(folder):
        from ..models import from_gguf

        return from_gguf.of_user(folder)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise MiniloraError(
            f"{name} holds an adapter, not a model; use --model MODEL --adapter {name}"
        )
    if folder.exists():
        return model_folder(folder)  # a file is told what it is
    if meant := names.near(name):
        raise MiniloraError(
            f"no model {name!r}; {meant}Give `tiny`, one of {', '.join(catalogue())}, a "
            "folder or a GGUF that exists, or a Hub name like owner/name"
        )
    return fetch(hub_name(name))


def packed(folder: Path) -> bool:
    """Whether weights in `folder` are in 4 bits already, so that it is read as it is."""
    return bool(stored_codes(folder))


def own_code(name: str) -> str | None:
    """The code of a folder here that is in 4 bits already; None for any other name, and for a
    folder of which the loader will say what is wrong.
    """
    folder = Path(name).expanduser()
    try:
        codes = stored_codes(folder) if folder.is_dir() else ()
    except MiniloraError:
        return None
    return min(codes, default=None)


def load_base(folder: Path, device: str, quantization: dict | None = None, trained: bool = False):
    """The Llama in `folder` on `device`, quantized if told so.

    Frozen weights are kept in bf16 on a GPU that has it; weights to be trained whole, and
    everything on a CPU, in fp32. A folder that is in 4 bits already (see checkpoint.py) is read as
    it is. Raises MiniloraError if that one is to be trained whole or quantized in another code.
    """
    import torch

    from ..llama.model import Llama
    from ..system.precision import has_bf16

    dtype = torch.bfloat16 if has_bf16(device) and not trained else torch.float32
    if codes := stored_codes(folder):
        require_same_code(folder, codes, quantization, trained)
        from .checkpoint import load_quantized

        return load_quantized(folder, dtype, device)
    model = Llama.from_pretrained(folder, dtype=dtype, device=device)
    return quantize_base(model, **quantization) if quantization else model


def require_same_code(
    folder: Path, codes: set[str], quantization: dict | None, trained: bool
) -> None:
    """Raise MiniloraError if a folder whose weights are in `codes` cannot be had as it is asked
    for.
    """
    here = f"{folder} is in 4 bits already ({', '.join(sorted(codes))})"
    if trained:
        raise MiniloraError(
            f"{here}, and --method full trains all weights; choose --method qlora, or take the "
            "unquantized model"
        )
    if quantization and quantization["code"] == INT8:
        raise MiniloraError(
            f"{here}, and {INT8} (--method int8) is made from the unquantized model; take that, or "
            "--method qlora"
        )
    if quantization and quantization["code"] not in {*codes, "none"}:
        raise MiniloraError(
            f"{here}, not in {quantization['code']}; give --code {min(codes)} to take it as it "
            f"is, or the unquantized model for --code {quantization['code']}"
        )


def recipe(code: str) -> dict:
    """How --code CODE quantizes a base, as run.json keeps it: the arguments of `quantize_base`.

    Raises MiniloraError for a code that no base can be kept in.
    """
    from .four_bit import refuse_zero_point

    refuse_zero_point(code, "--code")
    return (
        {"code": INT8, "threshold": 6.0}
        if code == INT8
        else {"code": code, "double": True, "block": 64}
    )


def form_of(model) -> dict | None:
    """How the first 4-bit layer of `model` is quantized, as `recipe` says it; None without one."""
    from ..lora.starts import packed_form
    from .four_bit import QLinear

    layers = (module for module in model.modules() if isinstance(module, QLinear))
    return next((packed_form(layer) for layer in layers), None)


def quantize_base(model, code: str, **settings):
    """Quantize the model's linear layers in place, by LLM.int8() or in blocks of a code book;
    returns it.
    """
    from .four_bit import quantize_model
    from .int8 import quantize_model_int8

    return (
        quantize_model_int8(model, **settings).requires_grad_(False)
        if code == INT8
        else quantize_model(model, code, **settings)
    )

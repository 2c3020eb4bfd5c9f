"""The bridge to transformers, peft and bitsandbytes: the same folder, the same adapter, the same
data through the large libraries.

What it replaces: the fifty lines with which every QLoRA script begins: `BitsAndBytesConfig`,
`prepare_model_for_kbit_training`, `LoraConfig`, `get_peft_model`. How it works: `load` reads a
Llama folder into transformers' model, in 4 bits (NF4, double quantization), 8 bits or plain, in the
number format that the device really has; with stack="minilora" into ours. `prepare` puts PEFT's
LoRA layers where `lora.add_lora` puts ours, and starts them from the same random numbers, so that
one seed means one adapter in both stacks. The model can then go to `train.fit` as it is.
`Answering` lets `scoring.exact_match` ask it questions. Errors of the libraries become one line
with the remedy; a model that is too large for the memory is refused before it is read.
What it leaves out: families that `llama/families.py` does not know; several devices; what PEFT has
beside LoRA; folders that are quantized already.
Where numerics differ: PEFT adds base and adapter in another order, and transformers computes logits
at every position, so losses agree to rounding. bitsandbytes on a CPU is wrong twice, which `cure`
mends: after an evaluation it packs its weights anew and the input's gradient is lost; and where a
row's length is a multiple of 16 but not of 64, the weights are decoded wrongly. There our QLinear
decodes the very same bytes. `prepare_model_for_kbit_training` copies head and embeddings to fp32;
here they stay as they are.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MiniloraError
from ..qlora.base import INT8, load_base, recipe, resolve
from ..qlora.stored import stored_codes
from ..system.memory import full
from ..system.precision import has_bf16, pick_device
from .bnb_faults import cure

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..text.tokenizer import Tokenizer

# plain, 4-bit and 8-bit base under an adapter; all weights
METHODS = ("lora", "qlora", "int8", "full")

CODES = ("nf4", "fp4")  # what bitsandbytes packs into 4 bits


@contextlib.contextmanager
def libraries() -> Iterator[None]:
    """transformers, peft and bitsandbytes without their chatter; MiniloraError if one of them is
    not installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers.utils import logging as theirs

            before = theirs.get_verbosity()
            bars = theirs.is_progress_bar_enabled()
            theirs.set_verbosity_error()
            theirs.disable_progress_bar()
            try:
                yield
            finally:
                theirs.set_verbosity(before)
                if bars:
                    theirs.enable_progress_bar()
    except ImportError as error:
        raise MiniloraError(
            f"{error.name or error} is not installed: pip install 'minilora[hub]'"
        ) from error


# ------------------------------------------------------------------------------------------ loading


def compute_dtype(device: str) -> torch.dtype:
    """The format for products that the device really has: bf16, fp16 on a T4 and its age, fp32 on a
    processor.
    """
    import torch

    if not device.startswith("cuda"):
        return torch.float32
    return torch.bfloat16 if has_bf16(device) else torch.float16


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of the model `name`, with its chat template."""
    from ..text.tokenizer import Tokenizer

    return Tokenizer.from_pretrained(resolve(str(name)))


def load(
    name: str,
    method: str = "qlora",
    *,
    stack: str = "transformers",
    device: str | None = None,
    code: str = "nf4",
    dtype: torch.dtype | None = None,
    free: int | None = None,
) -> nn.Module:
    """The Llama `name` (tiny, a folder, a hub name), ready for an adapter (`lora`, `qlora`, `int8`)
    or for training whole (`full`).

    stack: "transformers", or "minilora" for our own Llama and our own quantization. dtype: of
    products, and on a GPU of what is frozen and not packed, if not `compute_dtype`. free: bytes,
    for those who know better than the system. Raises MiniloraError with the remedy for a model that
    is missing, gated, damaged, no Llama, or too large for the memory.
    """
    if method not in METHODS or stack not in ("transformers", "minilora"):
        wrong, choices = (
            (method, METHODS) if method not in METHODS else (stack, ("transformers", "minilora"))
        )
        raise MiniloraError(f"{wrong!r} is not known; choose {', '.join(choices)}")
    folder, device = resolve(str(name)), pick_device(device)
    _let_go(device)
    require_room(folder, method, device, free)
    if stack == "minilora":
        packed = {"qlora": code, "int8": INT8}.get(method)
        return load_base(
            folder, device, recipe(packed) if packed else None, trained=method == "full"
        )
    return _load_theirs(folder, method, device, code, dtype)


def _let_go(device: str) -> None:
    """Give the driver back what models before this one have left on a GPU: what torch keeps for
    itself counts as taken there.
    """
    if device.startswith("cuda"):
        import gc

        import torch

        gc.collect()
        torch.cuda.empty_cache()


def _load_theirs(
    folder: Path, method: str, device: str, code: str, dtype: torch.dtype | None
) -> nn.Module:
    import torch

    from ..llama.checkpoint import read_config
    from ..llama.weight_files import weight_files

    read_config(folder)  # says in one line what is no Llama, or no model at all
    weight_files(folder)
    if stored_codes(folder):
        raise MiniloraError(
            f"{folder} is in 4 bits already, which --backend minilora trains over as it is; choose "
            "that, or take the unquantized model"
        )
    product = dtype or compute_dtype(device)
    # what trains, and all on a processor, as in `load_base`
    kept = product if device.startswith("cuda") and method != "full" else torch.float32
    with libraries():
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        packed = (
            {"quantization_config": quantization(method, code, product)}
            if method in ("qlora", "int8")
            else {}
        )
        try:
            model, told = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=kept,
                device_map={"": device},
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **packed,
            )
        except (SafetensorError, RuntimeError, ValueError) as error:
            if full(error):
                raise
            raise MiniloraError(
                f"transformers cannot load {folder} ({_first_line(error)}); fetch the folder again"
            ) from error
    # transformers only warns, and goes on with random numbers in their place
    for what in ("missing_keys", "mismatched_keys"):
        if told.get(what):
            first = sorted(map(str, told[what]))[0]
            raise MiniloraError(
                f"{folder}: {what.split('_')[0]} weight {first}; config.json describes "
                "another model, or fetch the folder again"
            )
    # keys and values are of use when answering, and cost memory when training
    model.config.use_cache = False
    return cure(model)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def quantization(method: str, code: str, dtype: torch.dtype) -> Any:
    """transformers' BitsAndBytesConfig for `method`; its own defaults would be FP4, single
    quantization, and products in fp32.
    """
    from transformers import BitsAndBytesConfig

    if method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    if code not in CODES:
        raise MiniloraError(
            f"bitsandbytes has no code {code!r} in 4 bits; choose {' or '.join(CODES)}, or "
            "the backend minilora"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=code,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def require_room(folder: Path, method: str, device: str, free: int | None = None) -> None:
    """Raise MiniloraError if the weights alone are more than the device has free, with what would
    make them fit.
    """
    from ..budget.forms.memory import weights
    from ..budget.setup import make
    from ..system.memory import available

    free = available(device) if free is None else free
    if free is None:
        return

    def needed(way: str) -> int:
        half = way != "full" and compute_dtype(device).itemsize == 2
        setup = make(
            folder,
            method=way,
            precision="bf16" if half else "fp32",
            library="transformers",
            device=device.partition(":")[0],
            rank=1,
        )
        return sum(part.bytes for part in weights(setup).values())

    if needed(method) <= free:
        return
    lesser = next((way for way in ("lora", "int8", "qlora") if needed(way) <= free), None)
    remedy = (
        f"method {lesser} takes {needed(lesser) / 1e9:.2f} GB"
        if lesser
        else "take a smaller model, or a machine with more memory (minilora budget names one)"
    )
    raise MiniloraError(
        f"the weights of {folder} take {needed(method) / 1e9:.2f} GB for method {method}, and "
        f"{free / 1e9:.2f} GB are free on {device}; {remedy}"
    )

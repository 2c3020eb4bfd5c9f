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
What it leaves out: other architectures; several devices; what PEFT has beside LoRA; folders that
are quantized already.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MiniloraError
from .loading import INT8, load_base, pick_device, recipe, resolve
from .memoryfull import full

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .text import Tokenizer

# plain, 4-bit and 8-bit base under an adapter; all weights
METHODS = ("lora", "qlora", "int8", "full")
CODES = ("nf4", "fp4")  # what bitsandbytes packs into 4 bits
BLOCK = 64  # weights that share a scale in bitsandbytes' Linear4bit


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
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def tokenizer(name: str) -> Tokenizer:
    """The tokenizer of the model `name`, with its chat template."""
    from .text import Tokenizer

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

    from .checkpoint import read_config, weight_files

    read_config(folder)  # says in one line what is no Llama, or no model at all
    weight_files(folder)
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
    from .budget.memory import weights
    from .budget.setup import make
    from .machine import available

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


# -------------------------------------------------------------------- bitsandbytes' faults on a CPU


def cure(model: nn.Module) -> nn.Module:
    """Mend every Linear4bit of `model` on a CPU (see the top of this file); returns it."""
    for layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False
        if layer.weight.device.type == "cpu" and layer.in_features % BLOCK:
            _decode_by_ours(layer)
    return model


def four_bit_layers(model: nn.Module) -> list[nn.Module]:
    """bitsandbytes' 4-bit layers in `model`. Known by a name, so that a model without them needs no
    bitsandbytes.
    """
    return [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]


def _decode_by_ours(layer: nn.Module) -> None:
    """Let `layer` compute with the weight as our decoder reads it from the layer's own bytes."""
    from . import bnb_format
    from .qlora import QLinear

    # the same memory: nothing is kept twice
    ours = QLinear(bnb_format.from_tensors(layer.state_dict()), layer.bias)

    def forward(x: torch.Tensor) -> torch.Tensor:
        if layer.weight.device.type != "cpu":  # moved since: there its own kernels are right
            return type(layer).forward(layer, x)
        return ours(x.to(layer.compute_dtype)).to(x.dtype)

    layer.forward = forward  # on this object; PEFT's layer calls it as it calls any other
    layer.decoded_by_ours = True


# ----------------------------------------------------------------------------------------- adapters


def prepare(
    model: nn.Module,
    rank: int = 8,
    alpha: float = 16,
    targets: str | Sequence[str] = "all",
    *,
    dropout: float = 0.0,
    init: str = "kaiming",
    variant: str = "lora",
    checkpointing: bool = False,
) -> nn.Module:
    """Give transformers' model a PEFT adapter that means what `lora.add_lora` means; returns the
    PeftModel.

    Everything else is frozen as it is. The adapter starts from torch's generator exactly as ours
    would. checkpointing: activations are computed again, with gradients at the input, without which
    nothing would train. Raises MiniloraError as add_lora does.
    """
    from .lora.adapters import check_rank
    from .lora.config import AdapterConfig
    from .lora.targets import match_targets, original_modules

    config = AdapterConfig(rank, alpha, targets, dropout, init, variant)
    if init not in ("kaiming", "gaussian"):
        raise MiniloraError(
            f"init {init!r} changes the base; with PEFT choose kaiming or gaussian, or the "
            "backend minilora"
        )
    if config.dora and any(hasattr(layer, "decoded_by_ours") for layer in four_bit_layers(model)):
        raise MiniloraError(
            f"variant {variant!r} needs decoded rows, which bitsandbytes gets wrong on a CPU "
            f"for rows that are no multiple of {BLOCK}; choose lora, or the backend minilora"
        )
    modules, paths = original_modules(model), match_targets(model, config.targets)
    for path in paths:
        check_rank(config.rank, path, modules[path])
    with libraries():
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules="all-linear" if targets == "all" else config.targets,
            lora_dropout=dropout,
            use_rslora=config.rslora,
            use_dora=config.dora,
            bias="none",
            task_type="CAUSAL_LM",
        )
        model.requires_grad_(False)
        with _spare_generators(model):
            adapted = get_peft_model(model, settings)
    for path in paths:
        _start_like_ours(model.get_submodule(path), config)
    if checkpointing:
        recompute(adapted)
    return adapted


@contextlib.contextmanager
def _spare_generators(model: nn.Module) -> Iterator[None]:
    """torch's random generators go on afterwards as if nothing had been drawn inside."""
    import torch

    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _start_like_ours(layer: nn.Module, config: Any) -> None:
    """Overwrite A and B of PEFT's linear `layer` with what a layer of ours would draw now.
    Embeddings keep PEFT's start.
    """
    import torch

    from .lora.initial import start_adapter
    from .lora.layer import LoRALinear

    if "default" not in layer.lora_A:
        return
    ours = LoRALinear(layer.base_layer)
    ours.add("default", config.rank, 1.0)
    start_adapter(ours, "default", config.init)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(ours.lora_A["default"])
        layer.lora_B["default"].weight.copy_(ours.lora_B["default"])


def recompute(model: nn.Module) -> None:
    """Checkpointing for transformers' model, under an adapter or not."""
    from .budget.rehearsal import checkpoint_layers

    with libraries():
        checkpoint_layers(model)
    if not next(model.parameters()).requires_grad:
        model.enable_input_require_grads()


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) as counts of numbers; bitsandbytes packs two 4-bit weights into one byte."""
    packed = {id(layer.weight) for layer in four_bit_layers(model)}
    named = list(model.parameters())
    return sum(p.numel() for p in named if p.requires_grad), sum(
        p.numel() * (2 if id(p) in packed else 1) for p in named
    )


def save_adapter(model: nn.Module, path: str | Path, base_model: str | None = None) -> None:
    """Write the adapter as PEFT does: adapter_config.json and adapter_model.safetensors, both or
    neither.
    """
    from .files import atomic_folder

    model.peft_config["default"].base_model_name_or_path = base_model
    with atomic_folder(path) as folder, libraries():
        # "auto" would ask the hub for the base's vocabulary
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # a form to be filled in


def save_model(model: nn.Module, path: str | Path) -> None:
    """Write transformers' model with all its weights as a folder, whole or not at all."""
    from .files import atomic_folder

    with atomic_folder(path) as folder, libraries():
        model.save_pretrained(folder, max_shard_size="50GB")


def load_adapter(model: nn.Module, path: str | Path, trainable: bool = False) -> nn.Module:
    """transformers' model with the adapter in folder `path`, ours or PEFT's; returns the PeftModel.

    Raises MiniloraError for a folder that is none, for tensors that are missing, left over or of
    another shape, of which PEFT only warns, and for a model that holds the adapter already, by a
    merge.
    """
    from .lora.files import (
        CONFIG,
        WEIGHTS,
        check_state,
        find_folder,
        from_peft,
        read_json,
        read_tensors,
    )
    from .lora.merged import MERGED_KEY, refuse_twice

    folder = find_folder(path, "default")
    config = from_peft(read_json(folder / CONFIG), str(folder / CONFIG))
    state, metadata = read_tensors(folder / WEIGHTS)
    refuse_twice(dict(model.named_modules()), metadata.get(MERGED_KEY), str(folder / WEIGHTS))
    with libraries():
        from peft import (
            LoraConfig,
            get_peft_model,
            get_peft_model_state_dict,
            set_peft_model_state_dict,
        )

        settings = LoraConfig.from_pretrained(folder)
        settings.inference_mode = not trainable
        if config.init not in ("kaiming", "gaussian", "random"):
            raise MiniloraError(
                f"{folder}: init {config.init!r} changes the base; save the adapter with "
                "as_lora=True first"
            )
        settings.init_lora_weights = True
        with _spare_generators(model):
            adapted = get_peft_model(model, settings)
        places = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        check_state(
            state,
            {key: tuple(tensor.shape) for key, tensor in places.items()},
            str(folder / WEIGHTS),
        )
        set_peft_model_state_dict(adapted, state)
    return adapted.train(model.training)


# ------------------------------------------------------------------------------------------ answers


def answering(model: nn.Module) -> nn.Module:
    """`model` of transformers or peft with the `generate` of our Llama, for `scoring.exact_match`
    and for a chat.
    """
    import torch
    from torch import nn

    class Listener:
        """transformers' streamer: hands on one step's tokens, the prompt left out."""

        def __init__(self, on_token: Callable):
            self.on_token, self.prompt_passed = on_token, False

        def put(self, tokens: torch.Tensor) -> None:
            if self.prompt_passed:
                self.on_token(tokens.reshape(-1).tolist())
            self.prompt_passed = True

        def end(self) -> None:
            pass

    class Answering(nn.Module):
        """Holds the model and speaks for it."""

        # an argument: a class stands in a circle, and a model that it knew would stay until a
        # collection
        def __init__(self, inner: nn.Module):
            super().__init__()
            self.inner, self.config = inner, inner.config

        def forward(self, ids, attention_mask=None):
            return self.inner(ids, attention_mask=attention_mask).logits  # (B, T, V)

        @torch.no_grad()
        def generate(
            self,
            ids,
            max_new_tokens,
            temperature=0.0,
            *,
            top_k=None,
            top_p=None,
            attention_mask=None,
            stop=(),
            seed=None,
            on_token=None,
        ):
            """ids (B, T) → (B, T + new), as `sampling.generate`; rows that have stopped go on with
            the stop token.
            """
            stops = [stop] if isinstance(stop, int) else list(stop)
            sampled = (
                {
                    "do_sample": True,
                    "temperature": temperature,
                    "top_k": top_k or 0,
                    "top_p": top_p or 1.0,
                }
                if temperature
                else {"do_sample": False}
            )
            with (
                libraries(),
                torch.random.fork_rng(
                    [ids.device] if ids.device.type == "cuda" else [], enabled=seed is not None
                ),
            ):
                if seed is not None:
                    torch.manual_seed(seed)
                return self.inner.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids)
                    if attention_mask is None
                    else attention_mask,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=stops or None,
                    pad_token_id=stops[0] if stops else 0,
                    use_cache=True,
                    streamer=Listener(on_token) if on_token else None,
                    **sampled,
                )

    return Answering(model).train(model.training)

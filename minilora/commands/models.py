"""From the name a user types to a model in memory: `tiny`, a folder, or a name on the Hub; with its adapter.

What it replaces: `AutoModelForCausalLM.from_pretrained` with its quantization config, `PeftModel.from_pretrained`.
How it works: the name is resolved to a folder; the folder is read; if the adapter's run.json says that it was trained
over a quantized base, the base is quantized in the same way before the adapter goes on. A code book's name means its blocks
(qlora.py), `llm.int8` means rows with the outliers apart (int8.py).
What it leaves out: models other than Llama.
Where numerics differ: nowhere; see llama.py, qlora.py, int8.py, lora/.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import MiniloraError
from ..files import data_folder

INT8 = "llm.int8"  # the name of --method int8's base; `int8` by itself is a code book in blocks
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "special_tokens_map.json", "*.jinja"]


def resolve(name: str) -> Path:
    """The folder that `name` stands for. Raises MiniloraError with the remedy if there is none."""
    if name == "tiny":
        folder = data_folder() / "base"
        if not (folder / "config.json").is_file():
            raise MiniloraError(f"the shipped model is not at {folder}; fetch the repository again, or build it with `minilora pretrain`")
        return folder
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise MiniloraError(f"{name} holds an adapter, not a model; use --model MODEL --adapter {name}")
    if folder.exists():
        return folder
    if name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name):
        raise MiniloraError(f"no model {name!r}; give `tiny`, a folder that exists, or a Hub name like owner/name")
    return _fetch(name)


def _fetch(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise MiniloraError(f"{name!r} is no folder here, and Hub names need huggingface_hub: pip install 'minilora[hub]'") from error
    disable_progress_bars()
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:  # the library raises its own, requests', httpx' and OS errors
        raise MiniloraError(f"cannot fetch {name!r} from the Hub ({_reason(error)}); give a folder that exists, or `tiny`") from error


def _reason(error: BaseException) -> str:
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        return "there is no such repository, or it is private"
    if kind == "GatedRepoError":
        return "its licence must be accepted on its page, and a token set in HF_TOKEN"
    return f"no network and no copy in the cache, {kind}"


def pick_device(name: str | None) -> str:
    """`cuda` where there is one, unless the user says otherwise."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MiniloraError(f"there is no device {name!r}; give cpu or cuda") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise MiniloraError(f"the device {name!r} is not there: torch sees {torch.cuda.device_count()} of its kind; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise MiniloraError(f"the device {name!r} is not supported; give cpu or cuda")
    return name


def positions(folder: Path) -> int:
    """How many tokens the model in `folder` was made for."""
    from ..checkpoint import read_config

    return read_config(folder).max_position_embeddings


def load_base(folder: Path, device: str, quantization: dict | None = None, trained: bool = False):
    """The Llama in `folder` on `device`, quantized if told so.

    Frozen weights are kept in bf16 on a GPU that has it; weights to be trained whole, and everything on a CPU, in fp32.
    """
    import torch

    from ..llama import Llama

    half = device.startswith("cuda") and not trained and torch.cuda.get_device_capability() >= (8, 0)
    model = Llama.from_pretrained(folder, dtype=torch.bfloat16 if half else torch.float32, device=device)
    return quantize_base(model, **quantization) if quantization else model


def recipe(code: str) -> dict:
    """How --code CODE quantizes a base, as run.json keeps it: the arguments of `quantize_base`."""
    return {"code": INT8, "threshold": 6.0} if code == INT8 else {"code": code, "double": True, "block": 64}


def quantize_base(model, code: str, **settings):
    """Quantize the model's linear layers in place, by LLM.int8() or in blocks of a code book; returns it."""
    from ..int8 import quantize_model_int8
    from ..qlora import quantize_model

    return quantize_model_int8(model, **settings).requires_grad_(False) if code == INT8 else quantize_model(model, code, **settings)


def adapter_quantization(adapter: str, code: str | None) -> dict | None:
    """How the base under `adapter` is to be quantized: `code` if given ("none": not at all), else as its run.json says."""
    if code == "none":
        return None
    saved = None
    path = Path(adapter) / "run.json"
    if path.is_file():
        try:
            saved = json.loads(path.read_text(encoding="utf-8")).get("quantization")
        except (OSError, ValueError, AttributeError) as error:
            raise MiniloraError(f"{path} is damaged ({error}); name the base's code with --code nf4 or --code none") from error
    if code is not None:
        return saved if saved and saved.get("code") == code else recipe(code)
    return saved


def load(args):
    """(model, tokenizer) for `--model`, `--adapter`, `--code` and `--device` of generate, evaluate and merge."""
    folder = resolve(args.model)
    adapter = args.adapter
    if adapter is not None and not Path(adapter).is_dir():
        raise MiniloraError(f"no adapter at {adapter}; give the --out folder of a finetune run")
    quantization = adapter_quantization(adapter, args.code) if adapter else None if args.code in (None, "none") else recipe(args.code)

    from .. import lora
    from ..text import Tokenizer

    tokenizer = Tokenizer.from_pretrained(folder)
    model = load_base(folder, pick_device(args.device), quantization)
    if adapter:
        lora.load_adapter(model, adapter)
        lora.use_adapter(model, "default", trainable=False)
    return model.eval(), tokenizer


def stop_ids(model, tokenizer) -> list[int]:
    """What ends an answer: the tokenizer's EOS and whatever the model's configuration names."""
    own = model.config.eos_token_id
    return sorted({tokenizer.eos_id, *(own if isinstance(own, list) else [] if own is None else [own])})


def add_model_arguments(parser) -> None:
    """The options that name a model, the same for each command that loads one."""
    parser.add_argument("--model", default="tiny", help="tiny (the shipped base), a Hugging Face folder, or a Hub name")
    parser.add_argument("--adapter", metavar="DIR", help="the --out folder of a finetune run, or a PEFT adapter")
    parser.add_argument("--code", help=f"quantize the base: nf4, fp4, int8 … in blocks, or {INT8} as --method int8 does; none: do not (default: as the adapter was trained)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")

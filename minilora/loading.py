"""From the name a user types to a model in memory: `tiny`, a folder, or a name on the Hugging Face
hub.

What it replaces: `snapshot_download` and `AutoModelForCausalLM.from_pretrained` with its
quantization config.
How it works: the name is resolved to a folder, which for a hub name is fetched first: config,
safetensors and tokenizer alone, after a look at the free space. The folder is read into our Llama
and quantized by a recipe: a code book's name means its blocks (qlora.py), `llm.int8` means rows
with the outliers apart (int8.py).
What it leaves out: models other than Llama, pickled weights; `hub.py` loads the same folders with
transformers.
Where numerics differ: nowhere; see llama.py, qlora.py, int8.py.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from .errors import MiniloraError
from .files import data_folder

INT8 = "llm.int8"  # the name of --method int8's base; `int8` by itself is a code book in blocks
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WANTED = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "*.jinja",
]


def resolve(name: str) -> Path:
    """The folder that `name` stands for. Raises MiniloraError with the remedy if there is none."""
    if name == "tiny":
        folder = data_folder() / "base"
        if not (folder / "config.json").is_file():
            raise MiniloraError(
                f"the shipped model is not at {folder}; fetch the repository again, or build "
                "it with `minilora pretrain`"
            )
        return folder
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise MiniloraError(
            f"{name} holds an adapter, not a model; use --model MODEL --adapter {name}"
        )
    if folder.exists():
        return folder
    if name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name):
        raise MiniloraError(
            f"no model {name!r}; give `tiny`, a folder that exists, or a Hub name like owner/name"
        )
    return fetch(name)


# ------------------------------------------------------------------------------------------ the hub


def fetch(name: str) -> Path:
    """The folder of the hub's repository `name`, fetched if it is not in the cache.

    Raises MiniloraError with the remedy for a missing or gated repository, no network, and a disk
    that is too small.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise MiniloraError(
            f"{name!r} is no folder here, and Hub names need huggingface_hub: pip install "
            "'minilora[hub]'"
        ) from error
    disable_progress_bars()
    _require_space(name)
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:  # the library raises its own, requests', httpx' and OS errors
        raise MiniloraError(
            f"cannot fetch {name!r} from the Hub ({_reason(error)}); {_remedy(error)}"
        ) from error


def fetch_file(name: str, file: str) -> Path:
    """One file of the hub's data set `name`, fetched if it is not in the cache. Raises
    MiniloraError as `fetch` does.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MiniloraError(
            f"the data set {name!r} lies on the Hub, which needs huggingface_hub: pip install "
            "'minilora[hub]'"
        ) from error
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except Exception as error:  # as in `fetch`
        raise MiniloraError(
            f"cannot fetch {file!r} of the data set {name!r} from the Hub ({_reason(error)}); "
            f"{_remedy(error)}"
        ) from error


def _require_space(name: str) -> None:
    """Raise MiniloraError before the first byte if the repository's files are larger than the disk
    has room for.
    """
    from huggingface_hub import HfApi, constants

    try:
        files = HfApi().model_info(name, files_metadata=True, timeout=10).siblings or []
    except Exception:
        # no network, no such repository: the download says it better, or finds the files in the
        # cache
        return
    cache = Path(constants.HF_HUB_CACHE)
    there = cache / f"models--{name.replace('/', '--')}" / "blobs"
    have = sum(file.stat().st_size for file in there.iterdir()) if there.is_dir() else 0
    need = (
        sum(
            file.size or 0
            for file in files
            if any(fnmatch.fnmatch(file.rfilename, wanted) for wanted in WANTED)
        )
        - have
    )
    disk = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(disk).free
    if need > free:
        raise MiniloraError(
            f"{name} takes {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {disk}; "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised for: the library wraps the system's errors, and the hub's,
    in some of its own.
    """
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


KINDS = {  # by name: the library moves them, and is not imported here
    "RepositoryNotFoundError": "there is no such repository, or it is private",
    "RevisionNotFoundError": "there is no such repository, or it is private",
    "EntryNotFoundError": "it has no such file",
    "RemoteEntryNotFoundError": "it has no such file",
    "GatedRepoError": "its licence must be accepted on its page, and a token set in HF_TOKEN",
    "OfflineModeIsEnabled": "no network as HF_HUB_OFFLINE is set, and no copy in the cache",
}
STATUS = {
    401: "the token in HF_TOKEN is not accepted",
    403: "the token in HF_TOKEN does not allow it",
    429: "the Hub was asked too often; wait a while",
}
NO_SPACE = (28, 122, 27)  # ENOSPC, EDQUOT (a quota), EFBIG (a limit on files)


def _reason(error: BaseException) -> str:
    if _disk_full(error):
        return "no space left on the disk"
    for each in _chain(error):
        if type(each).__name__ in KINDS:
            return KINDS[type(each).__name__]
        status = getattr(getattr(each, "response", None), "status_code", None)
        if status is not None:
            return STATUS.get(status, f"the Hub answers with {status}")
    return f"no network and no copy in the cache, {type(error).__name__}"


def _remedy(error: BaseException) -> str:
    return (
        "make room, or set HF_HOME to a folder on a larger disk"
        if _disk_full(error)
        else "give a folder that exists, or `tiny`"
    )


def _disk_full(error: BaseException) -> bool:
    return any(isinstance(each, OSError) and each.errno in NO_SPACE for each in _chain(error))


# ------------------------------------------------------------------------------- device and weights


def pick_device(name: str | None) -> str:
    """`cuda` where there is one, unless the user says otherwise."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MiniloraError(f"there is no device {name!r}; give cpu or cuda") from error
    if device.type == "cuda" and not (
        torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    ):
        raise MiniloraError(
            f"the device {name!r} is not there: torch sees {torch.cuda.device_count()} of its "
            "kind; use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise MiniloraError(f"the device {name!r} is not supported; give cpu or cuda")
    return name


def packed(folder: Path) -> bool:
    """Does config.json say that the weights are 4-bit codes of bitsandbytes?"""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(
            "quantization_config"
        )
    except (OSError, ValueError, AttributeError):  # the loader says it better
        return False
    return bool(settings) and bool(settings.get("load_in_4bit"))


def load_base(folder: Path, device: str, quantization: dict | None = None, trained: bool = False):
    """The Llama in `folder` on `device`, quantized if told so.

    Frozen weights are kept in bf16 on a GPU that has it; weights to be trained whole, and
    everything on a CPU, in fp32. A folder that is in 4 bits already (see qcheckpoint.py) is read as
    it is. Raises MiniloraError if that one is to be trained whole or quantized again.
    """
    import torch

    from .llama import Llama

    if packed(folder):
        if trained or quantization:
            raise MiniloraError(
                f"{folder} is in 4 bits already; use --code none, or --method lora over it"
            )
        from .qcheckpoint import load_quantized

        return load_quantized(folder, device=device)
    half = (
        device.startswith("cuda") and not trained and torch.cuda.get_device_capability() >= (8, 0)
    )
    model = Llama.from_pretrained(
        folder, dtype=torch.bfloat16 if half else torch.float32, device=device
    )
    return quantize_base(model, **quantization) if quantization else model


def recipe(code: str) -> dict:
    """How --code CODE quantizes a base, as run.json keeps it: the arguments of `quantize_base`."""
    return (
        {"code": INT8, "threshold": 6.0}
        if code == INT8
        else {"code": code, "double": True, "block": 64}
    )


def quantize_base(model, code: str, **settings):
    """Quantize the model's linear layers in place, by LLM.int8() or in blocks of a code book;
    returns it.
    """
    from .int8 import quantize_model_int8
    from .qlora import quantize_model

    return (
        quantize_model_int8(model, **settings).requires_grad_(False)
        if code == INT8
        else quantize_model(model, code, **settings)
    )

"""A model's files from the Hugging Face hub, with each failure told in one line."""

from __future__ import annotations

import fnmatch
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import MiniloraError

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

"""A model's files from the Hugging Face hub, with each failure told in one line.

Only a name that can be none of a folder here is asked of the hub, and that it is asked is said.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import shutil
import sys
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


def hub_name(name: str) -> str:
    """`name`, if it can only be owner/name on the hub. Raises MiniloraError for any other text, and
    where a folder `owner` is here: then a path was mistyped, and nothing is asked of the hub.
    """
    if name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name):
        raise MiniloraError(
            f"no model {name!r}; give `tiny`, a folder that exists, or a Hub name like owner/name"
        )
    path = Path(name)
    if path.exists() or path.parent.exists():
        there = (
            [str(each) for each in path.parent.iterdir() if each.is_dir()]
            if path.parent.is_dir()
            else []
        )
        near = difflib.get_close_matches(str(path), there, 1)
        meant = f"did you mean {near[0]}? Give" if near else "give"
        raise MiniloraError(
            f"no model {name!r}: {path.parent} is here, so it is no Hub name, and holds no such "
            f"folder; {meant} `tiny`, or a folder that exists"
        )
    return name


def fetch(name: str) -> Path:
    """The folder of the hub's repository `name`, fetched if it is not in the cache; standard error
    tells that the hub is asked.

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
    size, silent = _require_space(name)
    if size is not None:
        what = f"fetching {size / 1e6:,.0f} MB of it" if size else "taking its copy in the cache"
        print(
            f"minilora: {name} is no folder here; {what}, as the Hugging Face Hub says",
            file=sys.stderr,
            flush=True,
        )
    try:
        # who did not answer once is not asked again
        return Path(snapshot_download(name, allow_patterns=WANTED, local_files_only=silent))
    except Exception as error:  # the library raises its own, requests', httpx' and OS errors
        raise MiniloraError(
            f"cannot fetch {name!r} from the Hub ({reason(error)}); {_remedy(error)}"
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
            f"cannot fetch {file!r} of the data set {name!r} from the Hub ({reason(error)}); "
            f"{_remedy(error)}"
        ) from error


def _require_space(name: str) -> tuple[int | None, bool]:
    """How many bytes are to be fetched (None: not known), and whether the hub cannot be reached.
    Raises MiniloraError before the first byte if the disk has no room for them.
    """
    from huggingface_hub import HfApi, constants

    try:
        files = HfApi().model_info(name, files_metadata=True, timeout=10).siblings or []
    except Exception as error:
        # an answer, such as that there is no such repository: the download says it better
        answered = any(getattr(each, "response", None) is not None for each in _chain(error))
        return None, not answered and not constants.HF_HUB_OFFLINE
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
    return max(0, need), False


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


def reason(error: BaseException) -> str:
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

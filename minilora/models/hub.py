"""A model of the catalogue from the Hugging Face hub, into the cache.

What it replaces: `hf download --local-dir`.
How it works: the hub is asked for the list of files, for three seconds at most; who does not answer
in that time is not asked again. The library fetches the files one by one into a folder of what is
unfinished, where a broken download goes on. The weights' sha256 is compared with the hub's.
What it leaves out: names that are not in the catalogue (system/fetch.py).
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from ..errors import MiniloraError
from ..system.fetch import WANTED, reason
from .cache import NoAnswer, partial, require_room
from .catalogue import Model
from .progress import late

PATIENCE = 3.0  # seconds
PORTION = 1 << 20


def ask(model: Model) -> Any:
    """What the hub knows of the model. Raises NoAnswer if it does not answer in time, or says
    no.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise NoAnswer("the Hub: huggingface_hub is not installed") from error
    try:
        return HfApi().model_info(model.hub, files_metadata=True, timeout=PATIENCE)
    except Exception as error:  # the library raises its own, requests', httpx' and OS errors
        raise NoAnswer(_why(error)) from error


def fetch(model: Model, info: Any) -> Path:
    """All files of the model, in a folder of what is unfinished. Raises NoAnswer if the hub fails
    on the way, and MiniloraError for a disk that is too small and files with other bytes.
    """
    from huggingface_hub import snapshot_download

    need = sum(each.size or 0 for each in info.siblings if Path(each.rfilename).match("*.saf*"))
    require_room(model.name, need or model.bytes)
    folder = partial(model.name) / "hub"
    try:
        snapshot_download(
            model.hub,
            revision=info.sha,
            local_dir=folder,
            allow_patterns=WANTED,
            tqdm_class=late(),
        )
    except Exception as error:  # as in `ask`
        raise NoAnswer(_why(error)) from error
    for each in info.siblings:
        file = folder / each.rfilename
        if each.lfs is not None and file.is_file():
            _require_sha(file, each.lfs.sha256)
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # what the library needs to go on
    return folder


def _why(error: BaseException) -> str:
    return "the Hub: " + reason(error).replace(" and no copy in the cache", "")


def _require_sha(file: Path, wanted: str) -> None:
    total = hashlib.sha256()
    with open(file, "rb") as data:
        while part := data.read(PORTION):
            total.update(part)
    if total.hexdigest() != wanted:
        file.unlink()
        raise MiniloraError(
            f"{file.name} came with other bytes than the Hub has (sha256 {total.hexdigest()[:12]}…,"
            f" not {wanted[:12]}…); it is removed: try again"
        )

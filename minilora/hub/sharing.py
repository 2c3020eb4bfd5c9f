"""An adapter on the hub, for others: only where its owner names the place, and only the files of
the adapter.

What it replaces: `push_to_hub`, which creates a public repository by default and takes along
whatever the folder holds.
How it works: `share(folder, None)` does nothing and says so. With a name, the two files of the
adapter and a card of a few lines go up, into a private repository unless told otherwise; run.json,
states and curves stay. A card or config that would name the shipped model or a folder of this
machine is refused before anything is sent, and so is a repository that is there already and public.
What it leaves out: logging in (`hf auth login`, or HF_TOKEN); pictures and scores in the card.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import MiniloraError
from ..lora.files import CONFIG, WEIGHTS
from ..system.fetch import HUB_NAME

CARD = """---
base_model: {base}
library_name: peft
---

A LoRA adapter of rank {rank} for {base}. Load it with \
`peft.PeftModel.from_pretrained`, over the base in the precision that it was trained with.
"""


def share(folder: str | os.PathLike, repository: str | None = None, private: bool = True) -> str:
    """Upload the adapter in `folder` to `repository` ("owner/name") and return a line that says
    where it is; without a name, send nothing.

    Raises MiniloraError for a folder without an adapter, a base that is not on the hub, a public
    repository where a private one is wanted, and what the hub refuses.
    """
    if not repository:
        return "no repository is named, so nothing has left this machine"
    folder = Path(folder)
    base, rank = _about(folder)
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError as error:
        raise MiniloraError("sharing needs huggingface_hub: pip install 'minilora[hub]'") from error
    files = {
        "README.md": CARD.format(base=base, rank=rank).encode(),
        **{name: str(folder / name) for name in (CONFIG, WEIGHTS)},
    }
    added = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
        for name, content in files.items()
    ]
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        if (
            private and api.model_info(repository).private is not True
        ):  # one that was there already stays what it was
            raise MiniloraError(
                f"{repository} is there already and public; name another repository, or share "
                "with private=False"
            )
        api.create_commit(
            repository, added, commit_message=f"LoRA adapter of rank {rank} for {base}"
        )
    except MiniloraError:
        raise
    except Exception as error:  # the library raises its own, its client's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MiniloraError(
            f"{repository!r} cannot be written ({reason}); log in with `hf auth login`, and "
            "name a repository of your own"
        ) from error
    return f"{', '.join(files)} are in {'private' if private else 'public'} repository {repository}"


def _about(folder: Path) -> tuple[str, int]:
    """(base, rank) from the adapter's config."""
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise MiniloraError(f"{folder} holds no adapter; give the folder that save_adapter wrote")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base or not HUB_NAME.fullmatch(base) or Path(base).exists():
        raise MiniloraError(
            f"{CONFIG} names the base {base!r}, which nobody else can find; save the adapter "
            'with base_model="owner/name"'
        )
    return base, config["r"]

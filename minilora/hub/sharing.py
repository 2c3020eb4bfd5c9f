"""An adapter on the hub, for others: only where its owner names the place, and only the files of
the adapter.

What it replaces: `push_to_hub`, which creates a public repository by default and takes along
whatever the folder holds.
How it works: `share(folder, None)` does nothing and says so. With a name, the two files of the
adapter and a card of a few lines go up, into a private repository unless told otherwise; run.json,
states and curves stay. Of the config the fields that make the adapter go, and no other that the
file may hold. A card or config that would name the shipped model or a folder of this machine is
refused before anything is sent, and so are a link in the place of a file, weights whose header
holds what no adapter needs, and a repository that is there already and public.
What it leaves out: logging in (`hf auth login`, or HF_TOKEN); pictures and scores in the card.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from ..errors import MiniloraError
from ..lora.files import CONFIG, WEIGHTS
from ..lora.peft_config import from_peft
from ..system.fetch import HUB_NAME
from ..system.files import kind_of
from ..system.json_files import read_json

# of adapter_config.json; what else a file may hold, such as notes of another program, stays here
FIELDS = (
    "peft_type task_type base_model_name_or_path inference_mode r lora_alpha lora_dropout "
    "target_modules modules_to_save exclude_modules layers_to_transform layers_pattern "
    "rank_pattern alpha_pattern init_lora_weights loftq_config use_rslora use_dora bias "
    "fan_in_fan_out ensure_weight_tying"
).split()
METADATA = re.compile("format|minilora_[a-z_]+")  # of the weights' header

CARD = """---
base_model: {base}
library_name: peft
---

A LoRA adapter of rank {rank} for {base}. Load it with \
`peft.PeftModel.from_pretrained`, over the base in the precision that it was trained with.
"""


def share(folder: str | os.PathLike, repository: str | None = None, private: bool = True) -> str:
    """Upload the adapter in `folder` to `repository` ("owner/name") and return a line that says
    where it is, and which fields stayed here; without a name, send nothing.

    Raises MiniloraError for a folder without an adapter, a base that is not on the hub, a public
    repository where a private one is wanted, and what the hub refuses.
    """
    if not repository:
        return "no repository is named, so nothing has left this machine"
    if not HUB_NAME.fullmatch(repository):
        raise MiniloraError(f"{repository!r} is no repository; give owner/name")
    folder = Path(folder)
    config = _about(folder)
    base, rank = config["base_model_name_or_path"], config["r"]
    sent = {name: value for name, value in config.items() if name in FIELDS}
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError as error:
        raise MiniloraError("sharing needs huggingface_hub: pip install 'minilora[hub]'") from error
    files = {
        "README.md": CARD.format(base=base, rank=rank).encode(),
        CONFIG: (json.dumps(sent, indent=2, sort_keys=True) + "\n").encode(),
        WEIGHTS: str(folder / WEIGHTS),
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
    stayed = ", ".join(sorted(set(config) - set(sent)))
    left = f"; {stayed} of {CONFIG} stayed here" if stayed else ""
    place = f"{'private' if private else 'public'} repository {repository}"
    return f"{', '.join(files)} are in {place}{left}"


def _about(folder: Path) -> dict:
    """The adapter's config. Raises MiniloraError for what nobody else could use, and what is not
    the adapter's alone.
    """
    for name in (CONFIG, WEIGHTS):
        if (kind := kind_of(folder / name)) is None:
            raise MiniloraError(
                f"{folder} holds no adapter; give the folder that save_adapter wrote"
            )
        if kind != "a file":
            raise MiniloraError(
                f"{folder / name} is {kind}, which might lead anywhere; put the file itself there"
            )
    config = read_json(folder / CONFIG)
    from_peft(config, str(folder / CONFIG))
    base = config.get("base_model_name_or_path")
    if not base or not HUB_NAME.fullmatch(base) or Path(base).exists():
        raise MiniloraError(
            f"{CONFIG} names the base {base!r}, which nobody else can find; save the adapter "
            'with base_model="owner/name"'
        )
    for key in sorted(_metadata(folder / WEIGHTS)):
        if not METADATA.fullmatch(key):
            raise MiniloraError(
                f"{folder / WEIGHTS} holds {key!r} in its header, which is not the adapter's; save "
                "the adapter again with minilora or PEFT"
            )
    return {"r": 8, **config}


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise MiniloraError(f"{path} is damaged or cut short ({error}); save it again") from error

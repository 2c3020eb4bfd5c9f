"""`minilora finetune`: data and a model in, an adapter (or all weights) out.

What it replaces: TRL's `sft.py` with PEFT and bitsandbytes flags; `--backend peft` runs these
libraries (see peft_backend.py) in our own loop.
How it works: settings are settled and everything is read before anything is written; then the model
is loaded, quantized for qlora and int8, given its adapter, and trained by train.fit into the run's
folder. `--resume` takes the settings from run.json, so `minilora finetune --out DIR --resume` is
enough, and refuses what would make it another run.
What it leaves out: packing (examples stay whole), several datasets at once.
Where numerics differ: nowhere; see train.py, lora/, qlora.py, int8.py.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import time
from pathlib import Path

from ..errors import MemoryFull, MiniloraError
from ..qlora import base
from ..recipes import finetune_peft, load, memory_warning

# Every default, in one place. `lr` is by method: an adapter stands more than all weights at once.
DEFAULTS = {
    "model": "tiny",
    "method": "qlora",
    "rank": 8,
    "alpha": 16.0,
    "targets": "all",
    "variant": "lora",
    "init": "kaiming",
    "dropout": 0.0,
    "code": "nf4",
    "steps": 300,
    "batch": 16,
    "accumulate": 1,
    "seq": None,  # as long as the model allows, at most MAX_SEQ
    "lr": None,  # LEARNING_RATE of the method
    "lora_plus": None,
    "warmup": None,
    "weight_decay": 0.0,
    "clip": 1.0,
    "seed": 0,
    "checkpointing": False,
    "precision": "auto",
    "eval_every": 0,
    "save_every": 50,
    "device": None,
    "backend": "minilora",
}

LEARNING_RATE = {"lora": 3e-3, "qlora": 3e-3, "int8": 3e-3, "full": 1e-3}

MAX_SEQ = 512

# mean nothing for --method full
ADAPTER_ONLY = ("rank", "alpha", "targets", "variant", "init", "dropout", "lora_plus")

MAY_CHANGE = ("save_every", "checkpointing")  # on --resume: they decide no number

# may change on --resume if their product stays: each step then takes the same rows
TOGETHER = ("batch", "accumulate")


# ----------------------------------------------------------------------------------------- settings


def settle(args, saved: dict | None) -> dict:
    """One dict of settings: what was typed, else the saved run's (on --resume), else DEFAULTS."""
    # a run from before a setting was there had its default
    began_with = {**DEFAULTS, "data": None, **(saved or {})}
    typed = {
        name: getattr(args, name) for name in began_with if getattr(args, name, None) is not None
    }
    settings = {**began_with, **typed}
    if saved is not None:
        same_rows = (
            settings["batch"] * settings["accumulate"]
            == began_with["batch"] * began_with["accumulate"]
        )
        for name, value in typed.items():
            if (
                value != began_with[name]
                and name not in MAY_CHANGE
                and not (name in TOGETHER and same_rows)
            ):
                flag = "--" + name.replace("_", "-")
                product = (
                    (
                        ", give --batch and --accumulate whose product is "
                        f"{began_with['batch'] * began_with['accumulate']}"
                    )
                    if name in TOGETHER
                    else ""
                )
                raise MiniloraError(
                    f"{flag} {value} is not what this run began with ({began_with[name]}); leave it "
                    f"out{product}, or begin anew with another --out"
                )
    if settings["data"] is None:
        raise MiniloraError(
            "--data is missing; give a .jsonl file, or a folder such as data/tasks/extract"
        )
    if settings["method"] == "full":
        for name in ADAPTER_ONLY:
            if name in typed and saved is None:
                raise MiniloraError(
                    f"--{name.replace('_', '-')} says nothing for --method full, which has no "
                    "adapter; leave it out, or choose lora, qlora or int8"
                )
    if settings["method"] != "qlora" and "code" in typed and saved is None:
        raise MiniloraError(
            f"--code {typed['code']} says nothing for --method {settings['method']}; leave it "
            "out, or choose --method qlora"
        )
    if settings["init"].startswith("pissa_niter") and "dora" in settings["variant"]:
        raise MiniloraError(
            f"--init {settings['init']} splits at random and --variant {settings['variant']} "
            "cannot be saved over that; choose --init pissa"
        )
    if settings["code"] == base.INT8:
        raise MiniloraError(
            f"--code {base.INT8} is no code book for qlora's blocks; leave it out and "
            "choose --method int8"
        )
    if settings["backend"] == "peft":
        finetune_peft.refuse(settings)
    if settings["lr"] is None:
        settings["lr"] = LEARNING_RATE[settings["method"]]
    return settings


def parse_targets(text: str) -> str | list[str]:
    """ "all" and regular expressions as they are; names, with commas between them, as a list."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if text.strip() == "all" or not names or not all(re.fullmatch(r"\w+", name) for name in names):
        return text.strip()
    return names


def train_config(settings: dict):
    """The part of the settings that train.fit takes."""
    from ..train.config import TrainConfig

    same = (
        "steps",
        "accumulate",
        "lr",
        "warmup",
        "weight_decay",
        "clip",
        "seed",
        "lora_plus",
        "checkpointing",
        "precision",
        "eval_every",
        "save_every",
    )
    return TrainConfig(batch_size=settings["batch"], **{name: settings[name] for name in same})


def look_at_out(run, resume: bool, overwrite: bool) -> dict | None:
    """The saved settings on --resume. Raises MiniloraError if a run would be lost, or the folder
    cannot be written.
    """
    saved = run.saved_about()
    if resume:
        return (saved or {}).get("settings")
    if saved is not None and not overwrite:
        raise MiniloraError(
            f"{run.path} holds a run already; add --resume to go on, --overwrite to begin "
            "anew, or choose another --out"
        )
    return None


def probe(out: Path) -> None:
    """Raise MiniloraError now, and not after an hour, if nothing can be written at `out`."""
    there = out
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        if not there.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise MiniloraError(
            f"cannot write {out}: {there}: {error.strerror}; choose another --out"
        ) from error


# --------------------------------------------------------------------------------------------- data


def read_rows(settings: dict, tokenizer, positions: int) -> tuple[list, list]:
    """Encoded training and validation rows; a single file has no validation rows."""
    from ..text.examples import read_split
    from ..text.rows import encode_rows

    seq = settings["seq"] or min(MAX_SEQ, positions)
    if not 2 <= seq <= positions:
        raise MiniloraError(
            f"--seq is {seq}; the model has {positions} positions, give 2 to {positions}"
        )
    data = Path(settings["data"])
    splits = ["train", "valid"] if data.is_dir() and (data / "valid.jsonl").is_file() else ["train"]
    found = []
    for split in splits:
        examples = read_split(data, split)
        rows = encode_rows(examples, tokenizer)
        long = sum(len(ids) > seq for ids, _ in rows)
        if long:
            rows = encode_rows(examples, tokenizer, seq)
            print(
                f"{data} {split}: {long:,} of {len(rows):,} rows are longer than {seq} tokens "
                "and lose the start of their prompt, or the end of their text"
            )
        found.append(rows)
    return found[0], found[1] if len(found) > 1 else []


def fingerprint_folder(folder: Path) -> str:
    """Of a model's weights: whole files up to 256 MB together, else sizes and ends, for the rest
    would take minutes.
    """
    files = sorted([*folder.glob("*.safetensors"), folder / "config.json"])
    whole = sum(file.stat().st_size for file in files) < 256e6
    total = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name} {size}".encode())
        with open(file, "rb") as handle:
            if whole:
                total.update(handle.read())
            else:
                total.update(handle.read(1 << 20))
                handle.seek(-min(size, 1 << 20), 2)
                total.update(handle.read())
    return total.hexdigest()


def versions(settings: dict) -> dict:
    import platform

    import torch

    from .. import __version__

    theirs = finetune_peft.versions() if settings["backend"] == "peft" else {}
    return {
        "minilora": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **theirs,
    }


# -------------------------------------------------------------------------------------------- model


def build(settings: dict, folder: Path, device: str):
    """The model, ready to be trained: loaded, quantized for qlora and int8, with its adapter;
    returns (model, quantization).
    """
    if settings["backend"] == "peft":
        return finetune_peft.build(settings, folder, device, parse_targets(settings["targets"]))
    import torch

    from .. import lora

    method = settings["method"]
    code = {"qlora": settings["code"], "int8": base.INT8}.get(method)
    quantization = base.recipe(code) if code else None
    # LoftQ repairs W − Q, so W is needed once more
    keep = settings["init"].startswith("loftq") and quantization is not None
    model = base.load_base(folder, device, None if keep else quantization, trained=method == "full")
    weights = lora.linear_weights(model) if keep else None
    if keep:
        base.quantize_base(model, **quantization)
    torch.manual_seed(settings["seed"])
    if method == "full":
        model.requires_grad_(True)
    else:
        names = ("rank", "alpha", "dropout", "init", "variant")
        config = lora.AdapterConfig(
            targets=parse_targets(settings["targets"]), **{name: settings[name] for name in names}
        )
        lora.add_adapter(model, config, weights=weights)
    return model, quantization


def count(model, settings: dict) -> tuple[int, int]:
    """(trainable, all) as counts of numbers, packed ones as what they stand for."""
    if settings["backend"] == "peft":
        from ..hub.adapters import count_parameters
    else:
        from ..lora.adapters import count_parameters
    return count_parameters(model)


def export(model, settings: dict, folder: Path, out: Path) -> str:
    """Write what was trained into the run's folder; returns the name of the weights' file."""
    if settings["backend"] == "peft":
        return finetune_peft.export(model, settings, folder, out)
    if settings["method"] == "full":
        from .merge import copy_tokenizer

        model.save_pretrained(out)
        copy_tokenizer(folder, out)
        return "model.safetensors"
    from .. import lora

    lora.save_adapter(
        model, out, base_model=settings["model"] if settings["model"] != "tiny" else str(folder)
    )
    return "adapter_model.safetensors"


class Reporter:
    """Lines instead of a progress bar where nobody watches a terminal: ten of them."""

    def __init__(self, steps: int):
        self.steps, self.every = steps, max(1, steps // 10)
        self.silent = sys.stderr.isatty()

    def __call__(self, step: int, loss: float) -> None:
        if not self.silent and (step % self.every == 0 or step == self.steps):
            print(f"step {step}/{self.steps} loss {loss:.4f}", flush=True)


def summary(history, out: Path, weights: str, seconds: float) -> None:
    valid = history.valid_losses
    if valid:
        print(
            f"validation loss {valid[0][1]:.4f} at step {valid[0][0]}, {valid[-1][1]:.4f} at "
            f"step {valid[-1][0]}"
        )
    size = (out / weights).stat().st_size if (out / weights).is_file() else 0
    print(
        f"{out}: {weights} ({size / 1e6:.2f} MB), metrics.jsonl, loss.png, run.json in "
        f"{seconds:.0f} s"
    )


def _train(settings: dict, config, run_folder, args, began: float) -> int:
    from ..system.memory import named
    from ..system.precision import pick_device
    from ..text.tokenizer import Tokenizer
    from ..train.loop import fit
    from ..train.run_folder import fingerprint

    folder = base.resolve(settings["model"])
    device = pick_device(settings["device"])
    tokenizer = Tokenizer.from_pretrained(folder)
    rows, valid = read_rows(settings, tokenizer, load.positions(folder))
    memory_warning.warn(settings, folder, device, rows)
    with named(
        f"while {settings['model']} was loaded for --method {settings['method']}",
        memory_warning.WHEN_LOADING,
    ):
        model, quantization = build(settings, folder, device)
    trainable, total = count(model, settings)
    marks = {"data": fingerprint(rows), "model": fingerprint_folder(folder)}
    if args.resume:
        _same_run(run_folder.saved_about(), marks, settings)
    run_folder.about = {
        "settings": settings,
        "quantization": quantization,
        "marks": marks,
        "versions": versions(settings),
        "parameters": {"trainable": trainable, "total": total},
    }
    print(
        f"{settings['method']} on {settings['model']}: {trainable:,} of {total:,} parameters "
        f"learn ({100 * trainable / total:.2f} %)"
    )
    print(
        f"{settings['data']}: {len(rows):,} rows to learn from, {len(valid):,} to validate, "
        f"the longest {max(len(r[0]) for r in rows)} tokens",
        flush=True,
    )
    watched = sys.stderr.isatty()
    try:
        history = fit(
            model,
            rows,
            config,
            valid=valid,
            out=run_folder,
            resume=args.resume,
            progress=watched,
            on_step=Reporter(config.steps),
        )
    except MemoryFull as error:
        raise MiniloraError(
            f"{error.told}; {memory_warning.after_full(settings, folder, device, rows, run_folder)}"
        ) from None
    with named(
        "while the result was written",
        f"go on by minilora finetune --out {run_folder.path} --resume",
    ):
        weights = export(model, settings, folder, run_folder.path)
    run_folder.draw(history.records)
    seconds = time.perf_counter() - began
    run_folder.about["result"] = {
        "steps": history.steps,
        "valid_losses": history.valid_losses,
        "seconds": round(seconds, 1),
    }
    run_folder.write_about()
    summary(history, run_folder.path, weights, seconds)
    return 0


def _same_run(saved: dict | None, marks: dict, settings: dict) -> None:
    """Raise MiniloraError if data or base changed since the run began: going on would be neither
    run.
    """
    for name, mark in ((saved or {}).get("marks") or {}).items():
        if marks.get(name) != mark:
            raise MiniloraError(
                f"{settings[name]} has changed since this run began; put the old {name} back, "
                "or begin anew with another --out"
            )

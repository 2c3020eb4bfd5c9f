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
from . import foresee, models, peft_backend

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


def add_arguments(parser) -> None:
    def add(flag, text, **more):
        default = DEFAULTS.get(flag.strip("-").replace("-", "_"))
        parser.add_argument(
            flag,
            help=text + (f" (default {default})" if default not in (None, False) else ""),
            **more,
        )

    add("--model", "tiny (the shipped base), a Hugging Face folder, or a Hub name")
    add("--data", "a .jsonl file, or a folder with train.jsonl and valid.jsonl")
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="the run's folder: adapter or model, metrics.jsonl, loss.png, run.json",
    )
    methods = (
        "lora: adapter over the model as it is; qlora: over a 4-bit copy; int8: over an 8-bit "
        "copy, LLM.int8(); full: all weights"
    )
    add("--method", methods, choices=list(LEARNING_RATE))
    add("--rank", "columns of B, rows of A", type=int)
    add("--alpha", "the adapter's output is scaled by alpha / rank", type=float)
    add("--targets", "all, names such as q_proj,v_proj, or a regular expression for whole paths")
    add("--variant", "lora, rslora or dora", choices=["lora", "rslora", "dora"])
    add("--init", "how A and B start: kaiming, gaussian, loftq, or (method lora alone) pissa")
    add("--dropout", "on the adapter's input", type=float)
    add("--code", "qlora's number format for the base")
    add("--steps", "updates", type=int)
    add("--batch", "rows at once", type=int)
    add("--accumulate", "such batches per update", type=int)
    add(
        "--seq",
        f"longest row in tokens (default: the model's positions, at most {MAX_SEQ})",
        type=int,
    )
    add(
        "--lr",
        "highest learning rate (default "
        + ", ".join(f"{m} {v:g}" for m, v in LEARNING_RATE.items())
        + ")",
        type=float,
    )
    add(
        "--warmup",
        "steps of rising learning rate (default: a twentieth of the run, at most 100)",
        type=int,
    )
    add(
        "--lora-plus",
        "B learns at RATIO times the rate of A, such as 16 (default: at the same)",
        type=float,
        metavar="RATIO",
    )
    add("--weight-decay", "AdamW's", type=float)
    add("--clip", "largest gradient norm, 0: none", type=float)
    add("--seed", "of the adapter's start, the order of the data and dropout", type=int)
    add(
        "--checkpointing",
        "compute activations again in backward: less memory, a third more time",
        action="store_true",
        default=None,
    )
    halves = (
        "auto: bf16 on a GPU that has it, fp16 with loss scaling on an older one such as the T4, "
        "fp32 on a processor"
    )
    add("--precision", halves, choices=["auto", "fp32", "bf16", "fp16"])
    add("--eval-every", "steps between validations, 0: at start and end only", type=int)
    add("--save-every", "steps between saved states", type=int)
    add("--device", "cpu or cuda (default: cuda where there is one)")
    add(
        "--backend",
        "minilora: our own Llama, adapters and quantization; peft: transformers, peft and "
        "bitsandbytes",
        choices=["minilora", "peft"],
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last good state in --out, with its settings",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="begin anew where --out holds a run already"
    )


# ----------------------------------------------------------------------------------------- settings


def settle(args, saved: dict | None) -> dict:
    """One dict of settings: what was typed, else the saved run's (on --resume), else DEFAULTS."""
    # a run from before a setting was there had its default
    base = {**DEFAULTS, "data": None, **(saved or {})}
    typed = {name: getattr(args, name) for name in base if getattr(args, name, None) is not None}
    settings = {**base, **typed}
    if saved is not None:
        same_rows = settings["batch"] * settings["accumulate"] == base["batch"] * base["accumulate"]
        for name, value in typed.items():
            if (
                value != base[name]
                and name not in MAY_CHANGE
                and not (name in TOGETHER and same_rows)
            ):
                flag = "--" + name.replace("_", "-")
                product = (
                    (
                        ", give --batch and --accumulate whose product is "
                        f"{base['batch'] * base['accumulate']}"
                    )
                    if name in TOGETHER
                    else ""
                )
                raise MiniloraError(
                    f"{flag} {value} is not what this run began with ({base[name]}); leave it "
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
    if settings["code"] == models.INT8:
        raise MiniloraError(
            f"--code {models.INT8} is no code book for qlora's blocks; leave it out and "
            "choose --method int8"
        )
    if settings["backend"] == "peft":
        peft_backend.refuse(settings)
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
    from ..train import TrainConfig

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
    from ..text import encode_rows, read_split

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

    theirs = peft_backend.versions() if settings["backend"] == "peft" else {}
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
        return peft_backend.build(settings, folder, device, parse_targets(settings["targets"]))
    import torch

    from .. import lora

    method = settings["method"]
    code = {"qlora": settings["code"], "int8": models.INT8}.get(method)
    quantization = models.recipe(code) if code else None
    # LoftQ repairs W − Q, so W is needed once more
    keep = settings["init"].startswith("loftq") and quantization is not None
    model = models.load_base(
        folder, device, None if keep else quantization, trained=method == "full"
    )
    weights = lora.linear_weights(model) if keep else None
    if keep:
        models.quantize_base(model, **quantization)
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
        from ..hub import count_parameters
    else:
        from ..lora import count_parameters
    return count_parameters(model)


def export(model, settings: dict, folder: Path, out: Path) -> str:
    """Write what was trained into the run's folder; returns the name of the weights' file."""
    if settings["backend"] == "peft":
        return peft_backend.export(model, settings, folder, out)
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


def run(args) -> int:
    from ..cli import Interrupted
    from ..runs import RunFolder  # torch loads here

    began = time.perf_counter()
    out = Path(args.out)
    probe(out)
    folder_of_run = RunFolder(out, say=print)
    saved = look_at_out(folder_of_run, args.resume, args.overwrite)
    settings = settle(args, saved)
    config = train_config(settings)
    try:
        return _train(settings, config, folder_of_run, args, began)
    except KeyboardInterrupt as error:
        if folder_of_run.found():
            raise Interrupted(
                f"interrupted; go on with: minilora finetune --out {out} --resume"
            ) from error
        raise Interrupted("interrupted before the first step was done; nothing is lost") from error


def _train(settings: dict, config, run_folder, args, began: float) -> int:
    from ..memoryfull import named
    from ..runs import fingerprint
    from ..text import Tokenizer
    from ..train import fit

    folder = models.resolve(settings["model"])
    device = models.pick_device(settings["device"])
    tokenizer = Tokenizer.from_pretrained(folder)
    rows, valid = read_rows(settings, tokenizer, models.positions(folder))
    foresee.warn(settings, folder, device, rows)
    with named(
        f"while {settings['model']} was loaded for --method {settings['method']}",
        foresee.WHEN_LOADING,
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
            f"{error.told}; {foresee.after_full(settings, folder, device, rows, run_folder)}"
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

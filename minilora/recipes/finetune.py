"""`minilora finetune` without its parser: data and a model in, an adapter (or all weights) out.

    recipes.finetune.run(Settings(data="extract", steps=60), "runs/extract")

What it replaces: TRL's `sft.py` with PEFT and bitsandbytes flags; backend="peft" runs these
libraries (see finetune_peft.py) in our own loop.
How it works: everything is read and refused before anything is written; then the model is loaded,
quantized for qlora and int8, given its adapter, and trained by train.fit into the run's folder.
`resume` takes the settings from run.json, and refuses what would make it another run.
What it leaves out: packing (examples stay whole), several datasets at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MemoryFull, MiniloraError
from ..qlora import base
from ..system.outputs import require_folder
from . import finetune_peft, load, memory_told, memory_warning
from .settings import MAX_SEQ, Settings, resumed, settle

if TYPE_CHECKING:
    from ..text.rows import Row
    from ..text.tokenizer import Tokenizer
    from ..train.loop import History
    from ..train.run_folder import RunFolder

Say = Callable[[str], object]


def tell(line: str) -> None:
    """Print at once: who reads a run's lines from a pipe or a file wants to see it go on."""
    print(line, flush=True)


@dataclass(frozen=True)
class Result:
    """What a run leaves: its folder, the file of what was trained, and how it went."""

    out: Path
    weights: Path
    history: History
    trainable: int  # numbers that learned, of
    total: int
    seconds: float
    memory: dict[str, int] | None = None  # bytes of the process, "predicted" and "measured"

    def told(self) -> list[str]:
        """The run's end in one or two lines."""
        lines, valid = [], self.history.valid_losses
        if valid:
            lines.append(
                f"validation loss {valid[0][1]:.4f} at step {valid[0][0]}, {valid[-1][1]:.4f} at "
                f"step {valid[-1][0]}"
            )
        size = self.weights.stat().st_size if self.weights.is_file() else 0
        lines.append(
            f"{self.out}: {self.weights.name} ({size / 1e6:.2f} MB), metrics.jsonl, loss.png, "
            f"run.json in {self.seconds:.0f} s"
        )
        return lines + ([memory_told.line(self.memory)] if self.memory else [])


# ---------------------------------------------------------------------------------------- the runs


def run(
    settings: Settings,
    out: str | os.PathLike,
    *,
    overwrite: bool = False,
    say: Say = tell,
    watched: bool | None = None,
) -> Result:
    """Train by `settings` into the folder `out`. Raises MiniloraError for what cannot be, before
    anything is written.

    say: gets what is worth telling while it runs. watched: whether somebody sees a progress bar
    (None: where standard error is a terminal).
    """
    folder = _folder(require_folder(out, read=_read_by(settings)), say)
    with folder.alone():
        if not overwrite and folder.saved_about() is not None:
            raise MiniloraError(
                f"{folder.path} holds a run already; add --resume to go on, --overwrite to begin "
                "anew, or choose another --out"
            )
        folder.require_own(_results(settings), anew=overwrite)
        if not overwrite and folder.found():
            raise MiniloraError(
                f"{folder.path} holds the states of a run without its run.json; put that back, add "
                "--overwrite to begin anew, or choose another --out"
            )
        return _train(settings, folder, False, say, watched)


def resume(
    out: str | os.PathLike,
    given: Mapping[str, Any] | None = None,
    *,
    say: Say = tell,
    watched: bool | None = None,
) -> Result:
    """Go on with the run in `out` from its last good state; where there is none, begin it with what
    is `given`. Raises MiniloraError for a setting that would make it another run.
    """
    folder = _folder(require_folder(out), say)
    with folder.alone():
        settings = _goes_on(folder, given or {})
        require_folder(folder.path, read=_read_by(settings))
        folder.require_own(_results(settings))
        return _train(settings, folder, True, say, watched)


def _goes_on(folder: RunFolder, given: Mapping[str, Any]) -> Settings:
    """The settings of the run in the folder, or of the one that begins there."""
    about = folder.saved_about()
    if about is not None:
        return resumed(about["settings"], given, folder.path / "run.json")
    if given.get("data") is None:
        raise MiniloraError(
            f"{folder.path} holds no run to go on with; give the folder of one, or --data to begin "
            "one"
        )
    return settle(given)


def _folder(out: Path, say: Say) -> RunFolder:
    from ..train.run_folder import RunFolder  # torch loads here

    return RunFolder(out, say=say)


def _read_by(settings: Settings) -> list[tuple[str, Path]]:
    """What a run reads: nothing is written there."""
    read = [("--model", load.place(settings.model))]
    if settings.data is not None:
        read.append(("--data", load.find_data(settings.data, say=lambda line: None)))
    return read


def _results(settings: Settings) -> tuple[str, ...]:
    """Patterns of the names of what a run leaves beside its run.json, states and metrics."""
    from ..train.made import ADAPTER, MODEL, PICTURE

    return (PICTURE, *(ADAPTER if settings.adapts else MODEL))


def _train(
    settings: Settings, folder: RunFolder, resuming: bool, say: Say, watched: bool | None
) -> Result:
    from ..system.memory import named
    from ..system.precision import pick_device
    from ..text import ends
    from ..text.tokenizer import Tokenizer
    from ..train.divergence import unwarned
    from ..train.loop import fit
    from ..train.run_folder import fingerprint
    from ..train.run_json import identity
    from . import row_lines, untrained

    began = time.perf_counter()
    watched = sys.stderr.isatty() if watched is None else watched
    if settings.backend == "peft":
        finetune_peft.refuse(settings)
    config, source = settings.train_config(), base.resolve(settings.model)
    device = pick_device(settings.device)
    tokenizer = Tokenizer.from_pretrained(source)
    rows, valid = read_rows(settings, tokenizer, load.positions(source), say)
    foreseen = _look_ahead(settings, source, device, rows, say)
    with named(
        f"while {settings.model} was loaded for --method {settings.method}",
        memory_warning.WHEN_LOADING,
    ):
        model, quantization = build(settings, source, device)
    ends.require_ids(model, tokenizer)
    ends.tell_end(model, tokenizer)
    untrained.warn(model, tokenizer, rows, settings.model, settings.data)
    trainable, total = count(model, settings)
    marks = {"data": fingerprint(rows), "model": fingerprint_folder(source)}
    folder.identity = identity(Settings, settings.to_json(), marks)
    if resuming:
        _require_same(folder.saved_about() or {}, marks, settings)
    folder.about = {
        "settings": settings.to_json(),
        "quantization": quantization,
        "marks": marks,
        "versions": versions(settings),
        "parameters": {"trainable": trainable, "total": total},
    }
    say(
        f"{settings.method} on {settings.model}: {trainable:,} of {total:,} parameters learn "
        f"({100 * trainable / total:.2f} %)\n"
        f"{settings.data}: {len(rows):,} rows to learn from, {len(valid):,} to validate, "
        f"the longest {max(len(r[0]) for r in rows)} tokens"
    )
    reporter = Reporter(config.steps, say, watched)
    told = dict(out=folder, resume=resuming, progress=watched, on_step=reporter)
    try:
        with row_lines.named(load.find_data(settings.data, lambda line: None)), unwarned():
            history = fit(model, rows, config, valid=valid, **told)
    except MemoryFull as error:
        remedy = memory_warning.after_full(counted(settings, source), source, device, rows, folder)
        raise MiniloraError(f"{error.told}; {remedy}") from None
    weights = _write(model, settings, source, folder)
    folder.draw(history.records)
    seconds = time.perf_counter() - began
    memory = foreseen.beside()
    folder.about["result"] = {
        "steps": history.steps,
        "valid_losses": history.valid_losses,
        "seconds": round(seconds, 1),
        **({"memory": memory} if memory else {}),
        "status": "diverged" if history.diverged else "finished",
        **({"why": history.diverged} if history.diverged else {}),
    }
    folder.write_about()
    return Result(folder.path, weights, history, trainable, total, seconds, memory)


def _look_ahead(
    settings: Settings, source: Path, device: str, rows: list, say: Say
) -> memory_told.Foreseen:
    """Count the run before its model is loaded: warn of what will not fit, and give up time for
    memory where it hardly will.
    """
    from ..system.memory import available

    run = counted(settings, source)
    memory_warning.warn(run, source, device, rows)
    foreseen = memory_told.foresee(run, source, device, rows)
    memory_told.avoid_holes(foreseen, available(device), say)
    return foreseen


def _write(model, settings: Settings, source: Path, folder: RunFolder) -> Path:
    """Write what was trained into the run's folder; returns the weights' file."""
    from ..system.memory import named

    again = f"go on by minilora finetune --out {folder.path} --resume"
    with named("while the result was written", again), folder.results() as made:
        return folder.path / export(model, settings, source, made)


class Reporter:
    """Ten lines of a run that stay: below one another in a file, above the bar on a terminal."""

    def __init__(self, steps: int, say: Say, watched: bool):
        self.steps, self.every = steps, max(1, steps // 10)
        self.say, self.watched = say, watched

    def __call__(self, step: int, loss: float) -> None:
        from tqdm.auto import tqdm

        if step % self.every == 0 or step == self.steps:
            with tqdm.external_write_mode() if self.watched else contextlib.nullcontext():
                self.say(f"step {step}/{self.steps} loss {loss:.4f}")


def _require_same(saved: Mapping, marks: Mapping, settings: Settings) -> None:
    """Raise MiniloraError if data or base changed since the run began: going on would be neither
    run.
    """
    for name, mark in (saved.get("marks") or {}).items():
        if marks.get(name) != mark:
            raise MiniloraError(
                f"{getattr(settings, name)} has changed since this run began; put the old {name} "
                "back, or begin anew with another --out"
            )


# --------------------------------------------------------------------------------------------- data


def read_rows(
    settings: Settings, tokenizer: Tokenizer, positions: int, say: Say = tell
) -> tuple[list[Row], list[Row]]:
    """Encoded training and validation rows; a single file has no validation rows."""
    from ..text.examples import read_split
    from ..text.rows import encode_rows

    seq = min(MAX_SEQ, positions) if settings.seq is None else settings.seq
    if not 2 <= seq <= positions:
        raise MiniloraError(
            f"--seq is {seq}; the model has {positions} positions, give 2 to {positions}"
        )
    data = load.find_data(settings.data, say)
    splits = ["train", "valid"] if data.is_dir() and (data / "valid.jsonl").is_file() else ["train"]
    found = []
    for split in splits:
        examples = read_split(data, split)
        rows = encode_rows(examples, tokenizer)
        long = sum(len(ids) > seq for ids, _ in rows)
        if long:
            rows = encode_rows(examples, tokenizer, seq)
            say(
                f"{data} {split}: {long:,} of {len(rows):,} rows are longer than {seq} tokens "
                "and lose the start of their prompt, their oldest turns, or the end of their text"
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


def versions(settings: Settings) -> dict[str, str]:
    """Of what the run runs on."""
    import platform

    import torch

    from .. import __version__

    theirs = finetune_peft.versions() if settings.backend == "peft" else {}
    return {
        "minilora": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **theirs,
    }


# -------------------------------------------------------------------------------------------- model


def build(settings: Settings, folder: Path, device: str):
    """The model, ready to be trained: loaded, quantized for qlora and int8, with its adapter;
    returns (model, quantization).
    """
    if settings.backend == "peft":
        return finetune_peft.build(settings, folder, device)
    import torch

    from .. import lora

    quantization = base.recipe(settings.base_code) if settings.base_code else None
    packed = base.packed(folder)
    if packed and settings.adapts and settings.init.startswith(("loftq", "pissa")):
        raise MiniloraError(
            f"--init {settings.init} starts from the unquantized weights, and {folder} is in 4 "
            "bits already; choose kaiming or gaussian, or take the unquantized model"
        )
    # LoftQ repairs W − Q, so W is needed once more
    keep = settings.init.startswith("loftq") and quantization is not None
    model = base.load_base(
        folder, device, None if keep else quantization, trained=not settings.adapts
    )
    if packed:  # by --method lora too; a base in floating point, later, is quantized like it
        quantization = base.form_of(model)
    weights = lora.linear_weights(model) if keep else None
    if keep:
        base.quantize_base(model, **quantization)
    torch.manual_seed(settings.seed)
    if settings.adapts:
        lora.add_adapter(model, settings.adapter_config(), weights=weights)
    else:
        model.requires_grad_(True)
    return model, quantization


def counted(settings: Settings, folder: Path) -> Settings:
    """The settings as the budget counts them: over a 4-bit folder --method lora is qlora."""
    if settings.method == "lora" and base.packed(folder):
        return dataclasses.replace(settings, method="qlora")
    return settings


def count(model, settings: Settings) -> tuple[int, int]:
    """(trainable, all) as counts of numbers, packed ones as what they stand for."""
    if settings.backend == "peft":
        from ..hub.adapters import count_parameters
    else:
        from ..lora.adapters import count_parameters
    return count_parameters(model)


def export(model, settings: Settings, folder: Path, out: Path) -> str:
    """Write what was trained into `out`; returns the name of the weights' file."""
    if settings.backend == "peft":
        return finetune_peft.export(model, settings, folder, out)
    if not settings.adapts:
        from .merge import copy_tokenizer

        model.save_pretrained(out)
        copy_tokenizer(folder, out)
        return "model.safetensors"
    from .. import lora

    lora.save_adapter(model, out, base_model=settings.base_name(folder))
    return "adapter_model.safetensors"

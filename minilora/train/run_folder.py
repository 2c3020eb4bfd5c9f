"""The folder of a run: its state, its metrics, its curve.

What it replaces: transformers' `checkpoint-N` folders, whose pickled optimizer and generator states
execute code when read and whose half-written last one stops a resume.
How it works: a state is one folder `state/step-00000050` with everything a run needs to go on:
trained weights, AdamW's moments, fp16's loss scale, the generators, the metrics so far. It is
written beside its place, flushed, and renamed there whole; a manifest carries the SHA-256 of each
file and of itself. The last two are kept. Reading takes the newest whose sums agree. The first is
written before step 1: a run that breaks off early, in a notebook whose model has moved already,
begins again from the weights it began with.
What it leaves out: the frozen base (it does not change) and locks against two runs in one folder.
Where numerics differ: nowhere; tensors go through safetensors to the bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from ..errors import MiniloraError
from ..system.files import atomic_folder, atomic_write
from .config import TrainConfig, another_run

KEEP = 2

MANIFEST = "manifest.json"

ABOUT = "run.json"


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_sum(path: Path) -> str:
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def fingerprint(rows: Sequence) -> str:
    return _sum(repr(rows).encode())


def require_same(path: Path, saved: dict, now: dict) -> None:
    """Raise MiniloraError unless `now`, what `train.fit` is called with, goes on with the run that
    `saved`, its run.json, began.

    Rows at once and batches per step may change if their product stays: each step then takes the
    same rows.
    """
    began, here = saved.get("settings") or {}, json.loads(json.dumps(now["settings"]))
    if name := another_run(TrainConfig, began, here):
        raise MiniloraError(
            f"{name} is {here[name]!r}, and the run in {path} began with {began[name]!r}; put "
            "it back, or begin anew with another `out` or resume=False"
        )
    if (saved.get("marks") or {}).get("data", now["marks"]["data"]) != now["marks"]["data"]:
        raise MiniloraError(
            f"the rows are not those with which the run in {path} began; put them back, or "
            "begin anew with another `out` or resume=False"
        )


def _lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _generator_states() -> dict[str, torch.Tensor]:
    states = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random/cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(tensors: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])


class RunFolder:
    """`out` of `train.fit`: `begin` reads or clears, `log` appends a metric, `save` writes a state.

    `about` goes into run.json: what the run was started with. `say` is called with lines worth
    telling the user.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        about: dict | None = None,
        say: Callable[[str], object] = lambda line: None,
    ):
        self.path = Path(path)
        self.about = about or {}
        self.states = self.path / "state"
        self.metrics = self.path / "metrics.jsonl"
        self.say = say
        self._offset = 0

    # -- reading

    def last_step(self) -> int:
        """After how many steps a resume would go on, by the names of the states."""
        return max((int(folder.name[len("step-") :]) for folder in self.found()), default=0)

    def found(self) -> list[Path]:
        """The folders of states, newest first, good or not."""
        return sorted(self.states.glob("step-*"), reverse=True) if self.states.is_dir() else []

    def saved_about(self) -> dict | None:
        """What run.json says, or None where there is no run. Raises MiniloraError if it cannot be
        read.
        """
        path = self.path / ABOUT
        if not path.is_file():
            return None
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise MiniloraError(
                f"{path} is damaged ({error}); begin anew with another --out or --overwrite"
            ) from error

    def _read(self, folder: Path) -> dict:
        """The manifest's body, if every sum agrees; raises ValueError or OSError if not."""
        manifest = json.loads((folder / MANIFEST).read_bytes())
        body = manifest["body"]
        if _sum(json.dumps(body, sort_keys=True).encode()) != manifest["sha256"]:
            raise ValueError("the manifest is damaged")
        for name, expected in body["files"].items():
            if _file_sum(folder / name) != expected:
                raise ValueError(f"{name} is damaged")
        return body

    def last_good(self) -> tuple[Path, dict] | None:
        """The newest whole state and its manifest, or None. Damaged ones are noted and passed
        over.
        """
        for folder in self.found():
            try:
                return folder, self._read(folder)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                self.say(f"{folder} is damaged: going back to the state before it")
        return None

    def begin(
        self, parameters: dict[str, nn.Parameter], optimizer, scaler, resume: bool
    ) -> tuple[list[dict], int]:
        """Make the folder ready. Returns the records so far and the number of steps done, with the
        state loaded.
        """
        self._sweep()
        good = self.last_good() if resume else None
        if good is None:
            shutil.rmtree(self.states, ignore_errors=True)
            self.write_about()
            self._write_metrics([])
            self.save(0, parameters, optimizer, scaler, [])
            if resume:
                self.say(f"no saved state in {self.path}: starting at step 1")
            return [], 0
        folder, body = good
        self._load(folder, parameters, optimizer, scaler)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        self._write_metrics(records)
        self.say(
            f"going on after step {body['step']}" if body["step"] else "starting again at step 1"
        )
        return records, body["step"]

    def _sweep(self) -> None:
        """Remove what a killed process left under a temporary name."""
        beside = self.path.parent.glob(f".{self.path.name}.*.part")
        for rest in (*self.states.glob(".*.part"), *self.path.glob(".*.part"), *beside):
            shutil.rmtree(rest, ignore_errors=True) if rest.is_dir() else rest.unlink(
                missing_ok=True
            )

    def write_about(self) -> None:
        with atomic_write(self.path / ABOUT) as temporary:
            temporary.write_text(json.dumps(self.about, indent=2) + "\n", encoding="utf-8")

    def _load(self, folder: Path, parameters: dict[str, nn.Parameter], optimizer, scaler) -> None:
        from safetensors.torch import load_file

        tensors = load_file(folder / "state.safetensors")
        saved = {
            name[len("weight/") :]: t.shape
            for name, t in tensors.items()
            if name.startswith("weight/")
        }
        if saved != {name: p.shape for name, p in parameters.items()}:
            raise MiniloraError(
                f"the state in {folder} is of another model or adapter; resume with the "
                "settings it began with"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"weight/{name}"])
                if f"step/{name}" not in tensors:  # every step so far was left out, in fp16
                    continue
                optimizer.state[parameter] = {
                    "step": tensors[f"step/{name}"],
                    "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
                }
        _restore_generators(tensors)
        kept = {
            key[len("scaler/") :]: t.item()
            for key, t in tensors.items()
            if key.startswith("scaler/")
        }
        if kept and scaler.is_enabled():
            scaler.load_state_dict(kept)

    # -- writing

    def save(
        self, step: int, parameters: dict[str, nn.Parameter], optimizer, scaler, records: list[dict]
    ) -> None:
        """Write the state after `step` steps as one folder that appears whole or not at all; keep
        the last two.
        """
        from safetensors.torch import save_file

        tensors = _generator_states()
        for name, parameter in parameters.items():
            tensors[f"weight/{name}"] = parameter.detach()
            for key, value in optimizer.state[parameter].items():
                tensors[f"{key}/{name}"] = value
        for key, value in scaler.state_dict().items():
            tensors[f"scaler/{key}"] = torch.tensor(
                value, dtype=torch.float64 if isinstance(value, float) else torch.int64
            )
        folder = self.states / f"step-{step:08d}"
        shutil.rmtree(folder, ignore_errors=True)  # there only if it was found damaged
        with atomic_folder(folder) as temporary:
            save_file(
                {name: t.contiguous().cpu() for name, t in tensors.items()},
                temporary / "state.safetensors",
            )
            (temporary / "metrics.jsonl").write_text(_lines(records))
            body = {
                "step": step,
                "files": {f.name: _file_sum(f) for f in sorted(temporary.iterdir())},
            }
            manifest = {"body": body, "sha256": _sum(json.dumps(body, sort_keys=True).encode())}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for old in self.found()[KEEP:]:
            shutil.rmtree(old, ignore_errors=True)

    def _write_metrics(self, records: list[dict]) -> None:
        with atomic_write(self.metrics) as temporary:
            temporary.write_text(_lines(records))
        self._offset = self.metrics.stat().st_size

    def log(self, record: dict) -> None:
        """Append one line to metrics.jsonl: whole, or not at all."""
        line = _lines([record]).encode()
        try:
            with open(self.metrics, "r+b", buffering=0) as file:
                file.seek(self._offset)
                if file.write(line) != len(line):
                    raise OSError(28, "No space left on device")
        except OSError as error:
            if self.metrics.is_file():
                os.truncate(self.metrics, self._offset)
            raise MiniloraError(
                f"cannot write {self.metrics}: {error.strerror}; free some space, then add --resume"
            ) from error
        self._offset += len(line)

    def draw(self, records: list[dict]) -> None:
        """Write loss.png: training loss by step, validation loss as points."""
        draw_losses(records, self.path / "loss.png")


def draw_losses(records: list[dict], path: str | os.PathLike) -> None:
    """Draw the losses of metrics records into a PNG, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.add_subplot()
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    valid = [(r["step"], r["valid_loss"]) for r in records if "valid_loss" in r]
    if train:
        axes.plot(*zip(*train), color="#0072b2", linewidth=1.2, label="training")
    if valid:
        axes.plot(*zip(*valid), "o--", color="#d55e00", label="validation")
    axes.set(xlabel="step", ylabel="loss per learned token (nats)")
    axes.grid(alpha=0.3)
    if train or valid:
        axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

"""The folder of a run: its state, its metrics, its curve.

What it replaces: transformers' `checkpoint-N` folders, whose pickled optimizer and generator states
execute code when read and whose half-written last one stops a resume.
How it works: a state is one folder `state/step-00000050` with everything a run needs to go on:
trained weights, AdamW's moments, fp16's loss scale, the generators, the metrics so far. It is
written beside its place, flushed, and renamed there whole; a manifest carries the SHA-256 of each
file and of itself. The last two are kept. Reading takes the newest whose sums agree. The first is
written before step 1: a run that breaks off early, in a notebook whose model has moved already,
begins again from the weights it began with. Only what a run made is replaced or deleted (made.py),
and one run at a time writes.
What it leaves out: the frozen base, which does not change.
Where numerics differ: nowhere; tensors go through safetensors to the bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from ..errors import MiniloraError
from ..system import outputs
from ..system.files import atomic_folder, atomic_write, kind_of, sweep
from .config import TrainConfig, another_run
from .made import (
    MANIFEST,
    METRICS,
    PICTURE,
    STATE,
    STATES,
    Made,
    drop_state,
    own_state,
    read_manifest,
    require_own_states,
)
from .run_json import ABOUT, ANEW, read_about

KEEP = 2


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
        self.states = self.path / STATES
        self.metrics = self.path / METRICS
        self.say = say
        self.made = Made(self.path)
        self.identity: str | None = None  # which run it is; a state of another is not loaded
        self._offset, self._held = 0, False

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block no other process writes here. Raises MiniloraError if one does."""
        if self._held:
            yield
            return
        with outputs.alone(self.path):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    # -- reading

    def last_step(self) -> int:
        """After how many steps a resume would go on, by the names of the states."""
        return max((int(folder.name[len("step-") :]) for folder in self.found()), default=0)

    def found(self) -> list[Path]:
        """The folders of states, newest first, good or not."""
        if kind_of(self.states) != "a folder":
            return []
        return sorted((f for f in self.states.iterdir() if STATE.fullmatch(f.name)), reverse=True)

    def saved_about(self) -> dict | None:
        """What run.json says, or None where there is no run. Raises MiniloraError if it cannot be
        read.
        """
        return read_about(self.path)

    def require_own(self, results: Sequence[str] = (), anew: bool = False) -> None:
        """Raise MiniloraError if in the folder stands what a run would replace and none made.

        results: patterns of the names of what is written at the end. anew: the run that is there
        is to be replaced, and a run.json that cannot be read may be.
        """
        about = self._about_if_readable() if anew else self.saved_about()
        if about is None and kind_of(self.path / ABOUT) not in (None, "a file"):
            raise MiniloraError(f"{self.path / ABOUT} is no regular file; choose another --out")
        require_own_states(self.states, known=about is not None)
        if about is None and self.found():
            about = {}  # states of a run speak for the files beside them
        self.made.take(about)
        self.made.require_own(results)

    def _about_if_readable(self) -> dict | None:
        with contextlib.suppress(MiniloraError):
            return self.saved_about()
        return None

    def _read(self, folder: Path) -> dict:
        """The manifest's body, if every sum agrees; raises ValueError or OSError if not."""
        body = read_manifest(folder)
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
            except (OSError, ValueError):
                self.say(f"{folder} is damaged: going back to the state before it")
        return None

    def begin(
        self, parameters: dict[str, nn.Parameter], optimizer, scaler, resume: bool
    ) -> tuple[list[dict], int]:
        """Make the folder ready. Returns the records so far and the number of steps done, with the
        state loaded.

        Raises MiniloraError, and touches nothing, if what it would replace was not made by a run,
        or the state is another run's.
        """
        self._sweep()
        self.require_own(anew=not resume)
        good = self.last_good() if resume else None
        if good is None:
            self._clear()
            self.save(0, parameters, optimizer, scaler, [])
            if resume:
                self.say(f"no saved state in {self.path}: starting at step 1")
            return [], 0
        folder, body = good
        if self.identity and body.get("run", self.identity) != self.identity:
            raise MiniloraError(
                f"the state in {folder} is of a run with other settings, data or base than "
                f"{self.path / ABOUT} says; put the run's own {ABOUT} back, or begin anew with "
                "--overwrite"
            )
        records = self._records(folder)
        self._load(folder, parameters, optimizer, scaler)
        self._write_metrics(records)
        self.say(
            f"going on after step {body['step']}" if body["step"] else "starting again at step 1"
        )
        return records, body["step"]

    def _records(self, folder: Path) -> list[dict]:
        """The metrics of a state."""
        try:  # no parse_json: a validation loss may be infinite
            records = [json.loads(line) for line in (folder / METRICS).read_bytes().splitlines()]
            if all(isinstance(record, dict) and "step" in record for record in records):
                return records
        except (ValueError, RecursionError):
            pass
        raise MiniloraError(f"{folder / METRICS} holds no metrics of a run; {ANEW}")

    def _sweep(self) -> None:
        """Remove what a killed process left under a temporary name."""
        sweep(self.path)
        sweep(self.states)

    def _clear(self) -> None:
        """Take away the run that was here, if any, and write down the new one."""
        path, before = self.path / ABOUT, self._about_if_readable()
        if before is None and kind_of(path):
            kept = next(
                each
                for number in range(1, 1 << 16)
                if kind_of(each := path.with_name(f"{ABOUT}.bak-{number}")) is None
            )
            os.replace(path, kept)
            self.say(f"{path} was no run's and is now {kept.name}")
        self.made.remove()
        for folder in self.found():
            if own_state(folder, known=True):
                drop_state(folder)
        self.write_about()
        self._write_metrics([])

    def write_about(self) -> None:
        """Write run.json, with what the run made so far."""
        told = {**self.about, "files": self.made.marks}
        with atomic_write(self.path / ABOUT) as temporary:
            temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def results(self) -> Iterator[Path]:
        """Yield an empty folder, whose files become the run's when the block ends well. Raises
        MiniloraError if one would replace what the run did not make.
        """

        def claim(temporary: Path) -> None:
            self.made.claim(temporary)
            self.write_about()

        with atomic_folder(self.path, before=claim) as temporary:
            yield temporary
        self.made.settle()

    def _load(self, folder: Path, parameters: dict[str, nn.Parameter], optimizer, scaler) -> None:
        from safetensors.torch import load_file

        tensors = load_file(folder / "state.safetensors")
        saved = {
            name[len("weight/") :]: t.shape
            for name, t in tensors.items()
            if name.startswith("weight/")
        }
        if (
            saved != {name: p.shape for name, p in parameters.items()}
            or "random/cpu" not in tensors
        ):
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
        drop_state(folder)  # there only if it was found damaged
        with atomic_folder(folder) as temporary:
            save_file(
                {name: t.contiguous().cpu() for name, t in tensors.items()},
                temporary / "state.safetensors",
            )
            (temporary / METRICS).write_text(_lines(records))
            body = {
                "step": step,
                **({"run": self.identity} if self.identity else {}),
                "files": {f.name: _file_sum(f) for f in sorted(temporary.iterdir())},
            }
            manifest = {"body": body, "sha256": _sum(json.dumps(body, sort_keys=True).encode())}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for old in self.found()[KEEP:]:
            if own_state(old, known=True):
                drop_state(old)

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
        with self.results() as temporary:
            draw_losses(records, temporary / PICTURE)


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

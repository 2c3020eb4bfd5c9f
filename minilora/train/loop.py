"""The training loop: rows of ids in, trained weights out, resumable to the last bit.

What it replaces: transformers' `Trainer` and `TrainingArguments`, accelerate's gradient
accumulation.
How it works: AdamW on whatever has `requires_grad`; the learning rate warms up linearly and falls
along a cosine. One step takes `batch_size * accumulate` rows, cut into `accumulate` micro-batches
whose *summed* losses are divided by the step's number of learned tokens: the gradient is that of
one big batch, however unevenly the answers are spread. Rows are shuffled by seed and epoch, then
sorted by length within pools, so that little is spent on padding. The order is a function of (seed,
epoch) alone; with weights, moments and the random generator (see `run_folder.py`) a run goes on
exactly where it stopped. `check` (see `checks.py`) looks for what would train nothing before the
first step. In fp16, which ends at 65504 and loses what is below 6e-8, the loss is multiplied by a
large power of two before backward and the gradients are divided by it: where they overflow, the
step is left out and the factor halved; after 2,000 good steps it is doubled (Micikevicius et al.
2018, "Mixed Precision Training", §3.2). bf16 has fp32's range and needs none of this.
What it leaves out: more than one device (see the lesson on distributed training), other optimizers.
Where numerics differ: transformers starts its warm-up at 0 and so wastes a step; here the first
step already moves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import MiniloraError
from ..lora.rates import loraplus_groups
from ..system import heap, memory
from ..system.precision import autocast, device_of, mode, settle_precision
from ..text.rows import IGNORE, Row
from .batches import Batches
from .checks import check, check_model
from .config import TrainConfig, settled
from .divergence import Diverged, diverged
from .loss import evaluate_loss, loss_sum, tensors
from .row_checks import CheckFailed, check_rows
from .run_folder import RunFolder, fingerprint, require_same
from .run_json import identity
from .scoring import exact_match

__all__ = [
    "TrainConfig",
    "History",
    "CheckFailed",
    "check",
    "fit",
    "evaluate_loss",
    "exact_match",
    "learning_rate",
    "Batches",
]


@dataclass
class History:
    """What a run reports: one record per step, one per validation. `records` are the lines of
    metrics.jsonl. `diverged`: why the run is no success (see divergence.py), or nothing.
    """

    records: list[dict] = field(default_factory=list)
    diverged: str = ""

    @property
    def losses(self) -> list[float]:
        """Training loss by step: the mean over the step's learned tokens, before the update."""
        return [record["loss"] for record in self.records if "loss" in record]

    @property
    def valid_losses(self) -> list[tuple[int, float]]:
        """(steps done, validation loss), the first at 0."""
        return [
            (record["step"], record["valid_loss"])
            for record in self.records
            if "valid_loss" in record
        ]

    @property
    def steps(self) -> int:
        return len(self.losses)


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step 0, 1, …: linear up over `warmup` steps (the last of them is the full rate),
    then half a cosine.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.lr * (
        config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    )


def parameter_groups(model: nn.Module, config: TrainConfig) -> list:
    """What learns, for the optimizer. With LoRA+ in groups, each with its share of the step's
    rate.
    """
    if config.lora_plus is None:
        return [p for p in model.parameters() if p.requires_grad]
    groups = loraplus_groups(model, config.lr, config.lora_plus, weight_decay=config.weight_decay)
    return [group | {"share": group["lr"] / config.lr} for group in groups]


def smaller_batch(rows: int, accumulate: int) -> tuple[int, int] | None:
    """The next smaller (rows at once, such batches per update) of the same step; None where there
    is none.
    """
    fewer = next((n for n in range(rows // 2, 0, -1) if rows * accumulate % n == 0), None)
    return (fewer, accumulate * rows // fewer) if fewer else None


def loss_scaler(model: nn.Module, precision: str) -> torch.amp.GradScaler:
    """fp16's loss scaling; for every other precision one that does nothing."""
    return torch.amp.GradScaler(
        device_of(model).type, enabled=settle_precision(model, precision) == "fp16"
    )


def step_gradients(
    model: nn.Module,
    rows: Sequence[Row],
    config: TrainConfig,
    scaler: torch.amp.GradScaler | None = None,
) -> tuple[float, int]:
    """Backward for one step: the gradient of the mean loss over all learned tokens of `rows`, times
    the scaler's factor.

    Returns (loss, tokens), the loss without that factor.
    """
    tokens = sum(label != IGNORE for _, labels in rows for label in labels[1:])
    if tokens == 0:
        return 0.0, 0
    total = 0.0
    for start in range(0, len(rows), config.batch_size):
        batch = tensors(rows[start : start + config.batch_size], model)
        with autocast(model, config.precision):
            loss, _ = loss_sum(model, batch)
        # of the whole step's tokens: the mean of means would overweight short answers
        mean = loss / tokens
        (mean if scaler is None else scaler.scale(mean)).backward()
        total += loss.item()
    return total / tokens, tokens


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C waits for the end of the step, where the state is whole; a second one breaks off at
    once.
    """
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def fit(
    model: nn.Module,
    data: Sequence[Row],
    config: TrainConfig | None = None,
    *,
    valid: Sequence[Row] = (),
    out: RunFolder | str | None = None,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
    resume: bool = False,
    **settings,
) -> History:
    """Train whatever `requires_grad` in `model` on rows of (ids, labels); returns the History.

    Settings are the fields of TrainConfig: `fit(model, rows, steps=60, batch_size=16, lr=3e-3)`.
    `valid` rows are scored at the start, at the end and every `eval_every` steps. With `out` the
    state is saved every `save_every` steps, and `resume=True` goes on from the last good one;
    without it a run that is there is begun anew. `on_step(step, loss)` is called after each step,
    counted from 1. Raises CheckFailed before step 1 for what would train nothing, MiniloraError for
    a loss that is no number or a full disk, MemoryFull (with what the broken step held released),
    and KeyboardInterrupt after the state has been saved. With the same `out` and resume=True the
    same call goes on after each of them, in this process or another; see `run_folder.require_same`
    for what may change. Warns with Diverged of a run that ends worse than it began.
    """
    config = settled(config, settings)
    run = (
        out
        if isinstance(out, RunFolder) or out is None
        else RunFolder(out, say=print if progress else lambda line: None)
    )
    if run is not None and not run.about:
        asked = dataclasses.asdict(config) | {"warmup": config.warmup_steps}
        run.about = {"settings": asked, "marks": {"data": fingerprint(data)}}
        run.identity = identity(TrainConfig, asked, run.about["marks"])
        if resume:
            require_same(run.path, run.saved_about() or {}, run.about)
    loop = _Loop(model, config, data, list(valid), run)
    devices = [device_of(model)] if device_of(model).type == "cuda" else []
    here = run.alone() if run is not None else contextlib.nullcontext()
    with here, memory.named(lambda: loop.doing, loop.remedy, loop.clear):
        loop.look()
        with (
            torch.random.fork_rng(devices),
            mode(model, True),
            _deferred_interrupt() as interrupted,
        ):
            torch.manual_seed(config.seed)
            loop.go(loop.begin(resume), progress, on_step, interrupted)
        loop.judge()
    return loop.history


class _Loop:
    """The state of one call of `fit`. `doing` says in words what is being done."""

    def __init__(
        self,
        model,
        config: TrainConfig,
        data: Sequence[Row],
        valid: list[Row],
        run: RunFolder | None,
    ):
        self.model, self.config, self.valid, self.run, self.history = (
            model,
            config,
            valid,
            run,
            History(),
        )
        self.batches = Batches(data, config.batch_size * config.accumulate, config.seed)
        self.widest = 0  # tokens of the longest row so far
        if config.checkpointing:
            model.gradient_checkpointing = True
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # a run that broke off in the middle of a step has left the half of its gradients
        self.clear()

    def look(self) -> None:
        """The self-check, on four rows, after a look at every row."""
        self.doing = "in the check before step 1"
        check_rows(self.model, self.batches.rows)
        check_rows(self.model, self.valid, "validation data")
        check_model(self.model, tensors(self.batches(0)[:4], self.model))

    def begin(self, resume: bool) -> int:
        """Make the optimizer, for what the check has found to learn. Returns how many steps are
        done already; their state is loaded.
        """
        config = self.config
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, config),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        self.scaler = loss_scaler(self.model, config.precision)
        if self.run is None:
            return 0
        self.doing = "while the state was read or written"
        self.history.records, start = self.run.begin(
            self.parameters, self.optimizer, self.scaler, resume
        )
        return start

    def clear(self) -> None:
        """Drop gradients and moments."""
        for parameter in self.parameters.values():
            parameter.grad = None
        if hasattr(self, "optimizer"):
            self.optimizer.state.clear()

    def remedy(self) -> str:
        """What to change when the memory is full, and how the run goes on."""
        same = [] if self.config.checkpointing else ["checkpointing=True"]
        if smaller := smaller_batch(self.config.batch_size, self.config.accumulate):
            same.append("batch_size={}, accumulate={}".format(*smaller))
        again = (
            f"go on after step {self.run.last_step()} by resume=True"
            if self.run is not None and self.run.found()
            else "begin again"
        )
        told = f"with {' or '.join(same)} " if same else ""
        return (
            f"{again} {told}(the same run), or begin a new one with shorter rows, a 4-bit base, "
            "or a smaller model"
        )

    def record(self, entry: dict) -> None:
        self.history.records.append(entry)
        if self.run is not None:
            self.run.log(entry)

    def validate(self, step: int) -> None:
        if self.valid:
            self.doing = f"in the validation after step {step}"
            # without a backward pass, twice the rows need no more than the training did
            rows = min(32, 2 * self.config.batch_size)
            loss = evaluate_loss(self.model, self.valid, rows, precision=self.config.precision)
            self.record({"step": step, "valid_loss": loss})

    def save(self, step: int) -> None:
        if self.run is None:
            return
        self.doing = f"while the state after step {step} was written"
        for name, parameter in self.parameters.items():
            if not bool(torch.isfinite(parameter).all()):
                raise MiniloraError(
                    f"{name} holds NaN or infinity after step {step}; begin anew with a lower "
                    f"learning rate (now {self.config.lr:g})"
                )
        self.run.save(step, self.parameters, self.optimizer, self.scaler, self.history.records)

    def one_step(self, step: int) -> dict:
        """One update; returns its metrics. The step counts from 0."""
        began = time.perf_counter()
        rate = learning_rate(step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("share", 1.0)
        rows = self.batches(step)
        longest = max(len(ids) for ids, _ in rows)
        if longest > self.widest:  # the holes that smaller pieces have left would only stand beside
            self.widest = longest
            heap.give_back()
        self.doing = (
            f"in step {step + 1}, {min(len(rows), self.config.batch_size)} rows of up to "
            f"{longest} tokens at once"
        )
        loss, tokens = step_gradients(self.model, rows, self.config, self.scaler)
        scaled = self.scaler.is_enabled()
        if scaled and tokens:
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters.values(), self.config.clip or math.inf
        ).item()
        entry: dict[str, float | None] = {
            "step": step + 1,
            "loss": loss,
            "lr": rate,
            "grad_norm": norm,
            "tokens": tokens,
        }
        if scaled:
            entry["loss_scale"] = self.scaler.get_scale()
            if not math.isfinite(norm):
                entry |= {"grad_norm": None, "skipped": True}
        self._require_finite(step, loss, norm)
        if tokens or not scaled:
            # left out by the scaler itself where a gradient overflowed
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return entry | {"seconds": round(time.perf_counter() - began, 4)}

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        """Raise MiniloraError if this step shows that the run is lost: what loss scaling can mend
        is not.
        """
        half = self.scaler.is_enabled()
        if math.isfinite(loss) and (math.isfinite(norm) or half and self.scaler.get_scale() > 1):
            return
        remedy = f"lower --lr (now {self.config.lr:g}) or look for damaged data"
        if half:
            remedy = f"fp16 ends at 65504: choose --precision fp32 or bf16, {remedy}"
        raise MiniloraError(
            f"the loss at step {step + 1} is {loss}, its gradient norm {norm}; {remedy}"
        )

    def judge(self) -> None:
        """Warn if the run has made the model worse."""
        self.doing = "in the look at the rows of step 1 after the last"
        rows, config = self.batches(0), self.config
        after = evaluate_loss(self.model, rows, config.batch_size, config.precision)
        vocabulary = getattr(getattr(self.model, "config", None), "vocab_size", None)
        found = diverged(self.history.losses, after, vocabulary, config.lr)
        self.history.diverged = found
        if found:
            warnings.warn(found, Diverged, stacklevel=3)

    def go(self, start: int, progress: bool, on_step, interrupted) -> None:
        from tqdm.auto import tqdm

        steps = self.config.steps
        if start == 0:
            self.validate(0)
        with tqdm(
            total=steps, initial=start, disable=not progress, leave=False, mininterval=0.3
        ) as bar:
            for step in range(start, steps):
                entry = self.one_step(step)
                self.record(entry)
                done = step + 1
                if done == steps or (self.config.eval_every and done % self.config.eval_every == 0):
                    self.validate(done)
                bar.set_postfix(loss=f"{entry['loss']:.3f}", refresh=False)
                bar.update()
                if on_step is not None:
                    on_step(done, entry["loss"])
                stop = interrupted() and done < steps
                if stop or done == steps or done % self.config.save_every == 0:
                    self.save(done)
                if stop:
                    raise KeyboardInterrupt

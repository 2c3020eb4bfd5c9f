"""The line that warns before a run would fill the memory: what it will need, what is free, and what
to change.

What it replaces: "CUDA out of memory" after the model was loaded, or the kernel ending the process
without a word. Where the memory was full all the same, `after_full` says how the run goes on.
How it works: `finetune` hands over its settings; `minilora.budget` counts the step on the Llama
that will run (ours, or transformers' with PEFT's layers), `system/memory.py` says what is free, and
if the run needs more, one line on standard error names both and the mildest option that makes it
fit. A budget that cannot be made, for whatever reason, is no reason not to train: then nothing is
said. What `--variant dora` and `--dropout` add is counted as a bound (`budget.forms.variants`):
such runs may need less than is said here.
What it leaves out: refusing: the forecast may be wrong, and the machine may have swap; who is
warned may go on.
Where numerics differ: see `minilora.budget`; on a processor the interpreter and torch take some
hundred MB more.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..system.memory import LIBRARIES, available
from .settings import Settings

if TYPE_CHECKING:
    from ..budget.setup import Setup
    from ..train.run_folder import RunFolder

# whose Llama and whose adapters, by backend
RUNS = {"minilora": {"library": "minilora"}, "peft": {"library": "transformers", "detour": "plain"}}


def in_budget_words(
    method: str, precision: str, library: str, cuda: bool, bf16: bool
) -> tuple[str, str | None]:
    """(method, precision) as the budget names what `finetune` does: where products are in 16 bits,
    all weights train `mixed`, and a frozen base is kept in 16 bits on a card that has bf16, by
    transformers on any card.
    """
    halves = precision in ("bf16", "fp16") or (cuda and precision == "auto")
    if method == "full":
        return ("mixed" if halves else "full"), None
    if halves and cuda and (bf16 or library == "transformers"):
        return method, "bf16" if bf16 else "fp16"
    return method, "autocast" if halves else "fp32"


def setup_of(settings: Settings, folder, device: str, longest: int) -> Setup:
    """The budget's setup for the settings of `finetune`: the backend's Llama, rows as long as the
    longest. folder: of the model, or its Shape.
    """
    from ..budget.setup import make

    cuda = device.startswith("cuda")
    run = dict(RUNS[settings.backend])
    method, precision = in_budget_words(
        settings.method, settings.precision, run["library"], cuda, keeps_halves(device)
    )
    if added(settings):
        run["detour"] = "plain"  # the fused step is for what only adds
    if settings.adapts:
        run |= {
            "rank": settings.rank,
            "targets": targets_of(settings.targets),
            "code": settings.code if settings.method == "qlora" else None,
        }
    return make(
        folder,
        method=method,
        precision=precision,
        batch=settings.batch,
        seq=longest,
        checkpointing=bool(settings.checkpointing),
        device="cuda" if cuda else "cpu",
        foreach=cuda,
        **run,
    )


def added(settings: Settings) -> tuple[str, float] | None:
    """(variant, dropout) if one of them takes memory of its own."""
    more = settings.adapts and (settings.variant == "dora" or settings.dropout)
    return (settings.variant, settings.dropout) if more else None


def takes(setup: Setup, settings: Settings, **changes) -> int:
    """Bytes of the run with some settings of the budget changed, its variant and dropout
    included.
    """
    from ..budget.estimate import estimate
    from ..budget.forms.variants import added as margin

    if "method" in changes:  # another method with the same --precision, --rank and --targets
        settings = replace(settings, method=changes.pop("method"))
        setup = setup_of(settings, setup.shape, setup.device, setup.seq)
    told = estimate(setup, **changes)
    return told.with_context + margin(told.setup, *(added(settings) or ()))


def keeps_halves(device: str) -> bool:
    """Whether a frozen base is kept in 16 bits there: on a card with bf16, as `load_base`
    does.
    """
    from ..system.precision import has_bf16

    return has_bf16(device)


def targets_of(text: str) -> str:
    """Names with commas as they are; what is a regular expression counts as all layers, the larger
    budget.
    """
    return text if all(name.strip().isidentifier() for name in text.split(",")) else "all"


def options(setup: Setup, accumulate: int = 1) -> list[tuple[dict, str]]:
    """Changes that `finetune` can make, the mildest first, each as (settings, option). A smaller
    batch makes the same step, of more parts.
    """
    found = []
    if not setup.checkpointing:
        found.append(({"checkpointing": True}, "--checkpointing"))
    for rows in range(setup.batch // 2, 0, -1):
        if setup.batch % rows == 0:
            found.append(
                ({"batch": rows}, f"--batch {rows} --accumulate {accumulate * setup.batch // rows}")
            )
    if setup.method != "qlora":
        found.append(({"method": "qlora"}, "--method qlora"))
    length = setup.seq
    while length >= 64:
        length //= 2
        found.append(({"seq": length}, f"--seq {length}"))
    return found


def remedy(setup: Setup, settings: Settings, needed: int, free: int) -> str:
    """The mildest option after which the run fits, else the mildest options together, else what is
    left.
    """

    def fits(changes: dict) -> bool:
        return takes(setup, settings, **changes) + needed <= free

    together, words = {}, {}
    for changes, option in options(setup, settings.accumulate):
        if fits(changes):
            return f"add {option}"
    for changes, option in options(setup, settings.accumulate):
        (name,) = changes
        together.update(changes)
        words[name] = option
        if fits(together):
            return "add " + " ".join(words.values())
    return (
        "take a smaller model, or a machine with more memory; minilora budget --gpu NAME says "
        "which card holds it"
    )


def warning(
    settings: Settings, folder: Path, device: str, longest: int, free: int | None = None
) -> str | None:
    """The line to print, or None if the run fits or nobody can tell. free: bytes, for those who
    know better than the system.
    """
    from ..budget.table import decimal

    free = available(device) if free is None else free
    if free is None:
        return None
    setup = setup_of(settings, folder, device, longest)
    beside = 0 if device.startswith("cuda") else LIBRARIES
    needed = takes(setup, settings) + beside
    if needed <= free:
        return None
    return (
        f"this run will need about {decimal(needed)}, and {decimal(free)} are free on {device}; "
        f"{remedy(setup, settings, beside, free)}"
    )


WHEN_LOADING = (
    "choose --method qlora, a smaller --model, or end what else runs; minilora budget says what "
    "each takes"
)


def after_full(settings: Settings, folder: Path, device: str, data: list, run: RunFolder) -> str:
    """What to type when the memory was full all the same: first what goes on with the same run,
    then what begins another.
    """
    from ..train.loop import smaller_batch

    changes = [] if settings.checkpointing else [({"checkpointing": True}, "--checkpointing")]
    if smaller := smaller_batch(settings.batch, settings.accumulate):
        rows, parts = smaller
        changes.append(({"batch": rows}, f"--batch {rows} --accumulate {parts}"))
    longest = max(len(ids) for ids, _ in data)
    try:
        told = figures(settings, folder, device, longest, [change for change, _ in changes])
    except Exception:  # as in `warn`
        told = [""] * len(changes)
    same = " or ".join(option + figure for (_, option), figure in zip(changes, told))
    again = (
        f"go on after step {run.last_step()} by minilora finetune --out {run.path} --resume"
        if run.found()
        else "type the command again with"
    )
    other = "a smaller --seq" + ("" if settings.method == "qlora" else ", --method qlora")
    return f"{again} {same}".strip() + f"; {other} or a smaller --model begins a new run"


def figures(
    settings: Settings, folder: Path, device: str, longest: int, changes: list[dict]
) -> list[str]:
    """By change, what the budget says of the whole run with it and without."""
    from ..budget.table import decimal

    setup, beside = (
        setup_of(settings, folder, device, longest),
        0 if device.startswith("cuda") else LIBRARIES,
    )
    before = takes(setup, settings) + beside
    return [
        f" (about {decimal(takes(setup, settings, **change) + beside, before)} in place of "
        f"{decimal(before)})"
        for change in changes
    ]


def warn(settings: Settings, folder: Path, device: str, rows: list) -> None:
    """Print the warning, if there is one. Whatever goes wrong in here is not the run's fault and
    stops nothing.
    """
    try:
        line = warning(settings, folder, device, max(len(ids) for ids, _ in rows))
    except Exception:  # a forecast is worth nothing if it can stop what it forecasts
        return
    if line:
        print("minilora: warning: " + line, file=sys.stderr, flush=True)

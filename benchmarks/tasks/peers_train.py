"""Fine-tuning by transformers + peft + bitsandbytes beside ours: the same data, seeds and settings;
accuracy, time and memory.

What it replaces: a comparison of two scripts that differ in more than the libraries.
How it works: in three sections, whose records stand in `results/peers-train.json` as soon as they
are there:

    exact   `minilora finetune --backend peft` and `--backend minilora`, then `minilora evaluate`,
            for each task and seed, as a reader would type them: QLoRA, rank 8, all linear layers.
            Where --work names a folder, a run that was broken off is gone on with
    time    both models in one process, one step each in turn on the same rows, so that a change of
            the machine's pace hits both
    memory  a process for each: how far the resident set rises above what it was before the model
            was read, over the first steps of the run; then the peak of the storages of two steps
            on their longest rows, as the ledger counts them (on a GPU: what torch's allocator gave
            out; the resident set is not asked there)

Everything is at one thread. With a GPU at hand its rows are measured beside the processor's.
What it leaves out: other methods than QLoRA; `speed/cpu.py` has single steps of LoRA, and bf16.
Where numerics differ: both stacks start from the same numbers and see the same rows; losses part in
the last bits, and with them, after hundreds of steps, some of the 200 answers.

    python -m benchmarks.tasks.peers_train [--sections exact,time,memory] [--tasks extract,mood]
                                          [--steps 300] [--seeds 0,1,2] [--device cpu] [--again]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.kit import machine, plan
from benchmarks.kit.short_runs import fingerprint
from minilora.system.files import atomic_write

RESULTS = machine.RESULTS / "peers-train.json"
SECTIONS, TASKS, BACKENDS = ("exact", "time", "memory"), ("extract", "mood"), ("minilora", "peft")
METHOD = {"method": "qlora", "rank": 8, "targets": "all"}
TIMED = 30  # steps of each side
STEPS = 6  # for memory


def read() -> dict:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def keep(record: dict) -> None:
    """Put a record into the file, in the place of one with the same key."""

    found = read()
    others = [each for each in found.get("records", []) if each["key"] != record["key"]]
    told = {
        "what": "QLoRA of rank 8 on all linear layers of the shipped base",
        "base": fingerprint(),
        "threads": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine.about(),
        "versions": machine.versions(),
        "records": sorted([*others, record], key=lambda each: each["key"]),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with atomic_write(RESULTS) as path:
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def keys(options: argparse.Namespace) -> list[str]:
    """What is asked for, in order."""
    found = []
    for device in options.device:
        for section in options.sections:
            for task in options.tasks:
                if section == "exact":
                    found += [
                        f"{device} exact {task} {backend} {options.steps} {seed}"
                        for seed in options.seeds
                        for backend in BACKENDS
                    ]
                else:
                    found += [
                        f"{device} {section} {task}" + f" {backend}" * (section == "memory")
                        for backend in (BACKENDS if section == "memory" else ("",))
                    ]
    return found


# -------------------------------------------------------------------------------------------- exact


def exact(key: str, work: Path | None) -> dict:
    """Fine-tune and evaluate by the command line. work: a folder in which runs lie, and are gone on
    with.
    """
    from benchmarks.tasks.tasks import call, score

    device, _, task, backend, steps, seed = key.split()
    command = [
        "finetune",
        "--model",
        "tiny",
        "--data",
        f"data/tasks/{task}",
        "--method",
        "qlora",
        "--rank",
        "8",
        "--targets",
        "all",
        "--steps",
        steps,
        "--seed",
        seed,
        "--backend",
        backend,
    ]
    command += ["--device", device] if device != "cpu" else []
    with tempfile.TemporaryDirectory() as spare:
        folder = (work or Path(spare)) / key.replace(" exact ", " ").replace(" ", "-")
        if (folder / "run.json").exists():
            call(["finetune", "--out", str(folder), "--resume"])
        else:
            call([*command, "--out", str(folder)])
        output, _ = call(
            [
                "evaluate",
                "--model",
                "tiny",
                "--adapter",
                str(folder),
                "--data",
                f"data/tasks/{task}",
            ]
        )
        records = [
            json.loads(line)
            for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
    hits, asked = score(output)
    valid = [record["valid_loss"] for record in records if "valid_loss" in record]
    steps = [record for record in records if "loss" in record]
    return {
        "hits": hits,
        "of": asked,
        "steps": len(steps),
        "valid_loss": [valid[0], valid[-1]],
        "loop_seconds": round(sum(record["seconds"] for record in steps), 1),
        "load_average": round(os.getloadavg()[0], 2),
        "command": f"minilora {' '.join(command)} --out DIR",
    }


# ---------------------------------------------------------------------------------- time and memory


class Run:
    """What `minilora finetune` makes before its first step, and that step. more: settings beside
    METHOD, or in its place.
    """

    def __init__(self, task: str, backend: str, device: str, **more) -> None:
        import torch

        from minilora import qlora
        from minilora.recipes import finetune, load
        from minilora.recipes.settings import Settings
        from minilora.text import Tokenizer
        from minilora.train import Batches, parameter_groups

        data = str(machine.ROOT / "data" / "tasks" / task)
        settings = Settings(**METHOD | more, data=data, backend=backend, device=device)
        self.config, folder = settings.train_config(), qlora.resolve(settings.model)
        rows, _ = finetune.read_rows(
            settings, Tokenizer.from_pretrained(folder), load.positions(folder)
        )
        self.batches = Batches(rows, self.config.batch_size, self.config.seed)
        self.model = finetune.build(settings, folder, device)[0].train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, self.config),
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
        )

    def step(self, number: int) -> float:
        import torch

        from minilora.train import step_gradients

        loss, _ = step_gradients(self.model, self.batches(number), self.config)
        with torch.profiler.record_function("optimizer"):
            torch.nn.utils.clip_grad_norm_(self.trained, self.config.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return loss


def time_section(device: str, task: str) -> dict:
    """Steps of both in turn; medians, and the median of the ratios of neighbours. Their losses must
    agree before a clock is believed.
    """
    from benchmarks.kit.measure import interleaved, median_ms, ratio

    runs = {backend: Run(task, backend, device) for backend in BACKENDS}
    losses: dict[str, list[float]] = {backend: [] for backend in BACKENDS}

    def one(backend: str) -> None:
        # the loss is read, so the device has finished
        losses[backend].append(runs[backend].step(len(losses[backend])))

    seconds = interleaved(
        {backend: lambda backend=backend: one(backend) for backend in BACKENDS}, TIMED
    )
    apart = max(abs(a - b) for a, b in zip(*losses.values()))
    assert apart < 0.05 * losses["peft"][0], f"the losses of the two stacks are {apart} apart"
    share, quarters = ratio(seconds, "minilora", "peft")
    return {
        "steps": TIMED,
        "ms": {backend: round(median_ms(seconds, backend), 2) for backend in BACKENDS},
        "ratio": round(share, 4),
        "quarters": [round(each, 4) for each in quarters],
        "losses_apart": apart,
        "load_average": round(os.getloadavg()[0], 2),
    }


def memory_section(device: str, task: str, backend: str) -> dict:
    """How far the resident set rises from before the model is read, and the peak of storages."""
    import torch

    import minilora.recipes.finetune
    import minilora.train  # noqa: F401  libraries come before the mark
    from benchmarks.kit.card import peak_of

    if backend == "peft":
        import bitsandbytes  # noqa: F401
        import peft  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401
    torch.set_num_threads(1)
    before = resident()
    run = Run(task, backend, device)
    for number in range(STEPS):
        run.step(number)
    rise = machine.most_held() - before if device == "cpu" and before else None
    longest = max(range(STEPS), key=lambda number: sum(len(ids) for ids, _ in run.batches(number)))
    run.optimizer.state.clear()  # made anew under the counter's eyes, or it would not see it

    def two_steps() -> None:
        run.step(longest)
        run.step(longest)

    peak = peak_of(two_steps, run.model)
    return {"resident_rise": rise, "storages": peak.allocated, "steps": STEPS}


def resident() -> int:
    """Bytes of this process that are in memory now; 0 where the system does not say."""
    status = Path("/proc/self/status")
    fields = (
        dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        if status.exists()
        else {}
    )
    return 1024 * int(fields["VmRSS"].split()[0]) if "VmRSS" in fields else 0


def child(key: str) -> dict:
    import torch

    torch.set_num_threads(1)
    device, section, *rest = key.split()
    return time_section(device, *rest) if section == "time" else memory_section(device, *rest)


def in_new_process(key: str) -> dict:
    """Measured by a process of its own, at one thread."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MALLOC_ARENA_MAX": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "record.json"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.tasks.peers_train", "--child", key, "--to", str(to)],
            env=environment,
            cwd=machine.ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{key}: {done.stdout}{done.stderr}")
        return json.loads(to.read_text(encoding="utf-8"))


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words = lambda text: text.split(",")  # noqa: E731
    parser.add_argument(
        "--sections", default=list(SECTIONS), type=words, help=f"some of {','.join(SECTIONS)}"
    )
    parser.add_argument("--tasks", default=list(TASKS), type=words)
    parser.add_argument(
        "--seeds",
        default=[0, 1, 2],
        type=lambda text: [int(word) for word in text.split(",")],
        help="of the exact section",
    )
    parser.add_argument("--steps", default=300, type=int, help="of the exact section")
    parser.add_argument(
        "--device",
        default=["cpu", *["cuda"] * torch.cuda.is_available()],
        type=words,
        help="cpu, cuda (default: what is there)",
    )
    parser.add_argument("--again", action="store_true", help="measure again what the file has")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="where runs lie, to go on with them"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for word in options.sections:
        if word not in SECTIONS:
            parser.error(f"there is no section {word}; choose from {', '.join(SECTIONS)}")
    if options.child:
        Path(options.to).write_text(json.dumps(child(options.child)), encoding="utf-8")
        return
    there = read().get("records", [])
    left = [key for key in keys(options) if options.again or key not in {r["key"] for r in there}]
    if plan.only_asked(RESULTS, there, len(left)):
        return
    for key in left:
        record = exact(key, options.work) if key.split()[1] == "exact" else in_new_process(key)
        keep({"key": key, **record})
        print(
            f"{key}: "
            + json.dumps({name: value for name, value in record.items() if name != "command"}),
            flush=True,
        )


if __name__ == "__main__":
    main()

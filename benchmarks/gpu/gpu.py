"""QLoRA on a graphics card: a step beside transformers + peft + bitsandbytes, and the memory claims
really executed.

What it replaces: a figure from somebody else's card.
How it works: seven runs in parts, each in a process of its own, so that one that runs out of memory
spoils no other:

    a1, a3, a8    tokens a second and peak memory of a step at the shapes of Llama-3.2-1B, 3.2-3B
                  and 3.1-8B, ours and theirs: the same batch, targets, rank, checkpointing,
                  clipping and fused AdamW; after warm-up the median of up to ten steps
    b7, b20, b65  training under a cap on what torch may take: 7B and 20B on a card of 24 GB, 65B
                  on one of 48 GB; five steps on one batch, the predicted peak (`budget.estimate`)
                  beside the measured one

Weights are random, in real shapes, made and quantized layer by layer on the device
(`random_llama.py`); `kit/card.py` says how peaks are measured and what a cap means. Every part is
written to results/gpu-NAME.json as soon as it is over; a second call goes on with those that are
missing, broke off or lack a library. What did not run is in the file with its reason.
`--device cpu --tiny --out DIR` runs the same code in small on a processor, its peaks counted by the
ledger and held to caps of their own.
What it leaves out: data, accuracy (`tasks/peers_train.py`), several cards.
Where numerics differ: peaks on a card are torch's own count, in blocks of 512 bytes with cuBLAS'
workspaces, which the prediction adds.

    python -m benchmarks.gpu.gpu [--parts a1,a3,a8,b7,b20,b65] [--out DIR] [--fresh] [--tiny]
    python -m benchmarks.gpu.gpu --device cpu --tiny --out DIR
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu.plan import PARTS, SEED, TINY, Part
from benchmarks.kit import machine
from minilora.budget.catalog import GIB
from minilora.system.files import atomic_write

# --------------------------------------------------------------------------------- the results file


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished:
        unfinished.write_text(
            json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def file_for(device_name: str, options: argparse.Namespace) -> Path:
    """Where results of a card go: each card, and each size, has a file of its own."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name.lower()).strip("-")
    return (
        Path(options.out or machine.RESULTS) / f"gpu-{slug}{'-tiny' if options.tiny else ''}.json"
    )


def settings_of(part: Part, options: argparse.Namespace) -> dict:
    """What decides a part's numbers: a record with other settings, or of other libraries, is not
    gone on with.
    """

    told = asdict(part) | {
        "shape": {name: value for name, value in asdict(part.shape).items() if name != "published"},
        "runs": [list(run) for run in part.runs],
    }
    return told | {
        "parameters": part.shape.parameters,
        "seed": SEED,
        "cap": options.cap_gb,
        "versions": machine.versions(),
    }


# ---------------------------------------------------------------------------------- one part, alone


def child(name: str, options: argparse.Namespace) -> None:
    """Run one part in this process and write its record to `options.to`; an error becomes the
    record.
    """
    import traceback

    from benchmarks.gpu.parts import memory, speed

    part = (TINY if options.tiny else PARTS)[name]
    began = time.perf_counter()
    try:
        record = (speed if part.kind == "speed" else memory)(part, options)
    except Exception as error:
        record = {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "where": traceback.format_exc().splitlines()[-12:],
        }
    record["seconds"] = round(time.perf_counter() - began, 1)
    Path(options.to).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")


def in_new_process(name: str, options: argparse.Namespace) -> dict:
    """The record of one part, run by a process of its own; also where that process is killed or
    takes too long.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "record.json"
        command = [
            sys.executable,
            "-m",
            "benchmarks.gpu.gpu",
            "--child",
            name,
            "--to",
            str(to),
            "--device",
            options.device,
            *["--tiny"] * options.tiny,
        ]
        command += ["--cap-gb", str(options.cap_gb)] if options.cap_gb else []
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        with open(Path(folder) / "stderr", "w+", encoding="utf-8", errors="replace") as chatter:
            try:
                code = subprocess.run(
                    command,
                    stderr=chatter,
                    env=environment,
                    cwd=machine.ROOT,
                    timeout=options.limit,
                ).returncode
                why = f"the process ended with code {code}"
            except subprocess.TimeoutExpired:
                why = f"the process was stopped after {options.limit:g} s"
            chatter.seek(0)
            said = chatter.read().splitlines()
        record = read(to) or {"status": "killed", "error": why, "where": said[-12:]}
    return record | {
        "wall_seconds": round(time.perf_counter() - began, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run(options: argparse.Namespace) -> int:
    """Every part that is asked for and not there yet; returns how many are not done."""
    import torch

    from benchmarks.kit.card import device_told

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "no CUDA GPU was found; run this where torch.cuda.is_available() is True, or try "
            "--device cpu --tiny --out DIR",
            file=sys.stderr,
        )
        return 2
    about = device_told(options.device)
    path, parts = file_for(about["name"], options), TINY if options.tiny else PARTS
    found = {} if options.fresh else read(path)
    found |= {
        "what": "QLoRA steps on one device, weights random",
        "command": "python -m benchmarks.gpu.gpu"
        + (f" --device {options.device}" * (options.device != "cuda"))
        + " --tiny" * options.tiny,
        "device": about,
        "versions": machine.versions(),
        "seed": SEED,
        "date": datetime.now(UTC).date().isoformat(),
    }
    records = found.setdefault("parts", {})
    missing = []
    for name in options.parts:
        settings = settings_of(parts[name], options)
        old = records.get(name, {})
        if old.get("status") == "done" and old.get("settings") == json.loads(json.dumps(settings)):
            print(f"{name}: there already", flush=True)
            continue
        print(f"{name}: {parts[name].shape.name} ...", flush=True)
        records[name] = in_new_process(name, options) | {"settings": settings}
        write(path, found | {"parts": {each: records[each] for each in parts if each in records}})
        print("\n".join(f"  {line}" for line in lines(records[name])), flush=True)
        missing += [name] * (records[name]["status"] != "done")
    print(
        f"{path}"
        + (
            (
                f"; not done: {', '.join(missing)} (the file says why; the same command tries "
                "them again)"
            )
            if missing
            else ""
        )
    )
    return min(1, len(missing))


def lines(record: dict) -> list[str]:
    """A record in a few lines for the terminal."""
    told = []
    for who, each in record.get("contenders", {}).items():
        told.append(
            f"{who:24} "
            + (
                (
                    f"{each['tokens_per_second']:10.1f} tokens/s  peak "
                    f"{each['allocated'] / GIB:7.3f} GiB  loss {each['losses'][0]:.4f} → "
                    f"{each['losses'][-1]:.4f}"
                )
                if each["status"] == "done"
                else f"{each['status']}: {each['error']}"
            )
        )
    for each in record.get("trainings", []):
        start = (
            f"rank {each['rank']:3} under {each['cap']['GiB']:.3f} GiB ({each['cap']['GB']:.3f} GB)"
        )
        told.append(
            (
                f"{start}: peak {each['allocated'] / GIB:.3f} GiB, predicted "
                f"{each['predicted'] / GIB:.3f} ({each['error_of_prediction']:+.2%}); loss "
                f"{each['losses'][0]:.4f} → {each['losses'][-1]:.4f}"
            )
            if each["status"] == "done"
            else f"{start}: {each['status']}: {each['error']}"
        )
    told += [f"{record['status']}: {record['error']}"] if "error" in record else []
    return [*told, f"{record['status']} in {record['wall_seconds']:.0f} s"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="small shapes: seconds, on a card too, to see that everything runs",
    )
    parser.add_argument(
        "--parts",
        default=list(PARTS),
        type=lambda text: text.split(","),
        help=f"some of {','.join(PARTS)}",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the file (default benchmarks/results)"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    parser.add_argument(
        "--cap-gb", type=float, help="another cap for b7, b20 and b65, in 10⁹ bytes"
    )
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for one part")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; choose from {', '.join(PARTS)}")
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu has the small form alone: add --tiny")
    if options.device == "cpu" and not options.out and not options.child:
        parser.error("a processor's run is no result to keep: say where its file goes, --out DIR")
    return options


if __name__ == "__main__":
    asked = arguments()
    sys.exit(child(asked.child, asked) if asked.child else run(asked))

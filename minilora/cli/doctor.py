"""`minilora doctor`: what this machine has, what is installed, what is missing, what to do next.

What it replaces: `transformers env`, `python -m bitsandbytes`. How it works: every line is looked
up, none is assumed; what is missing is said with its remedy. Versions are read from the packages'
metadata and cards asked of the driver, so that no library has to load; `--deep` loads torch and
bitsandbytes as well. What it leaves out: mending anything.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ..errors import MiniloraError
from ..recipes import load
from ..system.machine import card_has_bf16, cores

PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "transformers",
    "peft",
    "bitsandbytes",
    "huggingface_hub",
    "jupyterlab",
    "ipywidgets",
)


NEEDED = ("torch", "numpy", "safetensors", "tokenizers")  # without them nothing trains
MISSING = "not installed"
CPUINFO = Path("/proc/cpuinfo")  # on Linux; elsewhere only --deep knows the processor's units


def add_arguments(parser) -> None:
    parser.epilog = "example:\n  minilora doctor --deep"
    parser.add_argument(
        "--deep",
        action="store_true",
        help="load torch and bitsandbytes too, and say what they see; takes longer (default: no)",
    )


def _memory() -> str:
    import psutil

    return f"{psutil.virtual_memory().total / 1e9:.1f} GB memory"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def _output(*command: str, seconds: float) -> tuple[int, str]:
    """(exit code, what it printed) of a program that may be missing, hang, or die."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {seconds:.0f} s"
    except OSError as error:
        return -1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()


def _bitsandbytes(deep: bool) -> str:
    """Loaded in a process of its own: a broken CUDA library may take the interpreter with it."""
    if _version("bitsandbytes") == MISSING:
        return "not installed; only comparisons need it: pip install 'minilora[hub]'"
    if not deep:
        return "installed; --deep says whether it loads"
    code, text = _output(sys.executable, "-c", "import bitsandbytes", seconds=120)
    last = (text.splitlines() or ["no message"])[-1]
    return "loads" if code == 0 else f"does not load: {last}"


def _gpu_line(name: str, memory: float | None, major: int) -> str:
    without = "no bf16, so `--precision auto` takes fp16 with loss scaling"
    half = "bf16" if card_has_bf16(major) else without
    size = "memory unknown" if memory is None else f"{memory / 1e9:.1f} GB"
    return f"{name}, {size}, {half}"


def _cards(text: str) -> list[str]:
    """The cards of nvidia-smi's lines; what is no such line, a warning say, is passed over."""
    found = []
    for line in text.splitlines():
        parts = line.rsplit(", ", 2)
        if len(parts) == 3 and re.fullmatch(r"\d+\.\d+", parts[2]):
            name, mebibytes, capability = parts
            memory = int(mebibytes) * 2**20 if mebibytes.isdigit() else None
            found.append(_gpu_line(name, memory, int(capability.split(".")[0])))
    return found


SILENT = "nvidia-smi did not answer, so nothing is known of a card; --deep asks torch"
NO_GPU = "no GPU seen: everything runs on the CPU, lessons take their CPU path"


def _devices() -> list[str]:
    """From the system and the driver, without torch."""
    found = CPUINFO.read_text(errors="replace") if CPUINFO.is_file() else ""
    bf16 = "bf16 in hardware" if "avx512_bf16" in found or "amx_bf16" in found else "bf16 emulated"
    lines = [f"cpu: {cores()} cores, {bf16 if found else 'bf16 unknown without --deep'}"]
    query = ("--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
    code, text = _output("nvidia-smi", *query, seconds=2)
    cards = _cards(text) if code == 0 else []
    lines += [f"cuda:{i}: {told}" for i, told in enumerate(cards)]
    if not cards:
        lines.append(NO_GPU if shutil.which("nvidia-smi") is None else SILENT)
    elif _version("torch").endswith("+cpu"):
        lines.append("but this torch is built for the CPU alone: install one for CUDA")
    return lines


def _devices_of_torch() -> list[str]:
    import torch

    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    avx = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    bf16 = "in hardware" if amx or avx else "emulated"
    lines = [f"cpu: {torch.get_num_threads()} threads, bf16 {bf16}"]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i}: {_gpu_line(gpu.name, gpu.total_memory, gpu.major)}")
    return lines if len(lines) > 1 else [*lines, NO_GPU]


def _base() -> Path | None:
    """The shipped model's folder, if it is there."""
    from ..system.files import data_folder

    try:
        base = data_folder() / "base"
    except MiniloraError:
        return None
    return base if (base / "model.safetensors").is_file() else None


def _data() -> list[str]:
    from ..system.files import data_folder

    try:
        folder = data_folder()
    except MiniloraError as error:
        return [f"tiny: {error}", "tasks: none"]
    there = "the shipped model is there"
    missing = f"missing at {folder / 'base'}; `minilora pretrain --out base` builds one"
    return [
        f"tiny: {there if _base() else missing}",
        f"tasks: {', '.join(load.tasks()) or 'none; install minilora again'}",
    ]


def _next() -> str:
    """What to type now."""
    missing = [package for package in NEEDED if _version(package) == MISSING]
    if missing:
        return f"pip install {' '.join(missing)}"
    if _base() is None:
        return "minilora pretrain --out base, then minilora finetune --model base --data DATA"
    if not load.tasks():
        return "minilora finetune --data DATA --out runs/first"
    return f"minilora finetune --data {next(iter(load.tasks()))} --out runs/first"


def run(args) -> int:
    from .. import __version__

    print(f"minilora {__version__}, Python {platform.python_version()}")
    print(f"machine: {platform.system()} {platform.machine()}, {cores()} cores, {_memory()}")
    print("versions: " + ", ".join(f"{package} {_version(package)}" for package in PACKAGES))
    for line in _devices_of_torch() if args.deep else _devices():
        print(line, flush=True)
    print(f"bitsandbytes: {_bitsandbytes(args.deep)}")
    for line in _data():
        print(line)
    print(f"next: {_next()}")
    return 0

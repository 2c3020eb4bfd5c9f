"""`minilora doctor`: what this machine has, what is installed, what is missing.

What it replaces: `transformers env`, `python -m bitsandbytes`. How it works: every line is looked
up, none is assumed; what is missing is said with its remedy. What it leaves out: mending anything.
Where numerics differ: nowhere.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys

from ..errors import MiniloraError

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


def add_arguments(parser) -> None:
    pass


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f} GB memory"
    except (ValueError, OSError, AttributeError):  # not on Windows
        return "memory unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _bitsandbytes() -> str:
    """In a process of its own: a broken CUDA library may take the interpreter with it, and the
    import takes seconds.
    """
    if _version("bitsandbytes") == "not installed":
        return "not installed; only comparisons need it: pip install 'minilora[hub]'"
    code = "import bitsandbytes as b; print(b.__version__)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
        )
    except subprocess.TimeoutExpired:
        return "does not import within two minutes"
    return (
        "imports"
        if done.returncode == 0
        else f"does not import: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    )


def _devices() -> list[str]:
    import torch

    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    avx = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    lines = [
        f"cpu: {torch.get_num_threads()} threads, bf16 "
        f"{'in hardware' if amx or avx else 'emulated'}"
    ]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        half = (
            "bf16"
            if gpu.major >= 8
            else "no bf16, so `--precision auto` takes fp16 with loss scaling"
        )
        lines.append(f"cuda:{i}: {gpu.name}, {gpu.total_memory / 1e9:.1f} GB, {half}")
    if len(lines) == 1:
        lines.append("no GPU seen: everything runs on the CPU, lessons take their CPU path")
    return lines


def _data() -> list[str]:
    from ..system.files import data_folder

    try:
        folder = data_folder()
    except MiniloraError as error:
        return [str(error)]
    base = folder / "base"
    lines = [
        "tiny: the shipped model is there"
        if (base / "model.safetensors").is_file()
        else f"tiny: missing at {base}; `minilora pretrain` builds it"
    ]
    tasks = sorted(
        path.name for path in (folder / "tasks").glob("*") if (path / "train.jsonl").is_file()
    )
    return [*lines, f"tasks: {', '.join(tasks) or 'none; fetch the repository again'}"]


def run(args) -> int:
    from .. import __version__

    print(f"minilora {__version__}, Python {platform.python_version()}")
    print(f"machine: {platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_memory()}")
    print("versions: " + ", ".join(f"{package} {_version(package)}" for package in PACKAGES))
    for line in _devices():
        print(line)
    print(f"bitsandbytes: {_bitsandbytes()}")
    for line in _data():
        print(line)
    return 0

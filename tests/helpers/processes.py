"""Processes that a test may kill: forked from a server that has the libraries loaded, so that a
start costs milliseconds and a kill is a real kill.
"""

import ctypes
import json
import multiprocessing
import os
import sys

OURS = (
    "cli.finetune",
    "recipes.finetune",
    "train.loop",
    "text.rows",
    "llama.checkpoint",
    "llama.generate",
    "qlora.four_bit",
    "lora",
    "hub.loading",
    "hub.adapters",
    "budget.estimate",
    "budget.forms.variants",
)
THEIRS = (
    "torch._dynamo",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "tqdm.auto",
    "tokenizers",
    "jinja2.sandbox",
)
PEERS = (
    "transformers.models.llama.modeling_llama",
    "transformers.quantizers.quantizer_bnb_4bit",
    "peft",
    "bitsandbytes",
)


CLONE_NEWNS, MS_REMOUNT, MS_REC, MS_PRIVATE = 0x20000, 32, 1 << 14, 1 << 18


def mount_small_disk(folder, room):
    """Put a disk of `room` bytes at `folder`, which only this process sees. False where that is not
    allowed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    private = not libc.unshare(CLONE_NEWNS) and not libc.mount(
        b"none", b"/", None, MS_REC | MS_PRIVATE, None
    )
    return private and not libc.mount(
        b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={room}".encode()
    )


def grow_disk(folder, room):
    assert (
        ctypes.CDLL(None, use_errno=True).mount(
            b"tmpfs", str(folder).encode(), b"tmpfs", MS_REMOUNT, f"size={room}".encode()
        )
        == 0
    )


def context():
    """The server loads its modules once, for all tests of a session; a library that is missing is
    passed over.
    """
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload([f"minilora.{name}" for name in OURS] + [*THEIRS, *PEERS])
    return forkserver


def start(work, *arguments, err=os.devnull):
    """`work(*arguments)` in a process of its own with one thread; what it returns is the exit
    code.
    """
    process = context().Process(target=_child, args=(work, arguments, str(err)))
    process.start()
    return process


def finish(work, *arguments, err=os.devnull):
    process = start(work, *arguments, err=err)
    process.join()
    return process.exitcode


def _child(work, arguments, err):
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    sys.stdout, sys.stderr = open(os.devnull, "w"), open(err, "w", buffering=1)
    sys.exit(work(*arguments))


def metrics(out):
    """The lines of metrics.jsonl without the clock."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]

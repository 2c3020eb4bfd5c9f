"""The ledger beside the memory that the operating system sees: a real step in a process of its
own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minilora.budget.catalog import Shape
from minilora.budget.measure.ledger import measure

pytestmark = pytest.mark.parity  # beside the library that people use

ROOT = Path(__file__).resolve().parents[2]
GROWTH = """
import json, os, sys
import torch
from minilora.budget.catalog import Shape
from minilora.budget.measure.fake_run import (
    Plan, batch_of, build, loss_of, optimizer_of, prepared, update,
)
from minilora.budget.measure.ledger import watch_steps
from minilora.budget.setup import make

torch.set_num_threads(1)
# it would lay weights out anew for its products, in memory of its own
torch.backends.mkldnn.enabled = False

def kib(field):
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

def run(shape, settings):
    setup = make(Shape(*shape), **settings)
    plan = Plan(setup)
    model = build(plan)
    with prepared(model, setup):
        batch, optimizer = batch_of(setup), optimizer_of(model, setup)
        for _ in range(2):
            loss_of(model, setup, batch).backward()
            update(plan, optimizer)

shape, settings = json.loads(sys.argv[1])
layer = ["warm", *shape[1:3], 1, *shape[4:6], 512]
# libraries, code and the buffers that MKL keeps for products of this size are there before the
# measurement begins
run(layer, settings)
before = kib("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again from here
run(shape, settings)
print(json.dumps(1024 * (kib("VmHWM") - before)))
"""
WHOLE = ["whole", 1024, 2816, 4, 16, 16, 8000]
ADAPTED = ["adapted", 1536, 4096, 8, 12, 12, 16000]


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="the high-water mark of a process is read from Linux' /proc",
)
@pytest.mark.parametrize(
    "shape, settings",
    [
        (WHOLE, dict(method="full", batch=1, seq=256, checkpointing=False)),
        (ADAPTED, dict(method="lora", precision="fp32", batch=1, seq=160, checkpointing=False)),
    ],
    ids=["full", "lora"],
)
def test_the_growth_of_a_process_is_the_ledgers_peak(shape, settings):
    settings |= dict(library="minilora", device="cpu")
    # Every block is asked from the system and given back at once, so that the process holds what
    # the tensors hold.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_TOP_PAD_": "0",
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, json.dumps([shape, settings])],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    grown, ledger = json.loads(done.stdout), measure(Shape(*shape), **settings)
    assert ledger.peak > 2**30
    assert grown == pytest.approx(ledger.peak, rel=0.01)

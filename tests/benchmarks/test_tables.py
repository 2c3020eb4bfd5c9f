"""The benchmark of speed and memory runs through, in small, and leaves the results file alone."""

import subprocess
import sys

import pytest

from benchmarks.speed import cpu
from tools import readme
from tools.project import ROOT


@pytest.mark.slow
def test_quick_measures_every_section_and_writes_nothing():
    for library in ("transformers", "peft", "bitsandbytes"):
        pytest.importorskip(library)
    before = cpu.RESULTS.read_bytes() if cpu.RESULTS.exists() else None
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.cpu", "--quick", "--threads", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (cpu.RESULTS.read_bytes() if cpu.RESULTS.exists() else None) == before
    table = done.stdout.rpartition("\n\n")[0].rpartition("\n\n")[2]
    for what in (
        "NF4 quantize",
        "NF4 dequantize to bf16, one buffer",
        "int8 forward",
        *(
            f"{m} step {d}, {k}"
            for m in ("LoRA", "QLoRA")
            for d in ("fp32", "bf16")
            for k in ("our Llama ", "our Llama: kept for backward", "our Llama: peak memory")
        ),
    ):
        assert what in table, what


def row(what, unit="ms", threads=1, ratio=2.0, goal=1.5, met=True):
    return {
        "what": what,
        "threads": threads,
        "unit": unit,
        "ours": 1.0,
        "peer": 2.0,
        "peer_name": "PEFT",
        "ratio": ratio,
        "goal": goal,
        "met": met,
        "told": "{:.2f} × as fast",
        "beside": "half of memcpy",
        "section": "codes",
    }


def test_the_readme_shows_what_was_measured_and_what_was_missed(monkeypatch):
    rows = [row("decode"), row("decode", threads=2, ratio=1.25, met=False)]
    rows += [
        row(f"step: {kind}", "MB", goal=1.0, ratio=0.5)
        for kind in ("kept for backward", "peak memory")
    ]
    found = {
        "rows": rows,
        "rounds": 9,
        "date": "2026-01-02",
        "machine": {"processor": "P", "cores": 2},
        "versions": {"python": "3", "torch": "2+cpu"},
    }
    monkeypatch.setattr(readme, "results", lambda name: found)
    text = readme.cpu_tables()
    assert (
        "| decode, PEFT | 1.0 ms | 2.0 ms | 2.00 × as fast | half of memcpy | 1.0 ms | 2.0 ms "
        "| 1.25 × as fast, **missed** | half of memcpy | ≥ 1.5 |"
    ) in text
    assert "| step, PEFT | 1.0 | 2.0 | 1.0 | 2.0 |" in text
    assert "3 of 4 goals are met; those missed are marked." in text and "torch 2;" in text

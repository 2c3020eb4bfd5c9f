"""The closed forms beside the ledger, a few configurations now and all of them from the file; and
the benchmark that makes that file.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.memory import configurations
from benchmarks.memory import rows as file
from minilora.budget import estimate
from minilora.budget.measure.fake_run import by_kernel
from minilora.budget.measure.ledger import measure
from minilora.budget.setup import make
from minilora.quantize import quantize

pytestmark = pytest.mark.parity  # beside the library that people use

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


@pytest.fixture(scope="module")
def rows():
    """The rows of the results file by name."""
    return {
        row["name"]: row for row in json.loads(file.RESULTS.read_text(encoding="utf-8"))["rows"]
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        dict(method="full", library="minilora", checkpointing=False),
        dict(method="mixed", library="transformers", checkpointing=True, attention="eager"),
        dict(method="lora", library="minilora", checkpointing=True, attention="eager"),
        dict(
            method="lora",
            library="transformers",
            checkpointing=False,
            detour="plain",
            precision="autocast",
        ),
        dict(method="int8", library="transformers", checkpointing=True),
        dict(method="qlora", library="minilora", checkpointing=False, targets="q_proj,v_proj"),
        dict(
            method="qlora",
            library="transformers",
            checkpointing=True,
            detour="plain",
            precision="fp32",
        ),
    ],
    ids=lambda settings: f"{settings['method']}-{settings['library']}",
)
def test_the_peak_on_paper_is_the_ledgers_within_one_percent(settings):
    if settings["library"] == "transformers":
        pytest.importorskip("transformers")
    setup = make(
        replace(configurations.SMALL, layers=2), batch=2, seq=192, rank=16, device="cpu", **settings
    )
    ledger, budget = measure(setup, steps=1), estimate(setup)
    assert budget.peak_allocated == pytest.approx(ledger.peak, rel=0.01)


def test_all_configurations_of_the_file_still_agree_within_one_percent(rows):
    setups = {configurations.name_of(setup): setup for setup in configurations.configurations()}
    assert set(rows) == set(setups) and len(rows) >= 100, (
        "run benchmarks/memory/memory.py: its configurations changed"
    )
    for name, setup in setups.items():
        assert estimate(setup).peak_allocated == pytest.approx(rows[name]["ledger"], rel=0.01), name
    sizes = [setup.shape.parameters for setup in setups.values()]
    assert min(sizes) < 25e6 and max(sizes) > 65e9
    found = json.loads(file.RESULTS.read_text(encoding="utf-8"))["summary"]
    assert found["rows"] == found["within_1_percent"] == len(rows) and found["worst_error"] <= 0.01


@pytest.mark.parametrize(
    "model, method, rank, targets, checkpointing, foreach, peak",
    [
        ("llama-7b", "lora", 8, "q_proj,v_proj", False, True, 14.89),
        ("llama-7b", "lora", 8, "q_proj,v_proj", True, True, 12.89),
        ("llama-7b", "qlora", 8, "q_proj,v_proj", True, True, 3.96),
        ("llama-65b", "qlora", 64, "all", True, True, 46.99),
        ("llama-65b", "qlora", 64, "all", True, False, 44.56),
    ],
)
def test_peaks_of_known_runs(rows, model, method, rank, targets, checkpointing, foreach, peak):
    """Figures measured before, with transformers' Llama, SDPA, bf16, batch 1, 512 tokens."""
    setup = make(
        model,
        method=method,
        rank=rank,
        targets=targets,
        checkpointing=checkpointing,
        foreach=foreach,
        device="cpu",
    )
    assert rows[configurations.name_of(setup)]["ledger"] / GIB == pytest.approx(peak, rel=0.01)


def test_a_first_call_is_quick_and_small():
    found = json.loads(file.RESULTS.read_text(encoding="utf-8"))["in_new_process"]
    seven, large = found["llama-7b"], found["llama-65b"]
    assert (
        seven["process_cpu"] < 15 and seven["process_bytes"] < 10**9 and large["process_cpu"] < 120
    )


def test_the_allocators_model_adds_little_to_the_ledger(rows):
    for row in rows.values():
        assert row["ledger"] <= row["allocated"] <= row["reserved"]
        assert (
            row["allocated"] < 1.05 * row["ledger"] + 50e6
            and row["reserved"] < 1.4 * row["ledger"] + 50e6
        ), row["name"]


def test_the_kernel_of_bitsandbytes_decodes_our_weights():
    pytest.importorskip("bitsandbytes")
    q = quantize(
        torch.randn(96, 128, generator=torch.Generator().manual_seed(0)), "nf4", 64, double=True
    )
    assert torch.allclose(by_kernel(q, torch.float32), q.dequantize(torch.float32), atol=1e-6)


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.memory.memory", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_in_small_on_a_processor_and_writes_nothing():
    before = file.RESULTS.read_bytes()
    done = run("--gpu", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("on paper") == 3 and "cpu: 3 configurations" in done.stdout
    assert float(done.stdout.rpartition("worst ")[2].split("%")[0]) < 2
    assert file.RESULTS.read_bytes() == before
    setups = configurations.card_configurations()
    assert len({configurations.name_of(setup) for setup in setups}) >= 12


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_the_script_says_so_in_one_line():
    done = run("--gpu")
    assert (
        done.returncode == 2
        and "no CUDA GPU was found" in done.stderr
        and "Traceback" not in done.stderr
    )

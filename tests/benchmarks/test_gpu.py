"""The benchmark for graphics cards in its small form: every part runs, predictions hold, what fails
is recorded, what is there is kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import gpu, parts, random_llama
from benchmarks.gpu.plan import PARTS, SMALL, TINY
from benchmarks.kit import card
from minilora.budget.catalog import GIB, GPUS, MODELS
from minilora.budget.estimate import estimate
from minilora.budget.measure.fake_run import OneBuffer, Plan, build
from minilora.budget.measure.ledger import watch_steps
from minilora.budget.setup import make
from minilora.quantize import kernels
from tools.project import ROOT

LIBRARIES = ("transformers", "peft", "bitsandbytes")


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.gpu", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def options(**given):
    return argparse.Namespace(
        **{
            "device": "cpu",
            "tiny": True,
            "parts": ["a1", "b65"],
            "out": None,
            "fresh": False,
            "cap_gb": None,
            "limit": 240.0,
            "to": None,
        }
        | given
    )


def in_this_process(name, given):
    """In place of `gpu.in_new_process`, where the libraries are loaded already."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        gpu.child(name, argparse.Namespace(**vars(given) | {"to": file.name}))
        record = json.loads(Path(file.name).read_text(encoding="utf-8"))
    return record | {"wall_seconds": record["seconds"], "date": "today"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The file of two calls, with a part of each kind: the second goes on with what the command,
    whose part ran in a process of its own, has left.
    """
    for library in LIBRARIES:
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("gpu")
    done = call("--device", "cpu", "--tiny", "--parts", "b65", "--out", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "in_new_process", in_this_process)
        patch.setattr(parts, "ENOUGH", 600.0)  # every step, however busy the machine is
        assert gpu.run(options(out=str(folder))) == 0
    return folder / "gpu-cpu-tiny.json"


@pytest.mark.slow
def test_the_file_says_on_what_when_and_with_what_it_was_measured(measured):
    found = json.loads(measured.read_text())
    assert (
        list(found["parts"]) == ["a1", "b65"]
        and found["device"]["name"] == "cpu"
        and found["seed"] == 0
        and found["date"]
    )
    assert all(found["versions"][name] for name in ("python", "torch", *LIBRARIES)) and found[
        "command"
    ].startswith("python -m benchmarks.gpu.gpu")
    for record in found["parts"].values():
        assert (
            record["status"] == "done"
            and record["date"]
            and record["wall_seconds"] >= record["seconds"] > 0
        )
        assert {"shape", "batch", "seq", "runs", "parameters", "seed", "versions"} <= set(
            record["settings"]
        )


@pytest.mark.slow
def test_a_step_is_timed_beside_the_libraries_from_the_same_numbers(measured):
    record = json.loads(measured.read_text())["parts"]["a1"]
    assert set(record["contenders"]) == {"ours", "theirs", "theirs under autocast"}
    for each in record["contenders"].values():
        assert each["status"] == "done" and len(each["step_seconds"]) >= 3 and each["allocated"] > 0
        middle = sorted(each["step_seconds"])[len(each["step_seconds"]) // 2]
        assert record["tokens"] / each["tokens_per_second"] <= middle + 1e-4
        assert each["losses"][-1] < each["losses"][0] - 0.1
    ours, theirs = record["contenders"]["ours"], record["contenders"]["theirs"]
    # on a machine that is busy one side has time for fewer
    both = min(len(ours["losses"]), len(theirs["losses"]))
    assert (
        both >= 6
        and ours["losses"][:both] == pytest.approx(theirs["losses"][:both], abs=2e-3)
        and record["beside"]["first_losses_differ_by"] < 1e-4
    )
    assert abs(ours["error_of_prediction"]) < 0.02
    peers = [theirs, record["contenders"]["theirs under autocast"]]
    assert record["beside"]["peak"] == ours["allocated"] / min(each["allocated"] for each in peers)
    assert record["beside"]["speed"] == ours["tokens_per_second"] / max(
        each["tokens_per_second"] for each in peers
    )


def test_training_under_a_cap_stays_under_it_falls_and_was_predicted(measured):
    record = json.loads(measured.read_text())["parts"]["b65"]
    assert [each["rank"] for each in record["trainings"]] == [16, 4]
    for each in record["trainings"]:
        assert (
            len(each["losses"]) == 5
            and each["falls"]
            and each["losses"][-1] < each["losses"][0] - 0.02
        )
        assert (
            abs(each["error_of_prediction"]) < 0.02
            and each["error_of_prediction"] == each["predicted"] / each["allocated"] - 1
        )
        cap = each["cap"]
        assert each["under_cap"] and cap["enforced"] and each["allocated"] <= cap["bytes"]
        assert (
            cap["GB"] == round(cap["bytes"] / 1e9, 3)
            and cap["GiB"] == round(cap["bytes"] / GIB, 3)
            and cap["means"]
        )
    # one base, an adapter that is 0
    assert record["trainings"][0]["losses"][0] == pytest.approx(
        record["trainings"][1]["losses"][0], abs=1e-5
    )


def test_a_second_call_measures_only_what_is_not_done(measured, monkeypatch, tmp_path):
    path = tmp_path / measured.name
    found = json.loads(measured.read_text())
    found["parts"]["b65"]["status"] = "partial"
    path.write_text(json.dumps(found))
    asked = []

    def instead(name, given):
        asked.append(name)
        return {"status": "failed", "error": "as told", "wall_seconds": 0.0}

    monkeypatch.setattr(gpu, "in_new_process", instead)
    assert gpu.run(options(out=str(tmp_path))) == 1 and asked == ["b65"]
    again = json.loads(path.read_text())
    assert (
        again["parts"]["a1"] == found["parts"]["a1"] and again["parts"]["b65"]["error"] == "as told"
    )
    asked.clear()
    # other settings: another measurement
    gpu.run(options(out=str(tmp_path), parts=["a1"], cap_gb=1.0))
    gpu.run(options(out=str(tmp_path), parts=["a1"], fresh=True))
    assert asked == ["a1", "a1"]


def test_out_of_memory_is_recorded_as_such():
    record = parts.memory(TINY["b7"], options(cap_gb=0.003))
    (training,) = record["trainings"]
    assert (
        record["status"] == "partial"
        and training["status"] == "out of memory"
        and "the cap is 3,000,000" in training["error"]
    )
    assert training["cap"]["bytes"] == 3_000_000 < training["predicted"]
    assert "out of memory" in gpu.lines(record | {"wall_seconds": 1.0})[0]


def test_a_process_that_takes_too_long_is_recorded():
    record = gpu.in_new_process("b7", options(limit=0.05))
    assert (
        record["status"] == "killed"
        and "stopped after 0.05 s" in record["error"]
        and record["date"]
    )
    assert gpu.lines(record)[-1].startswith("killed in")


@pytest.mark.slow
def test_without_bitsandbytes_ours_is_measured_and_the_peer_recorded_as_not_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    record = parts.speed(TINY["a3"], options())
    assert record["status"] == "partial" and record["beside"] == {}
    assert (
        record["contenders"]["ours"]["status"] == "done"
        and record["contenders"]["ours"]["tokens_per_second"] > 0
    )
    for name in ("theirs", "theirs under autocast"):
        assert (
            record["contenders"][name]["status"] == "not run"
            and "bitsandbytes" in record["contenders"][name]["error"]
        )
    assert "not run" in "\n".join(gpu.lines(record | {"wall_seconds": 1.0}))


def test_what_breaks_is_recorded_with_its_place():
    record = parts.attempt(lambda: {"x": 1 / 0})
    assert (
        record["status"] == "failed"
        and record["error"].startswith("ZeroDivisionError")
        and "1 / 0" in "\n".join(record["where"])
    )
    assert parts.attempt(lambda: {"x": 1}) == {"status": "done", "x": 1}


def test_the_base_is_the_same_through_the_operations_of_a_gpu(monkeypatch):
    """Quantized and decoded by plain torch operations, as on a card without bitsandbytes: the same
    losses to the bit.
    """
    setup = parts.setup_of(TINY["b7"], 4, "cpu")

    def losses():
        trainer = parts.Trainer(random_llama.ours(setup, "cpu", 0, one_buffer=False), setup)
        trainer.steps(2)
        return trainer.losses

    by_processor = losses()
    monkeypatch.setattr(kernels, "on_cpu", lambda tensor: False)
    assert losses() == by_processor


@pytest.mark.slow
def test_the_counter_sees_what_the_ledger_sees_and_holds_to_its_cap():
    setup = make(
        SMALL,
        method="qlora",
        rank=4,
        seq=32,
        library="minilora",
        foreach=False,
        device="cpu",
        precision="fp32",
    )
    model = random_llama.ours(setup, "cpu", 0)
    assert {type(layer.base) for layer in model.modules() if hasattr(layer, "lora_A")} == {
        OneBuffer
    }
    peak = card.peak_of(lambda: parts.Trainer(model, setup).steps(2), model)
    assert (
        peak.allocated
        == pytest.approx(watch_steps(build(Plan(setup)), Plan(setup)).peak, rel=0.002)
        and peak.reserved is None
    )
    with pytest.raises(MemoryError, match="the cap is 100"):
        card.peak_of(lambda: torch.zeros(30), torch.nn.Linear(2, 2), 100)
    assert card.peak_of(lambda: torch.zeros(10), torch.nn.Linear(2, 2), 100).allocated == 64


@pytest.mark.parametrize("name", PARTS)
def test_every_shape_stands_on_meta_under_the_same_names_in_both_libraries(name):
    pytest.importorskip("transformers")
    part = PARTS[name]
    found = {}
    for library in ("minilora", "transformers"):
        setup = make(
            part.shape,
            method="qlora",
            rank=part.runs[0][0],
            batch=part.batch,
            seq=part.seq,
            library=library,
        )
        model = random_llama.skeleton(setup)
        assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
        found[library] = {key: tuple(p.shape) for key, p in model.named_parameters()}
        assert sum(p.numel() for p in model.parameters()) == part.shape.parameters
    assert found["minilora"] == found["transformers"]


def test_caps_are_what_they_say_and_every_prediction_fits_under_its_own():
    assert card.card_cap(24).bytes == GPUS["L4"].usable - 512 * 2**20 < 24e9 - 512 * 2**20
    assert card.card_cap(48).bytes == GPUS["RTX A6000"].usable - 512 * 2**20
    assert card.decimal_cap(48).bytes + 512 * 2**20 == 48 * 10**9
    for part in PARTS.values():
        for rank, cap in part.runs:
            if cap:
                peak = estimate(
                    part.shape,
                    method="qlora",
                    rank=rank,
                    batch=part.batch,
                    seq=part.seq,
                    library="minilora",
                    foreach=False,
                ).peak_allocated
                # 2 % of the weights to spare
                assert peak + 2 * 2**25 + part.shape.parameters // 50 < parts.CAPS[cap]().bytes, (
                    part.shape.name,
                    rank,
                )
    assert PARTS["b20"].shape.parameters == pytest.approx(
        MODELS["gpt-neox-20b"].parameters, rel=2e-4
    )


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--parts", "c1"], "there is no part c1"),
        (["--device", "cpu"], "add --tiny"),
        (["--device", "cpu", "--tiny"], "--out DIR"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_one_line(arguments, told):
    done = call(*arguments)
    assert done.returncode == 2 and told in done.stderr

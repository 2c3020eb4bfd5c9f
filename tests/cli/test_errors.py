"""Bad input: one line that names the value and the remedy, exit code 2, nothing half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minilora.cli.main import main
from minilora.train.run_folder import RunFolder

GOOD = '{"prompt": "say a", "response": "a"}\n'


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.jsonl").write_text(GOOD * 8)
    return folder


@pytest.fixture
def world(tiny_folder, data, tmp_path):
    """What the command lines below name: {tiny}, {data}, {out}, {tmp}."""
    return {"tiny": tiny_folder, "data": data, "out": tmp_path / "out", "tmp": tmp_path}


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def complaint(capsys, argv, world):
    """Run, and return the one line on standard error."""
    before = files(world["tmp"])
    code = main([str(part).format(**world) for part in argv.split(" ")])
    captured = capsys.readouterr()
    assert code == 2, captured
    assert (
        captured.err.startswith("minilora: ")
        and captured.err.count("\n") == 1
        and "Traceback" not in captured.err
    )
    assert files(world["tmp"]) == before, "something was written"
    return captured.err


FINETUNE = "finetune --model {tiny} --data {data} --out {out} --steps 2"
CASES = {
    "no such command": ("tune", "no command 'tune'.*finetune"),
    "no such flag": ("finetune --rnak 8 --out {out}", "--rnak.*--help"),
    "no number": (f"{FINETUNE} --rank eight", "--rank.*eight"),
    "no out": ("finetune --data {data}", "--out"),
    "no data": ("finetune --model {tiny} --out {out}", "--data is missing"),
    "missing data": (
        "finetune --model {tiny} --data {tmp}/nowhere --out {out}",
        "no data at .*nowhere",
    ),
    "missing model": (
        "finetune --model {tmp}/nowhere --data {data} --out {out}",
        "no model .*nowhere.*tiny",
    ),
    "a word as model": (
        "finetune --model smollm --data {data} --out {out}",
        "no model 'smollm'.*owner/name",
    ),
    "model is a file": (
        "finetune --model {data}/train.jsonl --data {data} --out {out}",
        "train.jsonl",
    ),
    "model is data": (
        "finetune --model {data} --data {data} --out {out}",
        "tokenizer.json|config.json",
    ),
    "rank 0": (f"{FINETUNE} --rank 0", "rank is 0.*from 1"),
    "rank above": (f"{FINETUNE} --rank 65", "rank 65 .*at most"),
    "target nothing": (f"{FINETUNE} --targets q_prj", "q_prj.*q_proj"),
    "target no regex": (f"{FINETUNE} --targets (q", r"\(q"),
    "alpha": (f"{FINETUNE} --alpha 0", "alpha is 0"),
    "dropout": (f"{FINETUNE} --dropout 1", "dropout is 1"),
    "method": (f"{FINETUNE} --method qlra", "qlra.*qlora"),
    "code": (f"{FINETUNE} --code nf5", "nf5.*nf4"),
    "code of lora": (f"{FINETUNE} --method lora --code nf4", "--code nf4.*--method lora.*qlora"),
    "code of int8": (f"{FINETUNE} --method int8 --code nf4", "--code nf4.*--method int8.*qlora"),
    "code llm.int8": (f"{FINETUNE} --code llm.int8", "llm.int8.*--method int8"),
    "int8 pissa": (f"{FINETUNE} --method int8 --init pissa", "pissa.*Int8Linear.*--method lora"),
    "steps": (f"{FINETUNE} --steps 0", "steps is 0"),
    "lr": (f"{FINETUNE} --lr nan", "lr is nan"),
    "batch": (f"{FINETUNE} --batch 0", "--batch is 0; give a whole number from 1 to"),
    "clip": (f"{FINETUNE} --clip -1", "--clip is -1.0; give a number from 0 to"),
    "seq 0": (f"{FINETUNE} --seq 0", "--seq is 0; give a whole number from 2 to"),
    "lr above": (f"{FINETUNE} --lr -1", "lr is -1"),
    "seq above": (f"{FINETUNE} --seq 257", "--seq is 257.*256"),
    "seq too short": (f"{FINETUNE} --seq 3", "example 1.*raise --seq"),
    "pissa_niter dora": (
        f"{FINETUNE} --method lora --variant dora --init pissa_niter_4",
        "pissa_niter_4.*--variant dora.*--init pissa",
    ),
    "qlora loftq rounds": (
        f"{FINETUNE} --init loftq_niter_3",
        "loftq_niter_3.*choose loftq, or --method lora",
    ),
    "lora_plus": (f"{FINETUNE} --lora-plus 0.5", "--lora-plus is 0.5.*16"),
    "full lora_plus": (f"{FINETUNE} --method full --lora-plus 4", "--lora-plus.*full"),
    "full with rank": (f"{FINETUNE} --method full --rank 4", "--rank.*full"),
    "device": (f"{FINETUNE} --device tpu7", "tpu7"),
    "out below a file": (
        "finetune --model {tiny} --data {data} --out {data}/train.jsonl/run",
        "cannot write.*another --out",
    ),
    "out in proc": (
        "finetune --model {tiny} --data {data} --out /proc/run",
        "cannot write /proc/run.*another --out",
    ),
    "evaluate text": ("evaluate --model {tiny} --data {tmp}/text.jsonl", "only `text`"),
    "evaluate limit": ("evaluate --model {tiny} --data {data} --limit 0", "--limit is 0"),
    "evaluate split": ("evaluate --model {tiny} --data {data} --split tset", "tset"),
    "no adapter": (
        "evaluate --model {tiny} --data {data} --adapter {tmp}/nowhere",
        "no adapter at",
    ),
    "adapter is data": (
        "evaluate --model {tiny} --data {data} --adapter {data}",
        "adapter_config.json",
    ),
    "merge nothing": ("merge --model {tiny} --out {out}", "--adapter"),
    "merge over": ("merge --model {tiny} --adapter {tmp} --out {data}", "not empty"),
    "generate what": ("generate --model {tiny}", "--prompt"),
    "generate none": ("generate --model {tiny} --prompt x --max-new 0", "--max-new is 0"),
    "generate cold": ("generate --model {tiny} --prompt x --temperature -1", "temperature"),
    "generate top-k": (
        "generate --model {tiny} --prompt x --temperature 1 --top-k 0",
        "--top-k is 0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_value_is_named(capsys, world, name):
    import re

    (world["tmp"] / "text.jsonl").write_text('{"text": "x"}\n')
    argv, message = CASES[name]
    line = complaint(capsys, argv, world)
    assert re.search(message, line), line


LINES = {
    "not json": ("nonsense", "line 3 cannot be read as JSON"),
    "lacks a field": ('{"prompt": "x"}', "line 3 lacks the field `response`"),
    "other fields": ('{"question": "x", "answer": "y"}', "line 3 has the fields"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_bad_line_is_named_with_its_number(capsys, world, name):
    line, message = LINES[name]
    (world["data"] / "train.jsonl").write_text(GOOD * 2 + line + "\n" + GOOD)
    said = complaint(capsys, FINETUNE, world)
    assert message in said and "train.jsonl" in said


def test_an_empty_file_is_named(capsys, world):
    (world["data"] / "train.jsonl").write_text("")
    assert "train.jsonl is empty" in complaint(capsys, FINETUNE, world)


# -- damaged checkpoints


def edited(source, target, edit):
    """A copy of the model folder whose tensors went through `edit`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def nan(tensors):
    tensors["model.norm.weight"][3] = float("nan")


def narrow(tensors):
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][
        :, :32
    ].contiguous()


def lacking(tensors):
    del tensors["model.layers.1.self_attn.v_proj.weight"]


@pytest.mark.parametrize(
    "edit, message", [(nan, "norm.weight"), (narrow, "up_proj"), (lacking, "v_proj")]
)
def test_a_wrong_checkpoint_is_named(capsys, world, edit, message):
    edited(world["tiny"], world["tmp"] / "model", edit)
    world["tiny"] = world["tmp"] / "model"
    assert message in complaint(capsys, FINETUNE, world)


def test_a_truncated_checkpoint_is_named(capsys, world):
    shutil.copytree(world["tiny"], world["tmp"] / "model")
    path = world["tmp"] / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    world["tiny"] = path.parent
    assert "damaged or cut short" in complaint(capsys, FINETUNE, world)


def test_a_hub_name_without_network(capsys, world, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(world["tmp"]))
    line = complaint(
        capsys, "finetune --model nobody/nothing-at-all --data {data} --out {out}", world
    )
    assert "cannot fetch 'nobody/nothing-at-all'" in line and "network" in line


# -- runs that are there already


def test_a_run_is_not_lost_by_typing_the_command_again(capsys, world):
    argv = [part.format(**world) for part in FINETUNE.split()]
    assert main(argv) == 0
    capsys.readouterr()
    assert "--overwrite" in complaint(capsys, FINETUNE, world)
    assert "--rank 4 is not what this run began with (8)" in complaint(
        capsys, f"{FINETUNE} --resume --rank 4", world
    )
    (world["data"] / "train.jsonl").write_text(GOOD * 9)
    assert "has changed since" in complaint(capsys, f"{FINETUNE} --resume", world)
    assert main([*argv, "--overwrite"]) == 0


def test_an_adapter_given_as_model(capsys, world):
    assert main([part.format(**world) for part in FINETUNE.split()]) == 0
    capsys.readouterr()
    assert "holds an adapter" in complaint(capsys, "generate --model {out} --prompt x", world)


# -- in a process of its own


def start(argv, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "minilora", *map(str, argv)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **more
    )


@pytest.mark.slow
def test_as_a_process_too(world):
    process = start(
        [
            "finetune",
            "--model",
            world["tiny"],
            "--data",
            world["tmp"] / "nowhere",
            "--out",
            world["out"],
        ]
    )
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and err.count("\n") == 1 and "nowhere" in err


def small_files_only():
    """No file may grow beyond 45 kB: what a full disk looks like, without one. Python ignores
    SIGXFSZ already.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (45_000, 45_000))


FULL = {
    "the metrics do not fit any more": (1, range(40, 361)),
    "only the first state fits": (16, [0]),
    "no state fits": (48, [None]),
}


@pytest.mark.slow
@pytest.mark.parametrize("rank, states", FULL.values(), ids=FULL)
def test_a_full_disk_leaves_the_last_good_state(world, rank, states):
    argv = ["finetune", "--model", world["tiny"], "--data", world["data"], "--out", world["out"]]
    argv += [
        "--steps",
        "360",
        "--save-every",
        "40",
        "--rank",
        str(rank),
        "--batch",
        "1",
        "--method",
        "lora",
        "--targets",
        "q_proj",
    ]
    process = start(argv, preexec_fn=small_files_only)
    _, err = process.communicate(timeout=120)
    assert (
        process.returncode == 2
        and err.count("\n") == 1
        and "cannot write" in err
        and "space" in err
    ), err
    lines = (world["out"] / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines), "half a line"
    assert not list(world["tmp"].rglob("*.part"))
    _, found = RunFolder(world["out"]).last_good() or (None, {"step": None})
    assert found["step"] in states and not (world["out"] / "adapter_model.safetensors").exists()
    assert main(["finetune", "--out", str(world["out"]), "--resume"]) == 0
    records = [
        json.loads(line) for line in (world["out"] / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 361))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_answers_to_a_full_device(world):
    with open("/dev/full", "w") as full:
        command = [
            sys.executable,
            "-m",
            "minilora",
            "evaluate",
            "--model",
            str(world["tiny"]),
            "--data",
            str(world["data"]),
            "--limit",
            "1",
        ]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "space" in done.stderr, (
        done.stderr
    )


@pytest.mark.slow
def test_ctrl_c_names_resume(world):
    argv = [
        "finetune",
        "--model",
        world["tiny"],
        "--data",
        world["data"],
        "--out",
        world["out"],
        "--steps",
        "100000",
        "--save-every",
        "100000",
    ]
    process = start(argv)
    metrics = world["out"] / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while (
        not (metrics.is_file() and metrics.read_text().count('"loss"') > 3)  # steps, no validation
        and time.monotonic() < deadline
        and process.poll() is None
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 130
        and err.count("\n") == 1
        and f"--out {world['out']} --resume" in err
    ), err
    _, state = RunFolder(world["out"]).last_good()
    done = state["step"]
    assert done > 3
    logged = [
        json.loads(line)["step"]
        for line in metrics.read_text().splitlines()
        if "loss" in json.loads(line)
    ]
    assert logged == list(range(1, done + 1))


def test_a_warning_of_ours_is_one_line():
    """What a file's owner should know, such as an edited adapter_config.json, and no more."""
    script = (
        "import warnings; from minilora.cli.main import main; from minilora.errors import "
        "MiniloraWarning; main(['--version']); warnings.warn('lora_alpha\\n was 8', "
        "MiniloraWarning); warnings.warn('of another library')"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr
    first, second = told.strip().splitlines()[:2]
    assert first == "minilora: warning: lora_alpha was 8" and "UserWarning: of another" in second

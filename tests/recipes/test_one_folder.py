"""What a folder holds after kills, full disks and two commands at once: the last good state, whole,
and a command that is run again comes to the same bytes. (test_resume.py kills a LoRA run, and
test_breaks.py fills a disk under it; here are the commands that write whole models, and pairs.)
"""

import json
import os
import random
import shutil
import signal
import sys
import time

import pytest
from processes import context, finish, metrics, start

from minilora import lora
from minilora.cli.main import main
from minilora.llama import Llama
from minilora.recipes.merge import RECORD
from minilora.text import Tokenizer

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs SIGKILL and Linux's limits"),
    pytest.mark.slow,
]

OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod")


@pytest.fixture(scope="module")
def top(tiny_folder, tmp_path_factory):
    """A model, data and an adapter; read only."""
    top = tmp_path_factory.mktemp("one-folder")
    shutil.copytree(tiny_folder, top / "model")
    (top / "data").mkdir()
    rows = [json.dumps({"prompt": f"say {c}", "response": c}) + "\n" for c in "abcdefgh" * 4]
    for split in ("train", "valid", "test"):
        (top / "data" / f"{split}.jsonl").write_text("".join(rows))
    lora.save_adapter(lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2), top / "adapter")
    return top


def command(top, kind, out, *more):
    words = {
        "lora": f"finetune --model {top}/model --data {top}/data --method lora --steps 6 "
        "--save-every 2 --batch 4 --dropout 0.1",
        "full": f"finetune --model {top}/model --data {top}/data --method full --steps 4 "
        "--save-every 2 --batch 4",
        "merge": f"merge --model {top}/model --adapter {top}/adapter --data {top}/data",
        "evaluate": f"evaluate --model {top}/model --data {top}/data --limit 4",
    }[kind]
    return [*words.split(), "--out", str(out), *map(str, more)]


def killed_at(argv, fatal, report=None):
    """The command, killed at its `fatal`-th operation on a file below the folder of its --out."""
    seen, below = 0, os.path.dirname(argv[argv.index("--out") + 1])

    def hook(event, given):
        nonlocal seen
        if event in OPERATIONS and isinstance(given[0], (str, os.PathLike)):
            if below in str(given[0]):
                seen += 1
                if seen == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    code = main(argv)
    if report is not None:
        report.put(seen)
    return code


def whole(folder):
    """The bytes of a model's folder, which must load, by name; what a clock is in is left out."""
    Llama.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    names = sorted(each.name for each in folder.iterdir() if each.is_file())
    assert not [name for name in names if name.endswith((".part", ".lock"))]
    said = ("run.json", "metrics.jsonl", "loss.png")
    return {name: (folder / name).read_bytes() for name in names if name not in said}


@pytest.mark.parametrize("kind", ["merge", "into an empty folder", "full"])
def test_a_killed_model_is_whole_or_not_there(top, tmp_path, kind):
    """Killed anywhere, also between the files that are moved: there is no model that lacks its
    tokenizer, and the same command brings it to its end.
    """
    verb, empty = kind.replace("into an empty folder", "merge"), kind.startswith("into")
    report, alone = context().SimpleQueue(), tmp_path / "alone" / "out"
    (alone if empty else alone.parent).mkdir(parents=True)
    assert finish(killed_at, command(top, verb, alone), -1, report) == 0
    operations, wanted = report.get(), whole(alone)
    last = random.Random(3).sample(range(operations * 2 // 3, operations + 1), 5)
    for fatal in (*random.Random(4).sample(range(1, operations), 2), *last):
        out = tmp_path / str(fatal) / "out"
        (out if empty else out.parent).mkdir(parents=True)
        assert finish(killed_at, command(top, verb, out), fatal) == -signal.SIGKILL
        if (out / "config.json").exists():
            assert whole_if_named(out) == wanted
            if not (out / "run.json").exists() and not (out / RECORD).exists():
                continue  # it was at its end
        again = command(top, verb, out, *(["--resume"] if verb == "full" else []))
        assert finish(main, again) == 0, fatal
        assert whole(out) == wanted
        assert [each.name for each in out.parent.iterdir()] == ["out"]


def whole_if_named(out):
    """As `whole`, with the unfinished left out."""
    Llama.from_pretrained(out), Tokenizer.from_pretrained(out)
    skipped = ("run.json", "metrics.jsonl", "loss.png")
    return {
        each.name: each.read_bytes()
        for each in out.iterdir()
        if each.is_file() and not each.name.startswith(".") and each.name not in skipped
    }


def test_a_killed_overwriting_leaves_no_mixture(top, tmp_path):
    """The old adapter goes before the new run begins: never the one's weights under the other's
    run.json.
    """
    alone = tmp_path / "alone"
    assert finish(main, command(top, "lora", alone, "--seed", 1)) == 0
    wanted = (alone / "adapter_model.safetensors").read_bytes()
    for fatal in random.Random(5).sample(range(20, 110), 5):
        out = tmp_path / str(fatal) / "out"
        shutil.copytree(alone, out)
        anew = command(top, "lora", out, "--seed", 2, "--overwrite")
        if finish(killed_at, anew, fatal) == 0:
            continue
        about = json.loads((out / "run.json").read_text())
        if (out / "adapter_config.json").exists() and about["settings"]["seed"] == 1:
            assert (out / "adapter_model.safetensors").read_bytes() == wanted
        if about["settings"]["seed"] == 2 and (out / "adapter_model.safetensors").exists():
            assert (out / "adapter_model.safetensors").read_bytes() != wanted
        assert finish(main, anew) == 0


# -- two at once


def delayed(argv, seconds):
    time.sleep(seconds)
    return main(argv)


PAIRS = {
    "two runs": ("lora", ["--seed", 1], "lora", ["--seed", 2]),
    "two runs, one a moment later": ("lora", ["--seed", 3], "lora", ["--seed", 4]),
    "a run and all weights": ("lora", [], "full", []),
    "two that overwrite": ("lora", ["--seed", 1, "--overwrite"], "lora", ["--overwrite"]),
    "a run and its resume": ("lora", [], "lora", ["--resume"]),
    "two merges": ("merge", [], "merge", []),
    "two merges, one in 4 bits": ("merge", [], "merge", ["--requantize", "nf4"]),
    "a merge and a run": ("merge", [], "full", []),
    "two evaluations": ("evaluate", [], "evaluate", ["--limit", 2]),
    "two that replace answers": ("evaluate", [], "evaluate", ["--overwrite"]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_of_two_at_once_one_is_told_and_the_other_is_undisturbed(top, tmp_path, name):
    """The second is refused, or it came when the first had ended and went on from there; whatever
    the order, the folder is that of a command that was alone.
    """
    one, some, other, more = PAIRS[name]
    out, alone = tmp_path / "both" / "out", tmp_path / "alone"
    out.parent.mkdir()
    commands = [command(top, one, out, *some), command(top, other, out, *more)]
    wait = [0.0, 0.3 if "later" in name or "resume" in name else 0.0]
    errors = [tmp_path / "err0", tmp_path / "err1"]
    started = [
        start(delayed, argv, seconds, err=err) for argv, seconds, err in zip(commands, wait, errors)
    ]
    for process in started:
        process.join()
    codes = [process.exitcode for process in started]
    assert sorted(codes) in ([0, 2], [0, 0]), codes
    told = [line for err in errors for line in err.read_text().splitlines() if "minilora:" in line]
    told = [line for line in told if "is no folder here" not in line]
    if codes == [0, 0]:  # one had ended before the other looked
        assert "overwrite" in name or "resume" in name or "replace" in name
    else:
        assert len(told) == 1 and (
            "another command is writing" in told[0]
            or "holds a run already" in told[0]
            or "is there already" in told[0]
        ), told
    left = [each.name for each in out.parent.iterdir()]
    assert left == ["out"], left
    winner = codes.index(0)
    kind, typed = ((one, some), (other, more))[winner]
    if codes == [0, 2] or codes == [2, 0]:
        typed = [word for word in typed if word != "--resume"]
        assert finish(main, command(top, kind, alone, *typed)) == 0
        assert_equal(out, alone, kind)


def assert_equal(out, alone, kind):
    if kind == "evaluate":
        assert out.read_bytes() == alone.read_bytes()
        return
    names = {each.name for each in out.iterdir() if each.is_file()}
    assert names == {each.name for each in alone.iterdir() if each.is_file()}
    for name in names - {"run.json", "metrics.jsonl", "loss.png"}:
        assert (out / name).read_bytes() == (alone / name).read_bytes(), name
    if kind in ("lora", "full"):
        assert metrics(out) == metrics(alone)


# -- a full disk


def with_small_files(argv, most):
    """The command where no file may grow beyond `most` bytes: a full disk, without one."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    return main(argv)


@pytest.mark.parametrize("kind", ["full", "merge"])
@pytest.mark.parametrize("most", [1_000, 3_000, 10_000, 150_000, 300_000])
def test_a_full_disk_leaves_no_half_of_a_model(top, tmp_path, kind, most):
    """Config, tokenizer, weights or states do not fit: one line, and the same command works when
    there is room.
    """
    out, err = tmp_path / "disk" / "out", tmp_path / "err"
    out.parent.mkdir()
    code = finish(with_small_files, command(top, kind, out), most, err=err)
    told = [line for line in err.read_text().splitlines() if "this run will need" not in line]
    assert code == 2 and len(told) == 1 and "cannot write" in told[0], told
    assert not (out / "config.json").exists() and not list(tmp_path.rglob("*.part"))
    assert finish(main, command(top, kind, out, *(["--resume"] if kind == "full" else []))) == 0
    Llama.from_pretrained(out), Tokenizer.from_pretrained(out)

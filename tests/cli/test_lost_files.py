"""Ways to lose a file: a command that is mistyped, and what stood there. Afterwards it stands there
still, to the byte; the command has refused in one line, or has gone its way beside it.
"""

import json
import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from minilora import lora
from minilora.cli.main import main
from minilora.llama import Llama

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")

ROW = '{"prompt": "say a", "response": "a"}\n'


def tree(folder):
    """Every path below, with what it is and holds."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            held = os.readlink(path)
        else:
            held = path.read_bytes() if stat.S_ISREG(mode) else None
        found[str(path.relative_to(folder))] = (stat.S_IFMT(mode), held)
    return found


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """A model, data, an adapter of PEFT's kind, and the folder of a run that has ended."""
    top = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_folder, top / "model")
    (top / "data").mkdir()
    for split in ("train", "test"):
        (top / "data" / f"{split}.jsonl").write_text(ROW * 4)
    lora.save_adapter(lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2), top / "adapter")
    words = f"finetune --model {top}/model --data {top}/data --steps 1 --batch 2 --method lora"
    assert main([*words.split(), "--out", str(top / "run")]) == 0
    return top


@pytest.fixture
def top(made, tmp_path, monkeypatch):
    """A copy of it, in which the command is typed, below a home folder of its own."""
    home = tmp_path / "home"
    shutil.copytree(made, home / "work", symlinks=True)
    monkeypatch.chdir(home / "work")
    monkeypatch.setenv("HOME", str(home))
    (home / "work" / "out").mkdir()
    (home / "work" / "precious").write_text("mine")
    return home / "work"


def put(path, text="mine"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def arrange(top, there):
    """What a case below puts there, if anything."""
    if isinstance(there, str):
        put(top / there)
    elif there:
        there(top)


def link(path, target="precious"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(path.parent.joinpath(target) if "/" in target else Path.cwd() / target)


TRAIN = "finetune --model model --data data --steps 1 --batch 2 --method lora --out "
FULL = "finetune --model model --data data --steps 1 --batch 2 --method full --out "
ASK = "evaluate --model model --data data --limit 1 --out "
MERGE = "merge --model model --adapter adapter --out "
DRAW = "budget --model llama-7b --picture "

# name → (what is put there: a file of the user's, or a function that does it; the command)
REFUSED = {
    "all weights over the model": (None, FULL + "model"),
    "over the model by a link": (lambda t: link(t / "m", "model"), FULL + "m"),
    "over the model by another spelling": (None, FULL + "out/../model"),
    "an adapter into the model": (None, TRAIN + "model"),
    "a run into the data": (None, TRAIN + "data"),
    "a run into the folder of the data file": (
        None,
        TRAIN.replace("--data data", "--data data/train.jsonl") + "data",
    ),
    "a run into nothing": (None, TRAIN),
    "a run into the current folder": (None, TRAIN + "."),
    "a run into the current folder by its name": (None, TRAIN + "../work"),
    "a run into the home folder": (None, TRAIN + "~"),
    "a run above the current folder": (None, TRAIN + ".."),
    "a run into a file": (None, TRAIN + "precious"),
    "a run below a file": (None, TRAIN + "precious/run"),
    "a run into a pipe": (lambda t: os.mkfifo(t / "pipe"), TRAIN + "pipe"),
    "a run into a link to nothing": (lambda t: link(t / "away", "gone"), TRAIN + "away"),
    "a folder state of the user's": ("out/state/thesis.txt", TRAIN + "out"),
    "the same, to be overwritten": ("out/state/thesis.txt", TRAIN + "out --overwrite"),
    "a file state": ("out/state", TRAIN + "out"),
    "a link state": (lambda t: link(t / "out/state", "run"), TRAIN + "out --overwrite"),
    "a state of another program": (
        "out/state/step-00000000/state.safetensors",
        TRAIN + "out --overwrite",
    ),
    "a state among the run's": ("run/state/step-00000000/notes.txt", TRAIN + "run --overwrite"),
    "an adapter of somebody else's": ("out/adapter_model.safetensors", TRAIN + "out"),
    "the same, to be overwritten, too": (
        "out/adapter_model.safetensors",
        TRAIN + "out --overwrite",
    ),
    "the same, to be gone on with": ("out/adapter_model.safetensors", TRAIN + "out --resume"),
    "a config that is a link": (lambda t: link(t / "out/adapter_config.json"), TRAIN + "out"),
    "metrics of another program": (
        lambda t: put(t / "out/metrics.jsonl", '{"step": 1, "loss": 2}\n'),
        TRAIN + "out",
    ),
    "metrics that are a link": (lambda t: link(t / "out/metrics.jsonl"), TRAIN + "out"),
    "a picture of the user's": ("out/loss.png", TRAIN + "out"),
    "a run.json that is a folder": (lambda t: (t / "out/run.json").mkdir(), TRAIN + "out"),
    "a run.json of another program": (lambda t: put(t / "out/run.json", "{}"), TRAIN + "out"),
    "a model of somebody else's": (lambda t: put(t / "out/config.json", "{}"), FULL + "out"),
    "a tokenizer of somebody else's": (lambda t: put(t / "out/tokenizer.json", "{}"), FULL + "out"),
    "a run, typed once more": (None, TRAIN + "run"),
    "an adapter put in place of the run's": (
        "run/adapter_model.safetensors",
        TRAIN + "run --overwrite",
    ),
    "answers over the data": (None, ASK + "data/test.jsonl"),
    "answers over the data by another name": (
        lambda t: os.link(t / "data/test.jsonl", t / "answers.jsonl"),
        ASK + "answers.jsonl --overwrite",
    ),
    "answers over a file by a folder that is not there": (None, ASK + "new/../precious"),
    "a run into the current folder by one that is not there": (None, TRAIN + "new/.."),
    "answers over a link by a folder that is not there": (
        lambda t: link(t / "a.jsonl"),
        ASK + "new/../a.jsonl --overwrite",
    ),
    "answers as a split of the data": (None, ASK + "data/valid.jsonl"),
    "answers over a link": (lambda t: link(t / "a.jsonl"), ASK + "a.jsonl --overwrite"),
    "answers into a pipe": (lambda t: os.mkfifo(t / "pipe"), ASK + "pipe --overwrite"),
    "answers into a folder": (None, ASK + "out"),
    "answers into a folder to be": (None, ASK + "answers/"),
    "answers over a file": (None, ASK + "precious"),
    "answers over the model's config": (None, ASK + "model/config.json --overwrite"),
    "answers over the adapter": (
        None,
        ASK + "adapter/adapter_model.safetensors --overwrite --adapter adapter",
    ),
    "answers over the metrics": (None, ASK + "run/metrics.jsonl --overwrite --adapter run"),
    "answers into nothing": (None, ASK),
    "answers below a file": (None, ASK + "precious/a.jsonl"),
    "a picture over a file": ("a.svg", DRAW + "a.svg"),
    "a picture over a link": (lambda t: link(t / "a.svg"), DRAW + "a.svg --overwrite"),
    "a picture into a pipe": (lambda t: os.mkfifo(t / "a.png"), DRAW + "a.png --overwrite"),
    "a merge into a full folder": ("out/notes.txt", MERGE + "out"),
    "a merge into the adapter": (None, MERGE + "adapter"),
    "a merge into the model": (None, MERGE + "./model"),
    "a merge into a file": (None, MERGE + "precious"),
    "pretraining into nothing": (None, "pretrain --out "),
    "pretraining into a full folder": ("out/README.md", "pretrain --out out"),
    "pretraining over a model": (None, "pretrain --out model --overwrite"),
    "lessons into nothing": (None, "lessons --no-open "),
    "a lesson that is a link": (
        lambda t: link(t / "out/00-start-here.ipynb"),
        "lessons --no-open out",
    ),
    "a lesson that is a pipe": (
        lambda t: os.mkfifo(t / "out/00-start-here.ipynb"),
        "lessons --no-open out",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_all_stays(capsys, top, name):
    there, command = REFUSED[name]
    arrange(top, there)
    before = tree(top.parent)
    assert main(command.split(" ")) == 2
    told = capsys.readouterr().err
    assert told.startswith("minilora: ") and told.count("\n") == 1, told
    assert tree(top.parent) == before


# the same: the command does its work, and what was there stays
BESIDE = {
    "unfinished files of another program": (
        lambda t: [put(t / ".new.backup.part"), put(t / "new/.run.json.part")],
        TRAIN + "new",
    ),
    "files in the run's folder": (
        lambda t: [put(t / "out/thesis.txt"), put(t / "out/README.md"), put(t / "out/config.json")],
        TRAIN + "out",
    ),
    "notes among the states": ("run/state/notes.txt", TRAIN + "run --overwrite"),
    "answers beside the adapter": ("run/answers.jsonl", ASK + "run/more.jsonl --adapter run"),
    "an empty folder for a merge": (".out.minilora.part", MERGE + "out"),
    "a link to a folder for a run": (lambda t: link(t / "here", "out"), TRAIN + "here"),
    "all weights beside a readme": ("out/README.md", FULL + "out"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_it_works_and_what_was_there_stays(top, name):
    there, command = BESIDE[name]
    arrange(top, there)
    run = {name: held for name, held in tree(top).items() if "run/" not in name}
    notes = tree(top / "run/state").get("notes.txt")
    assert main(command.split(" ")) == 0
    after = tree(top)
    assert {name: after.get(name) for name in run} == run
    assert tree(top / "run/state").get("notes.txt") == notes
    assert not [name for name in after if ".minilora-" in name or name.endswith(".lock")]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write there")
def test_a_run_into_the_root(capsys, top):
    """Never tried by somebody who could lose something, were the code wrong."""
    assert main((TRAIN + "/").split(" ")) == 2
    assert "choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [stat.S_IFCHR, stat.S_IFBLK])
def test_a_device_is_no_place_for_answers(capsys, top, monkeypatch, mode):
    """A real one would be /dev/null, which root can replace."""
    device, lstat = top / "device", os.lstat
    device.write_text("mine")

    def as_device(path, **more):
        found = lstat(path, **more)
        if Path(path).name != "device":
            return found
        return os.stat_result((mode | 0o666, *found[1:]))

    with monkeypatch.context() as change:
        change.setattr(os, "lstat", as_device)
        assert main((ASK + "device --overwrite").split(" ")) == 2
        assert "device: a device is there, and only regular files" in capsys.readouterr().err
        assert main((TRAIN + "device").split(" ")) == 2
    assert device.read_text() == "mine"


# -- run.json


def test_a_damaged_run_json_is_kept_aside_and_a_run_begins(capsys, top):
    for text in ("{", "[]", '{"settings": 5}', '{"settings": {}, "files": {"a": 1}}', "[" * 200000):
        put(top / "out/run.json", text)
        assert main((TRAIN + "out").split(" ")) == 2
        assert "--overwrite" in capsys.readouterr().err
        kept = len(list((top / "out").glob("run.json.bak-*")))
        assert main((TRAIN + "out --overwrite").split(" ")) == 0
        assert (top / "out" / f"run.json.bak-{kept + 1}").read_text() == text
        assert json.loads((top / "out/run.json").read_text())["settings"]["steps"] == 1
        shutil.rmtree(top / "out/state")
        for name in json.loads((top / "out/run.json").read_text())["files"]:
            (top / "out" / name).unlink()
        capsys.readouterr()


def test_a_damaged_run_json_of_a_run_can_be_overwritten(top):
    """Its states say that the files beside them are a run's."""
    put(top / "run/run.json", '{"settings"')
    assert main((TRAIN + "run --overwrite --seed 3").split(" ")) == 0
    assert json.loads((top / "run/run.json").read_text())["settings"]["seed"] == 3


def test_a_run_of_before_is_known_by_its_run_json(top):
    """It did not say yet which files it made."""
    about = json.loads((top / "run/run.json").read_text())
    del about["files"]
    put(top / "run/run.json", json.dumps(about))
    assert main("finetune --out run --resume".split(" ")) == 0
    assert main((TRAIN + "run --overwrite").split(" ")) == 0


@pytest.mark.parametrize(
    "change", [{"seed": 7}, {"lr": 0.5}, {"rank": 4}, {"steps": 3}, {"dropout": 0.5}]
)
def test_the_run_json_of_another_run_is_not_taken(capsys, top, change):
    """Copied from another folder, or changed by hand: the states know whose they are."""
    about = json.loads((top / "run/run.json").read_text())
    about["settings"] |= change
    put(top / "run/run.json", json.dumps(about))
    before = tree(top)
    assert main(["finetune", "--out", "run", "--resume"]) == 2
    told = capsys.readouterr().err
    assert "is of a run with other settings, data or base than" in told and "run.json" in told
    assert tree(top) == before


def test_what_may_change_does_not_make_it_another_run(top):
    assert main(["finetune", "--out", "run", "--resume", "--save-every", "9"]) == 0
    assert main("finetune --out run --resume --batch 1 --accumulate 2".split()) == 0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"rank": "many"}, 'rank is "many", where a whole number belongs'),
        ({"steps": 10**30}, "run.json: --steps is 1000"),
        ({"seed": -1}, "run.json: --seed is -1"),
        ({"checkpointing": 0}, "checkpointing is 0, where true or false belongs"),
        ({"method": "qlra"}, "method is 'qlra'"),
    ],
)
def test_a_wrong_setting_in_run_json_is_named_with_its_file(capsys, top, settings, words):
    about = json.loads((top / "run/run.json").read_text())
    about["settings"] |= settings
    put(top / "run/run.json", json.dumps(about))
    assert main(["finetune", "--out", "run", "--resume"]) == 2
    told = capsys.readouterr().err
    assert "run/run.json" in told and words in told and told.count("\n") == 1


@pytest.mark.parametrize("quantization", ["x", {"code": 4}, {"block": 64}, {"code": "nf4", "a": 1}])
def test_a_wrong_quantization_in_run_json_is_named(capsys, top, quantization):
    about = json.loads((top / "run/run.json").read_text())
    put(top / "run/run.json", json.dumps(about | {"quantization": quantization}))
    argv = "generate --model model --adapter run --prompt x --max-new 1".split()
    assert main(argv) == 2
    told = capsys.readouterr().err
    assert "run.json" in told and "--code none" in told and told.count("\n") == 1
    assert main([*argv, "--code", "none"]) == 0


# -- names of paths


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a\xc3", b"run/\x80/out"])
def test_a_path_that_is_no_utf8_is_refused_before_training(capsys, top, name):
    before = tree(top)
    assert main([*TRAIN.split()[:-1], "--out", os.fsdecode(name)]) == 2
    assert "is no UTF-8 text" in capsys.readouterr().err
    assert tree(top) == before


@pytest.mark.parametrize("name", ["x" * 201, "ä" * 101, "/".join(["d" * 100] * 60), "x\0y"])
def test_a_path_that_is_too_long_or_no_path_gets_one_line(capsys, top, name):
    before = tree(top)
    for argv in (TRAIN.split()[:-1], ASK.split()[:-1]):
        assert main([*argv, "--out", name]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and len(told) < 600, told
    assert tree(top) == before


def test_a_folder_named_with_a_tilde_is_the_home_folders(top):
    assert main((TRAIN + "~/runs/first").split(" ")) == 0
    assert (top.parent / "runs/first/adapter_model.safetensors").is_file() and not (
        top / "~"
    ).exists()

"""The last door: whatever else is raised becomes one line, with exit code 1, and a traceback only
where it is asked for.
"""

import os
import re
import subprocess
import sys

import pytest

from minilora.cli import generate, main
from minilora.errors import MiniloraError


class Panic(BaseException):
    """As a Rust library's panic: no Exception."""


@pytest.fixture(autouse=True)
def as_for_users(monkeypatch):
    monkeypatch.setattr(main, "debugging", False)


def raising(monkeypatch, error):
    def run(args):
        raise error

    monkeypatch.setattr(generate, "run", run)


ARGV = ["generate", "--prompt", "x"]
UNEXPECTED = {
    "ours": (KeyError("a key"), "KeyError: 'a key'"),
    "no Exception": (Panic("called `unwrap()` on `None`"), "Panic: called `unwrap()` on `None`"),
    "without words": (AssertionError(), "AssertionError: no words"),
    "of many lines": (RuntimeError("a\n\tb\r\nc"), "RuntimeError: a b c;"),
    "long": (RuntimeError("x" * 9999), f"RuntimeError: {'x' * 160}…;"),
    "too deep": (RecursionError("maximum depth"), "RecursionError: maximum depth"),
    "half a surrogate": (ValueError("\ud800"), "ValueError: "),
}


@pytest.mark.parametrize("name", UNEXPECTED)
def test_what_is_unexpected_is_one_line(capsys, monkeypatch, name):
    error, words = UNEXPECTED[name]
    raising(monkeypatch, error)
    assert main.main(ARGV) == 1
    told = capsys.readouterr().err
    assert told.startswith("minilora: unexpected: ") and words in told
    assert told.count("\n") == 1 and "run it again with --debug, and report" in told


@pytest.mark.parametrize("place", range(4))
def test_debug_shows_where_wherever_it_stands(capsys, monkeypatch, place):
    raising(monkeypatch, Panic("somewhere"))
    assert main.main([*ARGV[:place], "--debug", *ARGV[place:]]) == 1
    told = capsys.readouterr().err
    assert "Traceback (most recent call last)" in told and "test_last_door.py" in told
    assert told.splitlines()[-1].startswith("minilora: unexpected: Panic: somewhere; report it")


def test_debug_shows_where_a_refusal_comes_from(capsys, monkeypatch):
    raising(monkeypatch, MiniloraError("this is wrong; do that"))
    assert main.main([*ARGV, "--debug"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told and told.endswith("minilora: this is wrong; do that\n")
    assert main.main(ARGV) == 2
    assert capsys.readouterr().err == "minilora: this is wrong; do that\n"


@pytest.mark.parametrize(
    "error, code, words",
    [
        (KeyboardInterrupt(), 130, "minilora: interrupted\n"),
        (SystemExit(3), 3, ""),
        (SystemExit(), 0, ""),
        (SystemExit("a library's words"), 1, ""),
        (MemoryError(), 2, "minilora: the memory is full; "),
        (PermissionError(13, "Permission denied", "/a/file"), 2, "/a/file: Permission denied"),
    ],
)
def test_what_is_known_ends_as_before(capsys, monkeypatch, error, code, words):
    raising(monkeypatch, error)
    assert main.main(ARGV) == code
    told = capsys.readouterr().err
    assert words in told and "unexpected" not in told and "Traceback" not in told


def test_a_test_sees_the_fault_itself(monkeypatch):
    monkeypatch.setattr(main, "debugging", True)
    raising(monkeypatch, Panic())
    with pytest.raises(Panic):
        main.main(ARGV)


def test_a_line_that_repeats_what_was_typed_is_cut(capsys):
    assert main.main([*ARGV, "--" + "x" * 10_000]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and len(told) < 2100 and "--help" in told


BROKEN = """
import sys
from minilora.cli import main
from minilora.recipes import load
def broken(*given):
    raise BaseException("from below")
load.load = broken
sys.exit(main.main(sys.argv[1:]))
"""


def test_as_a_process(tmp_path):
    for more in ([], ["--debug"]):
        done = subprocess.run(
            [sys.executable, "-c", BROKEN, *ARGV, *more], capture_output=True, text=True
        )
        assert done.returncode == 1 and ("Traceback" in done.stderr) == bool(more)
        assert "minilora: unexpected: BaseException: from below; " in done.stderr


def test_help_and_pages_say_it(capsys):
    assert main.main([]) == 0
    assert "--debug" in capsys.readouterr().out


# -- numbers beyond all bounds, and options that say nothing

GENERATE = "generate --prompt x "
FINETUNE = "finetune --data extract --out runs/new "
NOTHING = {
    GENERATE + "--seed 99999999999999999999999": "--seed is 9+; give a whole number from 0 to",
    GENERATE + "--seed -1": "--seed is -1; give",
    GENERATE + "--temperature 1e-300": "--temperature is 1e-300; give 0, or a number from 0.001",
    GENERATE + "--temperature nan": "--temperature is nan",
    GENERATE + "--temperature inf": "--temperature is inf",
    GENERATE + "--max-new 999999999999": "--max-new is 9+; give a whole number from 1 to",
    GENERATE + "--temperature 1 --top-p 0": "--top-p is 0.0; give a number above 0, at most 1",
    GENERATE + "--temperature 1 --top-k -3": "--top-k is -3",
    GENERATE + "--top-k 5": "--top-k says nothing at temperature 0",
    GENERATE + "--top-p 0.5": "--top-p says nothing at temperature 0",
    GENERATE + "--temperature 0 --seed 5": "--seed says nothing at temperature 0",
    "generate --chat --raw": "--raw says nothing for --chat",
    FINETUNE + "--steps 99999999999999999999": "--steps is 9+; give a whole number from 1 to",
    FINETUNE + "--steps 1e3": "--steps is '1e3'; give a whole number",
    FINETUNE + "--seq -5": "--seq is -5; give",
    FINETUNE + "--rank 99999999999999999999": "--rank is 9+; give",
    FINETUNE + "--lr 1e308": r"--lr is 1e\+308; give a number above 0",
    FINETUNE + "--alpha inf": "--alpha is inf; give",
    FINETUNE + "--dropout -0.1": "--dropout is -0.1; give",
    FINETUNE + "--weight-decay nan": "--weight-decay is nan; give",
    FINETUNE + "--warmup -1": "--warmup is -1; give",
    FINETUNE + "--batch 99999999999": "--batch is 9+; give",
    FINETUNE + "--accumulate 0": "--accumulate is 0; give",
    FINETUNE + "--save-every 0": "--save-every is 0; give",
    FINETUNE + "--eval-every -2": "--eval-every is -2; give",
    FINETUNE + "--lora-plus 1e99": r"--lora-plus is 1e\+99; give",
    FINETUNE + "--code uint4": "uint4.*nf4",
    FINETUNE + "--resume --overwrite": "--resume .* --overwrite .* leave one",
    FINETUNE + "--method full --alpha 16": "--alpha says nothing for --method full",
    FINETUNE + "--method lora --code nf4": "--code nf4 says nothing for --method lora",
    "evaluate --data extract --limit -1": "--limit is -1; give",
    "evaluate --data extract --batch 99999999999": "--batch is 9+; give",
    "evaluate --data extract --overwrite": "--overwrite says nothing without --out",
    "budget --method full --rank 4": "--rank says nothing for --method full",
    "budget --method full --rank 8": "--rank says nothing for --method full",
    "budget --method mixed --targets all": "--targets says nothing for --method mixed",
    "budget --method lora --code nf4": "--code says nothing for --method lora",
    "budget --method inference --checkpointing": "--checkpointing says nothing",
    "budget --method inference --optimizer sgd": "--optimizer says nothing",
    "budget --optimizer sgd --fused": "--fused says nothing for --optimizer sgd",
    "budget --steps 100": "--steps is for time and cost, .* add --gpu NAME",
    "budget --gpu T4 --method inference --steps 9": "--steps is for training",
    "budget --overwrite": "--overwrite says nothing without --picture",
    "budget --explain --json": "--explain says nothing for --json",
    "pretrain --out new --share nan": "--share is nan; give",
    "pretrain --out new --stage 3": "--stage is 3; give a whole number from 1 to 2",
    "pretrain --out new --seed -1": "--seed is -1; give",
    "pretrain --out new --stage 2": "new holds no earlier stage; begin with --stage 1",
}


@pytest.mark.parametrize("words", NOTHING)
def test_a_number_or_an_option_that_cannot_mean_anything(capsys, monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    assert main.main(words.split()) == 2
    told = capsys.readouterr().err
    told = "".join(line for line in told.splitlines(True) if "the shipped task, " not in line)
    assert told.count("\n") == 1, told
    assert re.search(NOTHING[words].replace("9+", "9{6,}"), told), told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--rank", "--steps", "--seed", "--lr", "--alpha", "--batch"])
def test_a_number_of_5000_digits(capsys, option):
    for command in ("finetune", "generate") if option == "--seed" else ("finetune",):
        assert main.main([command, option, "9" * 5000]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and len(told) < 400 and f"{option} is " in told


def test_a_split_of_one_file_is_none(capsys, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    argv = ["evaluate", "--data", str(tmp_path / "rows.jsonl"), "--split", "valid"]
    assert main.main(argv) == 2
    assert "--split valid says nothing for the one file" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows takes no such names")
def test_no_control_character_of_a_name_reaches_the_terminal(capsys, tmp_path):
    folder = tmp_path / "such\x1b[2J\x07name"
    folder.mkdir()
    assert main.main(["generate", "--model", str(folder), "--prompt", "x"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.strip().isprintable() and "name" in told

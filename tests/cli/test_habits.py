"""Habits of a command line: near misses are named, help is grouped and shows defaults, options
arrive, and on a terminal the end of a run stays to be read.
"""

import argparse
import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import minilora.text.chat
from minilora.cli import doctor
from minilora.cli.main import COMMANDS, main
from minilora.llama import Llama
from minilora.recipes import load, merge
from minilora.train import scoring

GROUPED = ("finetune", "evaluate", "generate", "merge", "export", "budget")


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        lines = [{"prompt": f"{split} {c}", "response": c} for c in "abcdef"]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def complaint(capsys, *argv) -> str:
    assert main([str(part) for part in argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minilora: ") and err.count("\n") == 1
    return err


# -- near misses


@pytest.mark.parametrize(
    "typed, meant", [("finetun", "finetune"), ("generat", "generate"), ("budgets", "budget")]
)
def test_a_near_miss_is_asked_back(capsys, typed, meant):
    assert f"did you mean {meant}?" in complaint(capsys, typed)


def test_what_is_near_nothing_gets_the_list(capsys):
    line = complaint(capsys, "xyzzy")
    assert "did you mean" not in line and all(name in line for name in COMMANDS)


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_the_version_in_short_too(capsys, flag):
    from minilora import __version__

    assert main([flag]) == 0 and capsys.readouterr().out == f"minilora {__version__}\n"


def test_all_that_is_missing_is_named_at_once(capsys, tmp_path):
    both = complaint(capsys, "finetune", "--rank", 4)
    assert "--data and --out are missing" in both and "extract" in both
    assert "--out is missing" in complaint(capsys, "finetune", "--data", "extract")
    assert "--data is missing" in complaint(capsys, "finetune", "--out", tmp_path / "x")
    alone = complaint(capsys, "finetune", "--resume")
    assert "--out is missing" in alone and "--data" not in alone


@pytest.mark.parametrize("more", [[], ["--raw"]])
@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(capsys, monkeypatch, tiny_folder, prompt, more):
    argv = ("generate", "--model", tiny_folder, *more, "--prompt")
    assert "--prompt is empty" in complaint(capsys, *argv, prompt)
    monkeypatch.setattr("sys.stdin", io.StringIO(prompt))
    assert "standard input is empty" in complaint(capsys, *argv, "-")


# -- help


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=name)
    importlib.import_module(COMMANDS[name][0]).add_arguments(parser)
    return parser


@pytest.mark.parametrize("name", GROUPED)
def test_help_is_grouped_shows_every_default_and_ends_with_an_example(capsys, name):
    parser = parser_of(name)
    loose = [a for a in parser._optionals._group_actions if a.dest != "help"]
    assert not loose, "every option stands in a group that says what it is about"
    for action in parser._actions:
        if action.dest in ("help", "prompt", "chat"):  # of the last two one must be given
            continue
        assert re.search(r"\(default: |; default: ", action.help), action.dest
        assert action.help.count("(default") == 1, action.dest
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    last = out.rstrip().splitlines()[-1]
    assert last.startswith(f"  minilora {'evaluate' if name == 'finetune' else name} "), last
    assert "\nexample" in out and "None" not in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("name", GROUPED)
def test_the_example_of_the_help_can_be_typed(name):
    """Every option in it is one, with a value that is parsed."""
    import shlex

    examples = re.findall(r"^  minilora (\w+)(.*)$", parser_of(name).epilog, re.M)
    assert examples
    for command, rest in examples:
        parser_of(command).parse_args(shlex.split(re.split(r"   +", rest)[0]))


def test_the_defaults_shown_are_those_taken(capsys):
    """Those that are typed as they stand are told by the parser of the command that has them."""
    from minilora.recipes.settings import Settings
    from minilora.train.config import declared

    shown = {}
    for action in parser_of("finetune")._actions:
        if found := re.search(r"\(default: (\S+)\)", action.help or ""):
            shown[action.dest] = found[1]
    for name, each in declared(Settings).items():
        if each.metadata["shown"] is None:
            assert shown[name] in (
                str(each.default),
                f"{each.default:g}" if isinstance(each.default, float) else "no",
            ), name
    for name in ("evaluate", "generate"):
        for action in parser_of(name)._actions:
            found = re.search(r"\(default: (\d\S*)\)", action.help or "")
            if found:
                assert float(found[1]) == action.default, action.dest


# -- options arrive


@pytest.fixture
def loaded(monkeypatch, tiny_folder):
    """What `load` was asked for, by every command that loads a model."""
    got = SimpleNamespace()
    real = load.load

    def record(model="tiny", adapter=None, code=None, device=None):
        got.asked = dict(model=model, adapter=adapter, code=code, device=device)
        return real(str(tiny_folder))

    monkeypatch.setattr(load, "load", record)
    monkeypatch.setattr(merge, "load", record)
    return got


MODEL = ["--model", "m", "--adapter", "a", "--code", "fp4", "--device", "cuda:1"]
ASKED = {"model": "m", "adapter": "a", "code": "fp4", "device": "cuda:1"}
DRAWN = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 3}
PLAIN = {"temperature": 0.0, "top_k": None, "top_p": None, "seed": None}


@pytest.mark.parametrize("way", ["prompt", "raw", "chat"])
@pytest.mark.parametrize("name", [None, *DRAWN, "max_new"])
def test_how_an_answer_is_drawn_arrives_at_the_model(
    capsys, monkeypatch, tiny_folder, loaded, way, name
):
    got = {}

    def generate(self, ids, max_new, **settings):
        got.update(settings, max_new=max_new, ids=ids[0].tolist())

    monkeypatch.setattr(Llama, "generate", generate)
    monkeypatch.setattr("sys.stdin", io.StringIO("who\n"))
    asked = {"prompt": ["--prompt", "who"], "raw": ["--raw", "--prompt", "who"], "chat": ["--chat"]}
    values = {**DRAWN, "max_new": 7}
    given = {} if name is None else {name: values[name]}
    if name in ("top_k", "top_p", "seed"):  # they say nothing at temperature 0
        given["temperature"] = 0.7
    typed = [word for key in given for word in ("--" + key.replace("_", "-"), str(given[key]))]
    assert main(["generate", *MODEL, *asked[way], *typed]) == 0
    wanted = {**PLAIN, "max_new": 128, **given}
    assert {key: got[key] for key in wanted} == wanted and loaded.asked == ASKED
    tokenizer = minilora.text.Tokenizer.from_pretrained(tiny_folder)
    raw = tokenizer.encode("who", bos=True)
    assert (got["ids"] == raw) == (way == "raw")


@pytest.mark.parametrize(
    "typed, wanted",
    [
        ([], {}),
        (["--limit", 2], {"prompts": ["test a", "test b"]}),
        (["--batch", 3], {"batch": 3}),
        (["--split", "valid"], {"prompts": [f"valid {c}" for c in "abcdef"]}),
    ],
)
def test_what_is_scored_arrives_at_the_scoring(
    capsys, monkeypatch, loaded, data, tmp_path, typed, wanted
):
    got = {}

    def exact_match(model, tokenizer, examples, batch, progress):
        got.update(prompts=[example["prompt"] for example in examples], batch=batch)
        return 1, len(examples), ["a", *["x"] * (len(examples) - 1)]

    monkeypatch.setattr(scoring, "exact_match", exact_match)
    out = tmp_path / "answers.jsonl"
    argv = ["evaluate", *MODEL, "--data", data, "--out", out, *typed]
    assert main([str(part) for part in argv]) == 0
    usual = {"prompts": [f"test {c}" for c in "abcdef"], "batch": 32}
    assert got == {**usual, **wanted} and loaded.asked == ASKED
    number = len(got["prompts"])
    assert capsys.readouterr().out == f"exact match {1 / number:.2f} (1 of {number})\n"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["hit"] for line in lines] == [True] + [False] * (number - 1)
    assert lines[1] == {"prompt": got["prompts"][1], "expected": "b", "answer": "x", "hit": False}


def test_merge_asks_for_the_base_as_it_is_told(loaded, tmp_path, tiny_folder, monkeypatch, data):
    monkeypatch.setattr(merge, "resolve", lambda name: tiny_folder)
    argv = ["merge", *MODEL, "--out", tmp_path / "merged", "--data", data]
    assert main([str(part) for part in argv]) == 0
    assert loaded.asked == ASKED and (tmp_path / "merged" / "config.json").is_file()


def test_a_shipped_task_by_name_from_anywhere(capsys, monkeypatch, tmp_path, data, tiny_folder):
    """In finetune said on standard output, in evaluate beside the score."""
    (tmp_path / "shipped" / "tasks").mkdir(parents=True)
    data.rename(tmp_path / "shipped" / "tasks" / "extract")
    monkeypatch.setattr(load, "data_folder", lambda: tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(tiny_folder), "--data", "extract"]
    argv = ["finetune", *model, "--out", "run", "--steps", "1", "--batch", "1"]
    assert main(argv) == 0
    assert "extract: the shipped task, " in capsys.readouterr().out
    assert main(["evaluate", *model, "--limit", "1", "--adapter", "run"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("exact match ") and captured.out.count("\n") == 1
    assert "minilora: extract: the shipped task, " in captured.err
    (tmp_path / "extract").write_text('{"prompt": "x", "response": "y"}\n')
    assert main([*argv, "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "not the shipped task" in out and "extract: 1 rows to learn from" in out


# -- on a terminal


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after all of `written`: \\r goes back, later text covers."""
    lines, column = [""], 0
    for part in re.split(r"(\r|\n|\x1b\[A|\x1b\[\d*[A-Za-z])", written):
        if part == "\n":
            lines.append("")
            column = 0
        elif part == "\r":
            column = 0
        elif not part.startswith("\x1b"):
            line = lines[-1].ljust(column)
            lines[-1] = line[:column] + part + line[column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_last_lines_of_a_run_stay_on_a_terminal(tiny_folder, data, tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    argv = ["finetune", "--model", tiny_folder, "--data", data, "--out", tmp_path / "run"]
    command = [sys.executable, "-m", "minilora", *map(str, argv), "--steps", "20", "--batch", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
    assert process.wait(120) == 0
    shown = screen(written.decode().replace("\r\n", "\n"))
    steps = [line for line in shown if re.fullmatch(r"step \d+/20 loss \d\.\d{4}", line)]
    assert len(steps) == 10 and steps[-1].startswith("step 20/20 "), shown
    assert any(line.startswith("validation loss") for line in shown)
    assert "%|" in written.decode(), "there was a bar, too"
    assert not any("%|" in line for line in shown), "and it is gone"


# -- doctor


def test_doctor_is_quick_loads_nothing_and_says_what_is_next(tmp_path):
    code = (
        "import sys; from minilora.cli.main import main; main(['doctor']); "
        "print([m for m in ('torch', 'bitsandbytes', 'transformers') if m in sys.modules])"
    )
    times = []
    while len(times) < 3 and min(times, default=9) >= 3:  # others may be at work on this machine
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        times.append(time.perf_counter() - began)
        lines = done.stdout.splitlines()
        assert lines[-1] == "[]" and lines[-2].startswith("next: minilora finetune --data "), done
    assert min(times) < 3, times


@pytest.mark.parametrize(
    "missing, wanted",
    [
        (["torch", "tokenizers"], "pip install torch tokenizers"),
        (["peft"], "minilora finetune --data extract --out runs/first"),
    ],
)
def test_the_next_step_is_what_is_missing_first(monkeypatch, missing, wanted):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda p: doctor.MISSING if p in missing else real(p))
    assert doctor._next() == wanted


def test_without_the_shipped_model_the_next_step_builds_one(monkeypatch):
    monkeypatch.setattr(doctor, "_base", lambda: None)
    assert doctor._next().startswith("minilora pretrain --out base")
    monkeypatch.undo()
    monkeypatch.setattr(load, "tasks", dict)
    assert doctor._next() == "minilora finetune --data DATA --out runs/first"


@pytest.mark.parametrize(
    "told, wanted",
    [
        ((0, "Tesla T4, 15360, 7.5"), "cuda:0: Tesla T4, 16.1 GB, no bf16"),
        ((0, "NVIDIA H100, 81559, 9.0"), "cuda:0: NVIDIA H100, 85.5 GB, bf16"),
        (
            (0, "warning: old\nNVIDIA GB10, [N/A], 12.1"),
            "cuda:0: NVIDIA GB10, memory unknown, bf16",
        ),
        ((9, "driver not loaded"), "nvidia-smi did not answer"),
        ((-1, "no answer within 2 s"), "nvidia-smi did not answer"),
        (None, "no GPU seen"),
    ],
)
def test_cards_are_asked_of_the_driver(monkeypatch, told, wanted):
    there = None if told is None else "/usr/bin/nvidia-smi"
    monkeypatch.setattr(doctor.shutil, "which", lambda name: there)
    answer = (-1, "no such file") if told is None else told
    monkeypatch.setattr(doctor, "_output", lambda *command, seconds: answer)
    assert any(line.startswith(wanted) for line in doctor._devices())


@pytest.mark.parametrize(
    "told, wanted", [((0, ""), "loads"), ((1, "a\nno CUDA"), "does not load: no CUDA")]
)
def test_deep_says_whether_bitsandbytes_loads(monkeypatch, told, wanted):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(doctor, "_output", lambda *command, seconds: told)
    assert doctor._bitsandbytes(True) == wanted
    assert "--deep" in doctor._bitsandbytes(False)


def test_what_hangs_or_is_not_there_is_no_error():
    assert doctor._output("no-such-program-here", seconds=1)[0] == -1
    code, text = doctor._output(sys.executable, "-c", "import time; time.sleep(9)", seconds=0.2)
    assert code == -1 and "no answer" in text


def test_an_empty_line_ends_a_chat(capsys, monkeypatch, loaded):
    asked = []
    monkeypatch.setattr(
        minilora.text.chat.Conversation, "ask", lambda self, line, show: asked.append(line)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n\nthree\n"))
    assert main(["generate", "--chat"]) == 0
    assert asked == ["one", "two"]


def test_a_folder_without_a_test_split_says_which_one_can_be_asked(capsys):
    assert main(["evaluate", "--model", "tiny", "--data", "facts"]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].endswith("to ask what is there, add --split train")
    told = ["--split", "train", "--limit", "2"]
    assert main(["evaluate", "--model", "tiny", "--data", "facts", *told]) == 0

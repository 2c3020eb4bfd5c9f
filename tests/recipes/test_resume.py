"""Killed with SIGKILL anywhere, also in the middle of a save, and resumed: the same bytes as the
run left alone, in both backends.
"""

import os
import random
import signal
import sys

import pytest
from processes import context, finish, metrics, start
from typed_commands import typed, write_letters

from minilora.cli.main import main

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGKILL") or sys.platform == "win32", reason="needs SIGKILL and fork"
)

STEPS = 16
# with a loss scale to keep
BACKENDS = {"minilora": [], "peft": ["--backend", "peft", "--precision", "fp16"]}


def count_and_kill(out, fatal):
    """Kill this process at its `fatal`-th file operation (open, rename, remove, mkdir, truncate)
    below `out`'s parent.
    """
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event in (
            "open",
            "os.rename",
            "os.remove",
            "os.rmdir",
            "os.mkdir",
            "os.truncate",
            "os.chmod",
        ):
            if isinstance(arguments[0], (str, os.PathLike)) and os.path.dirname(out) in str(
                arguments[0]
            ):
                seen += 1
                if seen == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: seen


def work(argv, fatal=None, report=None):
    counted = count_and_kill(argv[argv.index("--out") + 1], fatal) if fatal is not None else None
    code = main(argv)
    if report is not None:
        report.put(counted())
    return code


def command(world, out, resume=True):
    tiny, data, more = world
    options = dict(model=tiny, data=data, out=out, steps=STEPS, save_every=2, eval_every=7)
    argv = typed("finetune", *more, **options, dropout=0.1, batch=4, lr=1e-2, accumulate=2)
    return [*argv, "--resume"] if resume else argv


@pytest.fixture(scope="module", params=BACKENDS)
def world(request, tiny_folder, tmp_path_factory):
    """(model, data, the backend's options)"""
    for library in ("transformers", "peft", "bitsandbytes") if request.param == "peft" else ():
        pytest.importorskip(library)
    folder = tmp_path_factory.mktemp("world") / "data"
    folder.mkdir()
    write_letters(folder, "abcdefghij" * 3, ("train", "valid"))
    return tiny_folder, folder, BACKENDS[request.param]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The adapter of a run that nobody disturbed, its metrics, and its number of file
    operations.
    """
    # a folder that has to be made, as of the runs that are killed: that, too, takes operations
    out = tmp_path_factory.mktemp("alone") / "0" / "run"
    report = context().SimpleQueue()
    assert finish(work, command(world, out, resume=False), -1, report) == 0
    return (out / "adapter_model.safetensors").read_bytes(), metrics(out), report.get()


def assert_same(out, alone):
    assert (out / "adapter_model.safetensors").read_bytes() == alone[0]
    assert metrics(out) == alone[1]
    assert not list(out.parent.rglob("*.part")), "what the killed process left was not swept up"


def killed_then_resumed(world, out, alone, fatal):
    assert finish(work, command(world, out, resume=False), fatal) == -signal.SIGKILL
    assert finish(work, command(world, out)) == 0
    assert_same(out, alone)


@pytest.mark.slow
def test_killed_at_file_operations(world, alone, tmp_path):
    """Each a moment in which something is half-done: a fixed sample of them; many more below."""
    for fatal in random.Random(1).sample(range(1, alone[2] + 1), 3 if world[2] else 6):
        killed_then_resumed(world, tmp_path / str(fatal) / "run", alone, fatal)


@pytest.mark.slow
def test_killed_at_every_third_file_operation(world, alone, tmp_path):
    for fatal in range(1, alone[2] + 1, 3):
        killed_then_resumed(world, tmp_path / str(fatal) / "run", alone, fatal)


@pytest.mark.slow
@pytest.mark.parametrize("world", ["minilora"], indirect=True)
def test_killed_twenty_times_at_random_moments(world, alone, tmp_path):
    """One run is killed and resumed again and again; when it gets to its end it must be the same,
    and the next one begins.
    """
    dice = random.Random(2)
    kills, number = 0, 0
    while kills < 20:
        number += 1
        out = tmp_path / str(number) / "run"
        while True:
            process = start(work, command(world, out, resume=out.exists()))
            process.join(timeout=dice.uniform(0.05, 0.6))
            if process.exitcode is None and kills < 20:
                process.kill()
                process.join()
                kills += 1
                continue
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL  # it was at its end as the kill came
        assert_same(out, alone)

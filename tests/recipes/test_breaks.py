"""What breaks a run in the middle, for real and in both backends: Ctrl-C, a full memory, a full
disk. Each time the run goes on to the same end.

Real: processes of their own, SIGINT from the system, RLIMIT_AS (the allocator's own refusal), a
tmpfs of some hundred kB. A full GPU is not: torch raises `torch.OutOfMemoryError` for it, which is
raised here by hand, with CUDA's words.
"""

import gc
import json
import os
import shutil
import signal
import sys

import pytest
import torch
from processes import finish, grow_disk, metrics, mount_small_disk
from typed_commands import typed

from minilora import lora, train
from minilora.cli.main import main
from minilora.errors import MemoryFull, MiniloraError
from minilora.llama import Llama
from minilora.system import memory
from minilora.text import Tokenizer, encode_rows
from minilora.train.run_folder import RunFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits")

BACKENDS = ("minilora", "peft")
STEPS, TOKENS, LATE = 6, 250, 5  # with this seed the batch of long rows comes as the fifth


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six batches of 64: the rows of one of them are long."""
    folder = tmp_path_factory.mktemp("uneven")
    lines = [{"prompt": f"say {c}", "response": c} for c in "abcdefgh" * 40] + [
        {"prompt": "x" * (TOKENS - 8), "response": "y"}
    ] * 64
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def command(model, data, out, backend, *more):
    for library in ("transformers", "peft", "bitsandbytes") if backend == "peft" else ():
        pytest.importorskip(library)
    options = dict(model=model, data=data, out=out, backend=backend)
    return typed("finetune", *more, **options, steps=STEPS, batch=64, save_every=2, seed=2)


def again(out, *more):
    return ["finetune", "--out", str(out), "--resume", *map(str, more)]


def told(path):
    """The one line of complaint; a warning of the budget may stand before it."""
    lines = [
        line
        for line in path.read_text().splitlines()
        if not line.startswith("minilora: warning: this run will need")
    ]
    assert len(lines) == 1 and lines[0].startswith("minilora: "), lines
    return lines[0]


def assert_same_end(out, other):
    assert (out / "adapter_model.safetensors").read_bytes() == (
        other / "adapter_model.safetensors"
    ).read_bytes()
    assert metrics(out) == metrics(other) and not list(out.parent.rglob("*.part"))


# -- Ctrl-C


def press_ctrl_c(argv, step):
    """The command, with SIGINT from the system while the metrics of `step` are being written."""
    seen, file = 0, f"{argv[argv.index('--out') + 1]}/metrics.jsonl"

    def hook(event, arguments):
        nonlocal seen
        if event == "open" and str(arguments[0]) == file and "+" in str(arguments[1]):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGINT)

    sys.addaudithook(hook)
    return main(argv)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c(tiny_folder, data, tmp_path, backend):
    """Dropout and fp16's loss scale go on with the rest."""
    out, whole, err = tmp_path / "run", tmp_path / "whole", tmp_path / "err"
    more = ("--dropout", 0.1, "--batch", 16, "--save-every", 100, "--precision", "fp16")
    assert finish(main, command(tiny_folder, data, whole, backend, *more)) == 0
    assert finish(press_ctrl_c, command(tiny_folder, data, out, backend, *more), 3, err=err) == 130
    assert told(err) == f"minilora: interrupted; go on with: minilora finetune --out {out} --resume"
    assert (out / "state" / "step-00000003").is_dir() and not (
        out / "adapter_model.safetensors"
    ).exists()
    assert finish(main, again(out)) == 0
    assert_same_end(out, whole)
    assert {record["loss_scale"] for record in metrics(out)} == {65536.0}


# -- no memory


def with_room(argv, room):
    """The command in a process that may map `room` bytes more than it has now."""
    import resource  # not on Windows, where this file is skipped

    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
    return main(argv)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_memory_for_one_step(tiny_folder, data, tmp_path, backend):
    """The step with the long rows does not fit: the line names it, and what it advises goes on in
    the same memory, to the same end.
    """
    # 8 rows at once take up to 105 MB in either backend, 64 more than 200: in the middle, neither
    # the libraries nor the allocator's luck decide
    room, out, whole, err = 150 * 10**6, tmp_path / "run", tmp_path / "whole", tmp_path / "err"
    assert finish(main, command(tiny_folder, data, whole, backend)) == 0
    assert finish(with_room, command(tiny_folder, data, out, backend), room, err=err) == 2
    line = told(err)
    assert f"in step {LATE}, 64 rows of up to" in line and "MB more were asked for" in line
    assert (
        f"go on after step 4 by minilora finetune --out {out} --resume --checkpointing (about "
        in line
        and "--batch 32 --accumulate 2 (about" in line
    )
    assert finish(with_room, again(out, "--batch", 8, "--accumulate", 8), room, err=err) == 0, (
        err.read_text()
    )
    losses = [[record["loss"] for record in metrics(run)] for run in (out, whole)]
    # the step's sums are made of other parts
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)

    (out / "adapter_model.safetensors").unlink()
    shutil.rmtree(out / "state" / "step-00000006")
    assert finish(main, again(out, "--batch", 64, "--accumulate", 1, "--checkpointing")) == 0
    assert_same_end(out, whole)  # to the bit: checkpointing changes no number


@pytest.mark.slow
def test_what_may_change_on_resume_is_said(capsys, tiny_folder, data, tmp_path):
    assert finish(main, command(tiny_folder, data, tmp_path / "run", "minilora", "--steps", 1)) == 0
    assert main(again(tmp_path / "run", "--batch", 32)) == 2
    assert (
        "--batch 32 is not what this run began with (64); leave it out, give --batch and "
        "--accumulate whose product is 64, or begin"
    ) in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, size",
    [
        (
            torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity "
                "of 14.74 GiB"
            ),
            "2.00 GiB",
        ),
        (RuntimeError("CUDA error: out of memory"), ""),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ""),
        (MemoryError(), ""),
        (OSError(12, "Cannot allocate memory"), ""),
        (ValueError("a shape"), None),
        (MiniloraError("out of memory"), None),
    ],
)
def test_a_full_memory_is_known_by_its_words(error, size):
    assert memory.full(error) == (size is not None)
    if size is not None:
        with (
            pytest.raises(MemoryFull, match=f"full: here{', as ' + size if size else ''}.*; there"),
            memory.named("here", "there"),
        ):
            raise error


@pytest.mark.parametrize(
    "ask, size",
    [
        (lambda: torch.empty(1 << 46), "281474.98 GB"),
        (lambda: __import__("numpy").empty(1 << 55), None),
    ],
)
def test_the_processors_own_refusal_is_known(ask, size):
    with pytest.raises(MemoryFull, match=size), memory.named("here", "there"):
        ask()


@pytest.fixture
def rows(tiny_folder):
    return encode_rows(
        [{"prompt": f"say {c}", "response": c} for c in "abcdefgh"],
        Tokenizer.from_pretrained(tiny_folder),
    )


def fresh(folder):
    torch.manual_seed(0)
    return lora.add_lora(Llama.from_pretrained(folder), rank=4, dropout=0.1)


class Greedy(torch.autograd.Function):
    """Asks in backward, when half of the gradients are there, for more memory than there is."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.empty(1 << 46)


@pytest.mark.slow
@pytest.mark.parametrize("step, done", [(2, 0), (7, 6)])
def test_in_one_process_the_model_goes_on(tiny_folder, rows, tmp_path, step, done):
    """As in a notebook, whose model stays: half a step's gradients, weights that have moved and
    tensors held by the traceback do no harm.
    """
    settings = {"steps": 10, "save_every": 3, "batch_size": 4, "lr": 1e-2, "progress": False}
    alone, model = fresh(tiny_folder), fresh(tiny_folder)
    whole = train.fit(alone, rows, **settings)

    def arm(finished, loss):
        if finished == step - 1:
            handles.append(
                model.model.layers[1].mlp.register_forward_pre_hook(
                    lambda module, inputs: (Greedy.apply(inputs[0]),)
                )
            )

    handles, tensors = (
        [],
        lambda: (
            gc.collect() * 0
            + sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
        ),
    )
    before = tensors()
    with pytest.raises(
        MemoryFull,
        match=f"in step {step}, 4 rows of up to .* go on after step {done} by resume=True with "
        "checkpointing=True or batch_size=2, accumulate=2",
    ) as caught:
        train.fit(model, rows, out=tmp_path, on_step=arm, **settings)
    assert caught.value.__traceback__ is not None and tensors() <= before, (
        "the broken step is still held"
    )
    handles[0].remove()
    assert all(p.grad is None for p in model.parameters())
    history = train.fit(model, rows, out=tmp_path, resume=True, **settings)
    assert history.losses == whole.losses
    mine, others = lora.adapter_state(model), lora.adapter_state(alone)
    assert all(torch.equal(mine[key], others[key]) for key in others)
    assert (
        train.fit(fresh(tiny_folder), rows, out=tmp_path, resume=True, **settings).losses
        == whole.losses
    ), "a finished run is read again"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"lr": 1e-3}, "lr is 0.001, and the run in .* began with 0.01"),
        ({"steps": 3}, "steps is 3"),
        ({"batch_size": 2}, "batch_size is 2"),
        ({}, "the rows are not those"),
    ],
)
def test_another_run_is_not_taken_for_this_one(tiny_folder, rows, tmp_path, change, words):
    settings = {
        "steps": 2,
        "save_every": 1,
        "batch_size": 4,
        "lr": 1e-2,
        "progress": False,
        "out": tmp_path,
    }
    train.fit(fresh(tiny_folder), rows, **settings)
    with pytest.raises(MiniloraError, match=words):
        train.fit(
            fresh(tiny_folder), rows if change else rows[:7], resume=True, **{**settings, **change}
        )
    train.fit(
        fresh(tiny_folder),
        rows,
        resume=True,
        **{**settings, "batch_size": 2, "accumulate": 2, "checkpointing": True, "save_every": 2},
    )


# -- no disk


def on_a_small_disk(argv, room, out, result):
    """The command with `out` on a disk of `room` bytes, which only this process sees; then, when
    there is more room, again.
    """
    if not mount_small_disk(out.parent, room):
        return 77
    first = main(argv)
    kept = RunFolder(out).last_step() if out.exists() else -1
    grow_disk(out.parent, 10**8)
    second = main(again(out))
    result.write_text(json.dumps([first, kept, second, metrics(out)]))
    result.with_suffix(".adapter").write_bytes((out / "adapter_model.safetensors").read_bytes())
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_disk(tiny_folder, data, tmp_path, backend):
    """The first states fit, a later one does not; with more room the run goes on to the same
    bytes.
    """
    out, whole, result, err = (
        tmp_path / "disk" / "run",
        tmp_path / "whole",
        tmp_path / "result",
        tmp_path / "err",
    )
    out.parent.mkdir()
    more = ("--batch", 8, "--save-every", 2)
    assert finish(main, command(tiny_folder, data, whole, backend, *more)) == 0
    code = finish(
        on_a_small_disk,
        command(tiny_folder, data, out, backend, *more),
        500_000,
        out,
        result,
        err=err,
    )
    if code == 77:
        pytest.skip("this system lets nobody mount a disk")
    assert code == 0
    first, kept, second, found = json.loads(result.read_text())
    assert (first, second) == (2, 0) and 0 <= kept < STEPS, (first, kept, second)
    assert "cannot write" in told(err) and "No space left on device" in told(err)
    assert (
        found == metrics(whole)
        and result.with_suffix(".adapter").read_bytes()
        == (whole / "adapter_model.safetensors").read_bytes()
    )

"""A notebook whose kernel is killed, or interrupted, in the middle of a cell that trains: the same
cell goes on to the same end.

Real kernels, started as Jupyter starts them; kill -9, and the interrupt that the stop button sends.
PEFT's model and ours.
"""

import json
import os
import signal
import sys
import time
from queue import Empty

import pytest

jupyter_client = pytest.importorskip("jupyter_client")
for library in ("ipykernel", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(library)
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

BEGIN = """
import hashlib, json, time, torch
torch.set_num_threads(1)
from minilora import hub, lora
from minilora.text import Tokenizer, encode_rows
from minilora.train import evaluate_loss, fit
told = [{{"prompt": f"say {{c}}", "response": c}} for c in "abcdefgh" * 4]
rows = encode_rows(told, Tokenizer.from_pretrained({model!r}))
def make(stack):
    torch.manual_seed(0)
    model = hub.load({model!r}, "qlora", stack=stack, device="cpu")
    return (lora.add_lora if stack == "minilora" else hub.prepare)(model, rank=4, dropout=0.1)
def digest(model):
    learned = [p.detach().numpy().tobytes() for p in model.parameters() if p.requires_grad]
    return hashlib.sha256(b"".join(learned)).hexdigest()
settings = dict(steps=18, batch_size=4, lr=1e-2, save_every=4, valid=rows[:4], eval_every=7)
settings["progress"] = False
"""
TRAIN = """
rest = dict(out={out!r}, resume=True, on_step=lambda step, loss: time.sleep({pause}))
history = fit(model, rows, **settings, **rest)
print(json.dumps([digest(model), history.losses, history.valid_losses]))
"""
ALONE = (
    "alone = make(stack)\nhistory = fit(alone, rows, "
    "**settings)\nprint(json.dumps([digest(alone), history.losses, history.valid_losses]))"
)


class Kernel:
    """A kernel and its answers."""

    def __init__(self):
        self.manager, self.client = jupyter_client.manager.start_new_kernel(
            kernel_name="python3", env={**os.environ, "OMP_NUM_THREADS": "1"}, startup_timeout=120
        )

    def ask(self, code):
        """Start a cell; its answer is awaited by `answer`."""
        self.waiting = self.client.execute(code, store_history=False)

    def answer(self, timeout=120):
        """(what was printed, the error's name or None)"""
        text, error, ends = "", None, time.monotonic() + timeout
        while time.monotonic() < ends:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except Empty:
                assert self.manager.is_alive(), "the kernel has died"
                continue
            if message["parent_header"].get("msg_id") != self.waiting:
                continue
            kind, content = message["msg_type"], message["content"]
            text += content["text"] if kind == "stream" and content["name"] == "stdout" else ""
            error = content["ename"] if kind == "error" else error
            if kind == "status" and content["execution_state"] == "idle":
                return text, error
        raise TimeoutError("the cell did not end")

    def run(self, code):
        self.ask(code)
        text, error = self.answer()
        assert error is None, (error, text)
        return text

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel():
    """Starts kernels, and ends them all."""
    started = []

    def start():
        started.append(Kernel())
        return started[-1]

    yield start
    for each in started:
        each.close()


def wait_for_lines(path, number):
    ends = time.monotonic() + 120
    while not (path.is_file() and path.read_bytes().count(b"\n") >= number):
        assert time.monotonic() < ends, "the cell does not get on"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_kernel_and_an_interrupted_cell(kernel, tiny_folder, tmp_path):
    begin = BEGIN.format(model=str(tiny_folder))
    first = kernel()
    first.run(begin + "stack = 'transformers'\nmodel = make(stack)")
    first.ask(TRAIN.format(out=str(tmp_path / "killed"), pause=0.3))
    wait_for_lines(tmp_path / "killed" / "metrics.jsonl", 8)
    os.kill(first.manager.provisioner.pid, signal.SIGKILL)
    states = sorted(path.name for path in (tmp_path / "killed" / "state").glob("step-*"))
    assert states and states[-1] < "step-00000018", states

    second = kernel()
    second.run(begin + "stack = 'transformers'\nmodel = make(stack)")
    found, wanted = (
        second.run(TRAIN.format(out=str(tmp_path / "killed"), pause=0)),
        second.run(ALONE),
    )
    assert json.loads(found) == json.loads(wanted) and len(json.loads(found)[1]) == 18

    second.run("stack = 'minilora'\nmodel = make(stack)")
    cell = TRAIN.format(out=str(tmp_path / "stopped"), pause=0.3)
    second.ask(cell)
    wait_for_lines(tmp_path / "stopped" / "metrics.jsonl", 8)
    second.manager.interrupt_kernel()
    assert second.answer()[1] == "KeyboardInterrupt"
    usable = (
        "print(model.training, sum(p.requires_grad for p in model.parameters()), "
        "evaluate_loss(model, rows) < evaluate_loss(make(stack), rows))"
    )
    assert second.run(usable).split() == ["False", "28", "True"]
    # the same cell again, in the same kernel
    assert json.loads(second.run(cell)) == json.loads(second.run(ALONE))

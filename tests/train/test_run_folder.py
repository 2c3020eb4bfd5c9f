"""The folder of a run: how many states are kept, and what a write that fails leaves."""

import json

import pytest
import torch

from minilora import lora, train
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.text import Tokenizer, encode_rows
from minilora.train import run_folder
from minilora.train.run_folder import RunFolder


@pytest.fixture
def trained(tiny_folder, tmp_path):
    """A run of four steps that saved after each."""
    rows = encode_rows(
        [{"prompt": f"say {c}", "response": c} for c in "abcdefgh"],
        Tokenizer.from_pretrained(tiny_folder),
    )
    torch.manual_seed(0)
    model = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2)
    settings = dict(steps=4, batch_size=2, save_every=1, progress=False)
    train.fit(model, rows, out=tmp_path / "run", **settings)
    return RunFolder(tmp_path / "run")


def steps(run):
    return [int(folder.name.removeprefix("step-")) for folder in run.found()]


def test_the_last_two_states_are_kept(trained):
    """One more than is needed: the newest may be damaged."""
    assert steps(trained) == [4, 3] and trained.last_step() == 4
    (trained.found()[0] / "state.safetensors").write_bytes(b"")
    folder, body = trained.last_good()
    assert body["step"] == 3 and folder.name == "step-00000003"


class HalfOf:
    """A file on a disk that is full in the middle of a line."""

    def __init__(self, file, raises):
        self.file, self.raises = file, raises

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.file.close()

    def seek(self, *given):
        self.file.seek(*given)

    def write(self, line):
        self.file.write(line[: len(line) // 2])
        if self.raises:
            raise OSError(28, "No space left on device")
        return len(line) // 2


@pytest.mark.parametrize("raises", [True, False], ids=["an error", "a short count"])
def test_half_a_line_does_not_stay(trained, monkeypatch, raises):
    before = trained.metrics.read_bytes()
    trained._write_metrics([json.loads(line) for line in before.splitlines()])
    real = open
    monkeypatch.setattr(
        run_folder, "open", lambda *a, **k: HalfOf(real(*a, **k), raises), raising=False
    )
    with pytest.raises(MiniloraError, match="cannot write .*No space left.*--resume"):
        trained.log({"step": 5, "loss": 1.0})
    assert trained.metrics.read_bytes() == before
    monkeypatch.undo()
    trained.log({"step": 5, "loss": 1.0})
    assert json.loads(trained.metrics.read_text().splitlines()[-1]) == {"step": 5, "loss": 1.0}


def test_what_a_killed_process_left_is_swept_up(trained):
    for rest in (
        trained.states / ".step-9.minilora-abcdefgh.part",
        trained.path / ".run.json.minilora-abcdefgh.part",
    ):
        rest.mkdir()
    beside = trained.path.parent / f".{trained.path.name}.minilora-12345678.part"
    beside.write_text("x")
    trained._sweep()
    assert not list(trained.path.parent.rglob("*.part"))


def test_a_damaged_run_json_is_named(trained):
    (trained.path / "run.json").write_text("{")
    with pytest.raises(MiniloraError, match="run.json cannot be read as JSON.*--overwrite"):
        trained.saved_about()
    (trained.path / "run.json").unlink()
    assert trained.saved_about() is None


def test_the_picture_shows_both_losses(trained, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    real = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, *a, **k: drawn.append((k["label"], a[:2])) or real(self, *a, **k)
    )
    records = [{"step": 0, "valid_loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    trained.draw(records)
    assert drawn == [("training", ((1, 2), (2.0, 1.0))), ("validation", ((0,), (3.0,)))]

"""The states of a run: resumed bit for bit, passed over where damaged, kept where it breaks."""

import json
import math
import shutil

import pytest
from small_fits import moving_scale, quiet, states_equal, with_adapter

from minilora import lora
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.train.run_folder import RunFolder


def test_lora_plus_resumes_with_the_same_bits(tiny_folder, rows, tmp_path):
    alone, broken, resumed = (with_adapter(Llama.from_pretrained(tiny_folder)) for _ in range(3))
    settings = {"steps": 4, "save_every": 1, "lora_plus": 4}
    quiet(alone, rows, out=tmp_path / "alone", **settings)
    with pytest.raises(Stop):
        quiet(broken, rows, out=tmp_path / "broken", on_step=stop_at(3), **settings)
    quiet(resumed, rows, out=tmp_path / "broken", resume=True, **settings)
    assert states_equal(alone, resumed)


class Stop(Exception):
    pass


def stop_at(step):
    def on_step(done, loss):
        if done == step:
            raise Stop

    return on_step


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_clock(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_run_ends_with_the_same_bits(tiny_folder, rows, tmp_path, monkeypatch, precision):
    moving_scale(monkeypatch, 2.0**16)

    def fresh():
        return with_adapter(Llama.from_pretrained(tiny_folder), dropout=0.1)

    settings = {
        "steps": 20,
        "save_every": 3,
        "eval_every": 5,
        "accumulate": 2,
        "valid": rows[:4],
        "precision": precision,
    }
    alone, broken = fresh(), fresh()
    history = quiet(alone, rows, out=tmp_path / "alone", **settings)
    with pytest.raises(Stop):
        quiet(broken, rows, out=tmp_path / "broken", on_step=stop_at(11), **settings)
    # the steps, and validations at 0, 5, 10
    assert len(read(tmp_path / "broken" / "metrics.jsonl")) == 11 + 3
    resumed = fresh()
    again = quiet(resumed, rows, out=tmp_path / "broken", resume=True, **settings)
    assert states_equal(alone, resumed)
    assert again.losses == history.losses and again.valid_losses == history.valid_losses
    assert without_clock(read(tmp_path / "broken" / "metrics.jsonl")) == without_clock(
        read(tmp_path / "alone" / "metrics.jsonl")
    )
    assert len(list((tmp_path / "broken" / "state").iterdir())) == 2
    scales = {record.get("loss_scale") for record in again.records if "loss" in record}
    assert len(scales) > 2 if precision == "fp16" else scales == {None}


def test_a_run_whose_every_step_was_left_out_resumes(tiny_folder, rows, tmp_path, monkeypatch):
    moving_scale(monkeypatch, 2.0**60)
    settings = {"out": tmp_path, "steps": 4, "save_every": 2, "precision": "fp16", "warmup": 0}
    with pytest.raises(Stop):
        quiet(
            with_adapter(Llama.from_pretrained(tiny_folder)), rows, on_step=stop_at(3), **settings
        )
    history = quiet(with_adapter(Llama.from_pretrained(tiny_folder)), rows, resume=True, **settings)
    assert [record["loss_scale"] for record in history.records] == [
        2.0**60,
        2.0**59,
        2.0**58,
        2.0**57,
    ]


def damage_cut(folder):
    path = folder / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_bit(folder):
    path = folder / "state.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


def damage_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 1', '"step": 2'))


def damage_missing(folder):
    (folder / "metrics.jsonl").unlink()


def damage_empty(folder):
    (folder / "manifest.json").write_text("")


@pytest.mark.parametrize(
    "damage", [damage_cut, damage_bit, damage_manifest, damage_missing, damage_empty, shutil.rmtree]
)
def test_a_damaged_state_is_passed_over(tiny_folder, rows, tmp_path, damage):
    settings = {"steps": 12, "save_every": 5}
    alone = with_adapter(Llama.from_pretrained(tiny_folder))
    quiet(alone, rows, out=tmp_path, **settings)
    newest = tmp_path / "state" / "step-00000012"
    assert newest.is_dir()
    damage(newest)
    lines = []
    resumed = with_adapter(Llama.from_pretrained(tiny_folder))
    history = quiet(
        resumed, rows, out=RunFolder(tmp_path, say=lines.append), resume=True, **settings
    )
    assert states_equal(alone, resumed) and history.steps == 12
    assert lines[-1] == "going on after step 10"
    assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == list(range(1, 13))


def test_a_state_of_another_adapter_is_refused(tiny_folder, rows, tmp_path):
    quiet(with_adapter(Llama.from_pretrained(tiny_folder)), rows, out=tmp_path)
    other = lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2)
    with pytest.raises(MiniloraError, match="another model or adapter"):
        quiet(other, rows, out=tmp_path, resume=True)


def test_ctrl_c_saves_and_resumes(tiny_folder, rows, tmp_path):
    import signal

    def press(done, loss):
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    alone, broken, resumed = (with_adapter(Llama.from_pretrained(tiny_folder)) for _ in range(3))
    quiet(alone, rows)
    with pytest.raises(KeyboardInterrupt):
        quiet(broken, rows, out=tmp_path, on_step=press)
    assert RunFolder(tmp_path).last_good() is not None
    quiet(resumed, rows, out=tmp_path, resume=True)
    assert states_equal(alone, resumed)


@pytest.mark.parametrize("step, message", [(4, "after step 4"), (3, "loss at step 4 is .*nan")])
def test_a_diverging_run_keeps_its_last_good_state(adapted, rows, tmp_path, step, message):
    def poison(done, loss):
        if done == step:
            next(iter(lora.trainable_parameters(adapted))).data.fill_(math.nan)

    with pytest.raises(MiniloraError, match=message):
        quiet(adapted, rows, out=tmp_path, save_every=2, on_step=poison)
    assert RunFolder(tmp_path).last_good()[1]["step"] == 2


def test_others_may_read_what_a_run_writes(adapted, rows, tmp_path):
    quiet(adapted, rows, out=tmp_path / "run")
    lora.save_adapter(adapted, tmp_path / "run")
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in tmp_path.rglob("*.*"))

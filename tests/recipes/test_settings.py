"""Every option arrives: each setting of `finetune` is set to something else than its default, and
read again from what the loop, the adapter, the base and the libraries were given.
"""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

import minilora.train.loop
from minilora import hub, lora
from minilora.cli.main import main
from minilora.errors import MiniloraError
from minilora.llama import Llama
from minilora.qlora import base
from minilora.recipes import finetune, finetune_peft, load
from minilora.recipes.settings import FULL_RATE, Settings, resumed, settle
from minilora.system import precision
from minilora.train import TrainConfig
from minilora.train.config import PRECISIONS, another_run, declared

BACKENDS = ("minilora", "peft")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    for split in ("train", "valid"):
        lines = [
            {"prompt": f"say {c * (1 + i % 4)}", "response": c} for i, c in enumerate("abcd" * 4)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Reached(Exception):
    """The loop has been called: nothing needs to be trained."""


@pytest.fixture
def reach(monkeypatch, tiny_folder, data, tmp_path):
    """Runs the command up to the loop; returns what had arrived there."""

    def reach(*flags, backend="minilora"):
        got = SimpleNamespace(hub={}, devices=[])

        def fit(model, rows, config, *, valid, out, resume, **rest):
            got.model, got.rows, got.config, got.valid, got.out = model, rows, config, valid, out
            raise Reached

        def recorded(call):
            def record(*given, **settings):
                got.hub |= settings
                return call(*given, **settings)

            return record

        def pick(name):
            got.devices.append(name)
            return "cpu"

        monkeypatch.setattr(minilora.train.loop, "fit", fit)
        monkeypatch.setattr(precision, "pick_device", pick)
        argv = ["finetune", "--model", tiny_folder, "--data", data, "--out", tmp_path / "run"]
        with monkeypatch.context() as patch:
            if backend == "peft":
                for library in ("transformers", "peft", "bitsandbytes"):
                    pytest.importorskip(library)
                patch.setattr(hub, "load", recorded(hub.load))
                patch.setattr(hub, "prepare", recorded(hub.prepare))
            with pytest.raises(Reached):
                main([str(part) for part in (*argv, "--backend", backend, *flags)])
        got.adapter = adapter_of(got.model)
        return got

    return reach


def adapter_of(model) -> dict | None:
    """What the adapter on the model was made with, in our words."""
    theirs = getattr(model, "peft_config", None)
    if theirs:
        told = theirs["default"]
        variant = "dora" if told.use_dora else "rslora" if told.use_rslora else "lora"
        return {
            "rank": told.r,
            "alpha": told.lora_alpha,
            "dropout": told.lora_dropout,
            "variant": variant,
            "targets": sorted(told.target_modules),
        }
    if not lora.adapters(model):
        return None
    told = lora.adapters(model)["default"]
    return {
        name: getattr(told, name) for name in ("rank", "alpha", "dropout", "variant", "targets")
    }


def start_of(model) -> torch.Tensor:
    """A of the first layer that has one."""
    return next(p for name, p in model.named_parameters() if "lora_A" in name).detach().clone()


def expected_start(tiny_folder, **settings) -> torch.Tensor:
    model = Llama.from_pretrained(tiny_folder)
    torch.manual_seed(settings.pop("seed", 0))
    lora.add_adapter(model, lora.AdapterConfig(**settings))
    return start_of(model)


# flag → (value, where it must arrive in the TrainConfig)
TRAINED = {
    "steps": (7, "steps"),
    "batch": (3, "batch_size"),
    "accumulate": (2, "accumulate"),
    "lr": (0.02, "lr"),
    "lora_plus": (4.0, "lora_plus"),
    "warmup": (2, "warmup"),
    "weight_decay": (0.1, "weight_decay"),
    "clip": (0.5, "clip"),
    "seed": (9, "seed"),
    "checkpointing": (True, "checkpointing"),
    "precision": ("bf16", "precision"),
    "eval_every": (3, "eval_every"),
    "save_every": (5, "save_every"),
}
ADAPTED = {
    "rank": (4, 4),
    "alpha": (3.0, 3.0),
    "dropout": (0.25, 0.25),
    "variant": ("rslora", "rslora"),
    "targets": ("q_proj,v_proj", ["q_proj", "v_proj"]),
}
ELSEWHERE = {
    "method": "lora",
    "code": "fp4",
    "init": "gaussian",
    "seq": 12,
    "device": "cuda:3",
    "model": "other",
    "data": "other",
    "backend": "peft",
}


def test_no_setting_is_left_out():
    assert set(TRAINED) | set(ADAPTED) | set(ELSEWHERE) == set(declared(Settings))
    for name, (value, *_) in {**TRAINED, **ADAPTED}.items():
        assert value != declared(Settings)[name].default, f"{name}: the test could not fail"


def typed(name: str, value) -> list[str]:
    flag = "--" + name.replace("_", "-")
    return [flag] if value is True else [flag, str(value)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_setting_arrives(reach, tiny_folder, data, tmp_path, backend):
    plain = reach(backend=backend)
    assert dataclasses.asdict(plain.config) == dataclasses.asdict(TrainConfig())
    kaiming = expected_start(tiny_folder)
    assert torch.equal(start_of(plain.model), kaiming)
    for name, (value, place) in TRAINED.items():
        got = reach(*typed(name, value), backend=backend)
        assert getattr(got.config, place) == value, name
        moved = {
            other
            for other, before in dataclasses.asdict(plain.config).items()
            if getattr(got.config, other) != before
        }
        assert moved - {"warmup"} == {place} - {"warmup"}, name  # warm-up follows the steps
        if backend == "peft" and name == "precision":
            assert got.hub["dtype"] == torch.bfloat16 != plain.hub["dtype"]
        if backend == "peft" and name == "checkpointing":
            assert (got.hub[name], plain.hub[name]) == (True, False)
        if name == "seed":
            assert torch.equal(start_of(got.model), expected_start(tiny_folder, seed=value))
            assert not torch.equal(start_of(got.model), kaiming)
    for name, (value, place) in ADAPTED.items():
        adapter = reach(*typed(name, value), backend=backend).adapter
        assert adapter[name] == place, name
        assert {k: v for k, v in adapter.items() if k != name} == {
            k: v for k, v in plain.adapter.items() if k != name
        }
    gaussian = start_of(reach("--init", "gaussian", backend=backend).model)
    assert torch.equal(gaussian, expected_start(tiny_folder, init="gaussian"))
    assert not torch.equal(gaussian, kaiming)
    assert reach("--device", "cuda:3", backend=backend).devices == ["cuda:3"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_method_and_code_arrive_at_the_base(reach, backend):
    def quantization(*flags):
        return reach(*flags, backend=backend).out.about["quantization"]

    assert quantization() == {"code": "nf4", "double": True, "block": 64}
    assert quantization("--code", "fp4")["code"] == "fp4"
    assert quantization("--method", "int8") == {"code": "llm.int8", "threshold": 6.0}
    assert quantization("--method", "lora") is None
    whole = reach("--method", "full", backend=backend)
    assert whole.adapter is None and all(p.requires_grad for p in whole.model.parameters())
    assert whole.config.lr == FULL_RATE != reach(backend=backend).config.lr == TrainConfig().lr


def test_rows_come_from_the_data_and_are_as_long_as_asked(reach, tmp_path, data):
    plain = reach()
    assert len(plain.rows) == len(plain.valid) == 16
    longest = max(len(ids) for ids, _ in plain.rows)
    cut = reach("--seq", longest - 1)
    assert max(len(ids) for ids, _ in cut.rows) == longest - 1
    few = tmp_path / "few.jsonl"
    few.write_text((data / "train.jsonl").read_text().splitlines()[0] + "\n")
    got = reach("--data", few)
    assert (len(got.rows), got.valid) == (1, [])


def test_model_and_backend_arrive(reach, tmp_path, tiny_folder):
    import shutil

    shutil.copytree(tiny_folder, tmp_path / "copy")
    told = reach("--model", tmp_path / "copy").out.about["settings"]
    assert told["model"] == str(tmp_path / "copy")
    assert isinstance(reach().model, Llama)
    assert type(reach(backend="peft").model).__module__.startswith("peft.")


# -- one declaration


def test_the_adapters_defaults_are_those_of_its_own_settings():
    ours = declared(lora.AdapterConfig)
    names = [n for n, each in declared(Settings).items() if "adapter_config" in each.metadata]
    assert names == ["rank", "alpha", "targets", "variant", "init", "dropout"]
    for name in names:
        assert declared(Settings)[name].default == ours[name].default, name


def test_what_train_fit_takes_by_itself_is_what_the_command_gives():
    assert Settings().train_config() == TrainConfig()
    assert set(PRECISIONS) == {"auto", "fp32", *precision.HALVES}


def test_run_json_holds_every_setting_and_older_ones_still_resume(reach):
    told = reach().out.about["settings"]
    assert set(told) == set(declared(Settings)) and json.loads(json.dumps(told)) == told
    older = {k: v for k, v in told.items() if k not in ("lora_plus", "backend", "accumulate")}
    assert resumed(older | {"gone": 1}, {}) == resumed(told, {}) == Settings(**told)


@pytest.mark.parametrize(
    "typed, what",
    [
        ({"save_every": 9}, None),
        ({"checkpointing": True}, None),
        ({"batch": 8, "accumulate": 2}, None),
        ({"batch": 8}, "--batch 8 .*began with \\(16\\).*whose product is 16"),
        ({"accumulate": 2}, "--accumulate 2 .*product is 16"),
        ({"batch": 4, "accumulate": 2}, "--batch 4"),
        ({"lr": 1.0}, "--lr 1.0 .*0.003"),
        ({"eval_every": 4}, "--eval-every 4 "),
        ({"seed": 0}, None),
    ],
)
def test_what_a_resume_may_change(typed, what):
    saved = Settings(data="x").to_json()
    if what is None:
        assert resumed(saved, typed) == dataclasses.replace(Settings(data="x"), **typed)
        return
    with pytest.raises(MiniloraError, match=what):
        resumed(saved, typed)


def test_the_loop_itself_allows_the_same():
    began = dataclasses.asdict(TrainConfig())
    for may in ({"save_every": 9}, {"checkpointing": True}, {"batch_size": 4, "accumulate": 4}):
        assert another_run(TrainConfig, began, {**began, **may}) is None
    assert another_run(TrainConfig, began, {**began, "batch_size": 4}) == "batch_size"
    assert another_run(TrainConfig, began, {**began, "seed": 1}) == "seed"


@pytest.mark.parametrize("name", ["rank", "alpha", "targets", "variant", "init", "dropout"])
def test_what_says_nothing_for_all_weights_is_refused_even_at_its_default(name):
    with pytest.raises(MiniloraError, match=f"--{name} says nothing for --method full"):
        settle({"method": "full", name: declared(Settings)[name].default})


# -- without a parser


def test_a_run_needs_no_parser(tiny_folder, data, tmp_path, capsys):
    settings = Settings(model=str(tiny_folder), data=str(data), steps=2, batch=4, save_every=1)
    said = []
    result = finetune.run(settings, tmp_path / "run", say=said.append)
    assert result.weights.is_file() and result.history.steps == 2 and 0 < result.trainable
    assert result.trainable < result.total and "16 rows to learn from" in "\n".join(said)
    assert "validation loss" in result.told()[0] and capsys.readouterr().out == ""
    with pytest.raises(MiniloraError, match="holds a run already"):
        finetune.run(settings, tmp_path / "run", say=said.append)
    again = finetune.resume(tmp_path / "run", {"save_every": 2}, say=said.append)
    assert again.history.losses == result.history.losses and "going on after step 2" in said
    anew = finetune.run(settings, tmp_path / "run", overwrite=True, say=said.append)
    assert anew.history.losses == result.history.losses


def test_what_peft_cannot_do_is_refused_before_anything_is_written(tiny_folder, data, tmp_path):
    settings = Settings(model=str(tiny_folder), data=str(data), backend="peft", code="int4")
    with pytest.raises(MiniloraError, match="--code int4 is not among bitsandbytes'"):
        finetune.run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(MiniloraError, match="--init loftq changes the base"):
        finetune_peft.refuse(Settings(backend="peft", init="loftq"))


# -- data by name


def test_a_shipped_task_is_known_by_its_name_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = []
    shipped = load.find_data("extract", said.append)
    assert (shipped / "train.jsonl").is_file() and said == [f"extract: the shipped task, {shipped}"]
    assert set(load.tasks()) == {"extract", "facts", "mood", "style", "sums"}


def test_what_is_here_under_that_name_wins_and_is_said(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "extract").mkdir()
    said = []
    assert load.find_data("extract", said.append).resolve() == tmp_path / "extract"
    assert len(said) == 1 and "not the shipped task" in said[0] and str(tmp_path) in said[0]
    said.clear()
    (tmp_path / "mine.jsonl").write_text("{}")
    load.find_data("mine.jsonl", said.append)
    assert said == []


def test_the_base_of_an_adapter_is_named_as_it_is_found_again(tmp_path):
    assert Settings().base_name(tmp_path) == str(tmp_path)
    assert Settings(model="owner/name").base_name(tmp_path) == "owner/name"
    assert base.resolve("tiny").is_dir()


# -- what a run is compared with, and what is measured


def test_validation_rows_are_their_own(reach, data, tmp_path):
    import shutil

    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "valid.jsonl").write_text('{"prompt": "p", "response": "only here"}\n')
    got = reach("--data", tmp_path / "data")
    assert (len(got.rows), len(got.valid)) == (16, 1) and got.valid[0] not in got.rows


def test_another_base_is_another_run(tiny_folder, data, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    settings = Settings(model=str(model), data=str(data), method="lora", steps=1, batch=1)
    finetune.run(settings, tmp_path / "run", say=lambda line: None)
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MiniloraError, match="has changed since this run began; put the old model"):
        finetune.resume(tmp_path / "run", say=lambda line: None)


def test_a_loaded_model_answers_and_does_not_learn(tiny_folder, data, tmp_path):
    settings = Settings(model=str(tiny_folder), data=str(data), steps=1, batch=1, dropout=0.5)
    finetune.run(settings, tmp_path / "run", say=lambda line: None)
    model, _ = load.load(str(tiny_folder), str(tmp_path / "run"), device="cpu")
    assert not any(module.training for module in model.modules())
    assert not lora.trainable_parameters(model)


def test_a_merge_that_spoils_the_model_is_measured(tiny_folder, data, tmp_path, monkeypatch):
    from minilora.recipes import merge

    settings = Settings(model=str(tiny_folder), data=str(data), method="lora", steps=1, batch=1)
    finetune.run(settings, tmp_path / "run", say=lambda line: None)
    done = merge.run(tmp_path / "run", tmp_path / "good", str(tiny_folder), device="cpu")
    assert abs(done.kl) < 1e-9 and done.requantized is None and done.tokens > 10
    real = merge.decode_rest

    def spoil(model):
        real(model)
        model.model.norm.weight.data *= 3

    monkeypatch.setattr(merge, "decode_rest", spoil)
    done = merge.run(tmp_path / "run", tmp_path / "bad", str(tiny_folder), device="cpu")
    assert done.kl > 1e-3


def test_the_longest_row_decides_the_warning(monkeypatch, tmp_path):
    from minilora.recipes import memory_warning

    asked = []
    monkeypatch.setattr(memory_warning, "warning", lambda *given: asked.append(given[-1]))
    memory_warning.warn(Settings(), tmp_path, "cpu", [([1] * n, [1] * n) for n in (3, 9, 5)])
    assert asked == [9]

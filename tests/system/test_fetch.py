"""What is asked of the hub: only a name that can be no path, and it is said."""

import os

import pytest
from hub_server import cache, hub, no_hub  # noqa: F401  fixtures

from minilora import qlora
from minilora.errors import MiniloraError
from minilora.qlora import base
from minilora.system.fetch import hub_name

pytest.importorskip("huggingface_hub")


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    "name",
    ["", "word", "./a/b", "/a/b", "~/a/b", "../b", "a/b/c", "a//b", "a/", "/b", "a b/c", "-a/b"]
    + ["https://huggingface.co/a/b", "a\\b", "C:/models", "a/b\n", "a/ü?"],
)
def test_what_is_no_hub_name_is_not_asked_for(here, name):
    with pytest.raises(MiniloraError, match="owner/name|it is no Hub name"):
        hub_name(name)


def test_a_name_of_owner_and_repository_may_be_asked_for(here):
    for name in ("owner/name", "o/n", "Qwen/Qwen2.5-0.5B_x", "0wner/0.1"):
        assert hub_name(name) == name


@pytest.mark.parametrize("what", ["folder", "file"])
def test_where_the_owner_is_a_folder_here_nothing_is_asked(here, monkeypatch, what):
    monkeypatch.setattr(base, "fetch", lambda name: pytest.fail("the hub was asked"))
    if what == "folder":
        (here / "runs" / "extract").mkdir(parents=True)
        words = r"runs is here, so it is no Hub name.*; did you mean runs/extract\?"
    else:
        (here / "runs").write_text("x")
        words = "runs is here, so it is no Hub name"
    with pytest.raises(MiniloraError, match=f"no model 'runs/extrct': {words}") as told:
        qlora.resolve("runs/extrct")
    assert "\n" not in str(told.value)


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="this system has no fchmod")
def test_that_the_hub_is_asked_is_said(here, hub, capsys):
    qlora.resolve("someone/open")
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert told.err.startswith("minilora: someone/open is no folder here; fetching ")
    qlora.resolve("someone/open")
    assert "taking its copy in the cache" in capsys.readouterr().err


def test_without_network_one_question_is_enough(here, cache, monkeypatch, capsys):
    import huggingface_hub

    asked = []
    real = huggingface_hub.snapshot_download

    def download(name, **more):
        asked.append(more["local_files_only"])
        return real(name, **more)

    def no_network(self, *given, **more):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(MiniloraError, match="no network and no copy in the cache"):
        qlora.resolve("someone/open")
    assert asked == [True] and capsys.readouterr().err == ""

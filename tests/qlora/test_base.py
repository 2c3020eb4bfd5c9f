"""A name on the hub that cannot be fetched: one line with the remedy. A server on this machine
plays the hub; nothing outside is asked.
"""

import shutil
import sys

import pytest
from hub_server import SHA, Hub, cache, hub, look_at, no_hub  # noqa: F401  fixtures
from processes import finish, mount_small_disk

from minilora import qlora
from minilora.errors import MiniloraError

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")


def line(name):
    with pytest.raises(MiniloraError) as caught:
        qlora.resolve(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_repository(hub):
    assert (
        "cannot fetch 'someone/missing' from the Hub (there is no such repository, or it is "
        "private)"
    ) in line("someone/missing")


@pytest.mark.parametrize("name", ["gated401", "gated403", "gated403listed"])
def test_a_gated_repository(hub, name):
    """Without a token and with one that has not accepted; the list of files may be open to all."""
    told = line(f"someone/{name}")
    assert "licence must be accepted on its page" in told and "HF_TOKEN" in told


@pytest.mark.parametrize(
    "name, words",
    [
        ("refused", "the token in HF_TOKEN is not accepted"),
        ("busy", "asked too often; wait"),
        ("broken", "the Hub answers with 500"),
    ],
)
def test_a_hub_that_does_not_answer_is_no_missing_network(hub, monkeypatch, name, words):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries again a few times
    assert words in line(f"someone/{name}") and "network" not in line(f"someone/{name}")


def test_no_network(cache):
    assert "no network and no copy in the cache" in line(
        "someone/model"
    ) and "give a folder" in line("someone/model")


def test_a_repository_is_fetched_once_and_needs_no_network_then(hub, cache, tiny_folder):
    import torch

    from minilora.llama import Llama

    folder = qlora.resolve("someone/open")
    hub.shutdown(), hub.server_close()
    assert qlora.resolve("someone/open") == folder and folder.is_relative_to(cache)
    fetched, there = (
        Llama.from_pretrained(folder).state_dict(),
        Llama.from_pretrained(tiny_folder).state_dict(),
    )
    assert all(torch.equal(fetched[name], there[name]) for name in there)
    assert {path.name for path in folder.iterdir()} == {path.name for path in tiny_folder.iterdir()}


def test_a_disk_that_is_too_small_is_seen_before_the_download(hub, cache):
    """Pickled weights, which are not fetched, do not count."""
    told = line("someone/large")
    free = shutil.disk_usage(cache.parent).free
    assert (
        f"someone/large takes {10**17 / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at "
        f"{cache.parent}"
    ) in told and "HF_HOME" in told
    assert not list(cache.rglob("*")), "something was fetched"


def fetch_onto_a_small_disk(port, disk, room):
    """The line that is said when a file outgrows the disk in the middle of its download, whose size
    nobody had told before.
    """
    if not mount_small_disk(disk, room):
        return 77
    with pytest.MonkeyPatch.context() as change:
        look_at(port, disk / "cache", change)
        print(line("someone/unsized"), file=sys.stderr)
    return 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a mount")
def test_a_disk_that_fills_on_the_way(hub, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    code = finish(fetch_onto_a_small_disk, hub.server_port, disk, 100_000, err=tmp_path / "err")
    if code == 77:
        pytest.skip("this system lets nobody mount a disk")
    told = (tmp_path / "err").read_text()
    assert (
        code == 0
        and (
            "cannot fetch 'someone/unsized' from the Hub (no space left on the disk); make room, "
            "or set HF_HOME"
        )
        in told
    ), told


@pytest.mark.parametrize("number", [28, 122])
def test_a_full_disk_and_a_full_quota_inside_another_error(cache, monkeypatch, number):
    def full(*arguments, **more):
        try:
            raise OSError(number, "no more")
        except OSError as error:
            raise RuntimeError("download failed") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    assert "no space left on the disk" in line("someone/missing") and "HF_HOME" in line(
        "someone/missing"
    )

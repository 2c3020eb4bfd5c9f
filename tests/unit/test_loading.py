"""A name on the hub that cannot be fetched: one line with the remedy. A server on this machine
plays the hub; nothing outside is asked.
"""

import hashlib
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from processes import finish, mount_small_disk

from minilora import loading
from minilora.errors import MiniloraError

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")


SHA = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does. What the repository is called says how: missing, gated, refused,
    busy, broken, large, or (others) `folder`, whole.
    """

    sizes = {"config.json": 300, "model.safetensors": 10**17, "pytorch_model.bin": 10**19}
    folder = None

    def do_GET(self):
        name, _, rest = (
            self.path.removeprefix("/api/models")
            .lstrip("/")
            .split("?")[0]
            .partition("/")[2]
            .partition("/")
        )
        asks_file = "/resolve/" in self.path
        if name.startswith("gated") and (
            asks_file or name.endswith("listed")
        ):  # all may see what is in it
            self.answer(int(name[5:8]), {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        elif name == "refused":
            self.answer(
                401,
                {"error": "x"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
        elif name in ("busy", "broken"):
            self.answer(429 if name == "busy" else 500, {"error": name})
        elif name == "large":
            self.answer(200, self.info(self.sizes))
        elif name.startswith(("gated", "open", "unsized")):
            self.serve(rest, asks_file, "someone/unsized" not in self.path)
        else:
            self.answer(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def serve(self, rest, asks_file, sized):
        found = {path.name: path.stat().st_size for path in self.folder.iterdir()}
        if asks_file:
            data = (self.folder / rest.rpartition("/")[2]).read_bytes()
            self.answer(
                200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA}
            )
        elif rest.startswith("tree/"):
            self.answer(
                200,
                [
                    {"type": "file", "path": name, "size": size, "oid": SHA}
                    for name, size in found.items()
                ],
            )
        else:
            self.answer(200, self.info(found if sized else dict.fromkeys(found)))

    def info(self, sizes):
        siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
        return {"id": "someone/model", "modelId": "someone/model", "sha": SHA, "siblings": siblings}

    def answer(self, status, content, headers={}):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def look_at(port, cache, change):
    """Let the library ask this machine, from an empty cache, without a token, and without a proxy
    between this machine and itself.
    """
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        change.setattr(constants, name, str(cache), raising=False)
    change.setattr(constants, "HF_HUB_OFFLINE", False)
    change.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    change.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    (
        change.setenv("NO_PROXY", "127.0.0.1"),
        change.setenv("no_proxy", "127.0.0.1"),
        change.setenv("HF_TOKEN", ""),
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        port = server.server_port  # nobody listens there once it is closed
    look_at(port, tmp_path / "cache", monkeypatch)
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch, tiny_folder):
    monkeypatch.setattr(Hub, "folder", tiny_folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    look_at(server.server_port, cache, monkeypatch)
    yield server
    server.shutdown(), server.server_close()


def line(name):
    with pytest.raises(MiniloraError) as caught:
        loading.resolve(name)
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

    folder = loading.resolve("someone/open")
    hub.shutdown(), hub.server_close()
    assert loading.resolve("someone/open") == folder and folder.is_relative_to(cache)
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

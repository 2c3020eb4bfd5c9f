"""A name on the hub that cannot be fetched: one line with the remedy. A server on this machine plays the hub; nothing outside is asked."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from minilora import loading
from minilora.errors import MiniloraError

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: by repository, a missing one, a gated one, or one whose weights are very large."""

    sizes = {"config.json": 300, "model.safetensors": 10**17, "pytorch_model.bin": 10**19}

    def do_GET(self):
        if "/gated" in self.path:
            self.answer(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        elif "/large" in self.path:
            files = [{"rfilename": name, "size": size} for name, size in self.sizes.items()]
            self.answer(200, {"id": "someone/large", "modelId": "someone/large", "sha": "0" * 40, "siblings": files})
        else:
            self.answer(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status, content, headers={}):
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no token, and no proxy between this machine and itself."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1"), monkeypatch.setenv("no_proxy", "127.0.0.1"), monkeypatch.setenv("HF_TOKEN", "")
    return tmp_path / "cache"


@pytest.fixture
def hub(cache, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown(), server.server_close()


def line(name):
    with pytest.raises(MiniloraError) as caught:
        loading.resolve(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_repository(hub):
    assert "cannot fetch 'someone/missing' from the Hub (there is no such repository, or it is private)" in line("someone/missing")


def test_a_gated_repository(hub):
    told = line("someone/gated")
    assert "licence must be accepted on its page" in told and "HF_TOKEN" in told


def test_no_network(cache, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        port = server.server_port  # nobody listens there once it is closed
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert "no network and no copy in the cache" in line("someone/model") and "give a folder" in line("someone/model")


def test_a_disk_that_is_too_small_is_seen_before_the_download(hub, cache):
    """Pickled weights, which are not fetched, do not count."""
    told = line("someone/large")
    free = shutil.disk_usage(cache.parent).free
    assert f"someone/large takes {10**17 / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {cache.parent}" in told and "HF_HOME" in told
    assert not list(cache.rglob("*")), "something was fetched"


def test_a_disk_that_fills_on_the_way(hub, cache, monkeypatch):
    def full(*arguments, **more):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("download failed") from error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    assert "no space left on the disk" in line("someone/missing") and "HF_HOME" in line("someone/missing")

"""A server on this machine that plays the hub, and the library turned towards it."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

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
def no_hub(tmp_path, monkeypatch):
    """The hub's cache of a test, where no hub answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        port = server.server_port  # nobody listens there once it is closed
    look_at(port, tmp_path / "cache", monkeypatch)
    return tmp_path / "cache"


@pytest.fixture
def cache(no_hub):
    return no_hub


@pytest.fixture
def hub(no_hub, monkeypatch, tiny_folder):
    monkeypatch.setattr(Hub, "folder", tiny_folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    look_at(server.server_port, no_hub, monkeypatch)
    yield server
    server.shutdown(), server.server_close()

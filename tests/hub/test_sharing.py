"""Nothing leaves the machine unless a place is named; then the adapter's two files and a card, and
nothing else. A server here plays the hub.
"""

import base64
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from safetensors.torch import load_file, save_file

from minilora import lora
from minilora.errors import MiniloraError
from minilora.hub.sharing import share
from minilora.llama import Llama

pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")


class Hub(BaseHTTPRequestHandler):
    """Takes a repository and a commit whose files are small enough to stand in it; or refuses."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.heard.append((self.path, body))
        if self.server.refuses:
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path.endswith("/repos/create"):
            return self.answer(200, {"url": f"http://127.0.0.1:{self.server.server_port}/me/mine"})
        if "/preupload/" in self.path:
            return self.answer(
                200,
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in json.loads(body)["files"]
                    ]
                },
            )
        return self.answer(
            200,
            {
                "commitUrl": f"http://127.0.0.1:{self.server.server_port}/me/mine/commit/0",
                "commitOid": "0" * 40,
            },
        )

    def do_GET(self):
        self.answer(200, {"id": "me/mine", "private": not self.server.public, "siblings": []})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.heard, server.refuses, server.public = [], False, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub.hf_api as api

    address = f"http://127.0.0.1:{server.server_port}"
    (
        monkeypatch.setattr(constants, "ENDPOINT", address),
        monkeypatch.setattr(api.constants, "ENDPOINT", address),
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (
        monkeypatch.setenv("NO_PROXY", "127.0.0.1"),
        monkeypatch.setenv("no_proxy", "127.0.0.1"),
        monkeypatch.setenv("HF_TOKEN", "hf_test"),
    )
    yield server
    server.shutdown(), server.server_close()


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A run's folder: the adapter, and beside it what is nobody's business."""
    lora.save_adapter(
        lora.add_lora(Llama.from_pretrained(tiny_folder), rank=2),
        tmp_path / "run",
        base_model="owner/base",
    )
    (tmp_path / "run" / "run.json").write_text('{"settings": "secret"}')
    return tmp_path / "run"


def test_without_a_name_nothing_is_even_tried(folder, monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError("a connection was tried")

    (
        monkeypatch.setattr(socket.socket, "connect", refuse),
        monkeypatch.setattr(socket, "getaddrinfo", refuse),
    )
    for name in (None, ""):
        assert share(folder, name) == "no repository is named, so nothing has left this machine"
    assert "nothing has left" in share("no such folder", None)


def test_only_the_adapter_and_a_card_go_up_and_into_a_private_place(folder, hub):
    told = share(folder, "me/mine")
    assert told == (
        "README.md, adapter_config.json, adapter_model.safetensors are in private repository "
        "me/mine"
    )
    created = json.loads(next(body for path, body in hub.heard if path.endswith("/repos/create")))
    assert created.get("visibility") == "private" or created.get("private") is True
    commit = next(body for path, body in hub.heard if "/commit/" in path)
    sent = [
        json.loads(line)["value"]
        for line in commit.splitlines()
        if json.loads(line)["key"] == "file"
    ]
    assert {file["path"] for file in sent} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert "secret" not in "".join(body for _, body in hub.heard)


def test_a_public_repository_that_is_there_already_gets_nothing_unless_told(folder, hub):
    hub.public = True
    with pytest.raises(MiniloraError, match="me/mine is there already and public; name another"):
        share(folder, "me/mine")
    assert not any("/commit/" in path or "/preupload/" in path for path, _ in hub.heard)
    assert share(folder, "me/mine", private=False).endswith("in public repository me/mine")


def test_a_refusal_is_one_line(folder, hub):
    hub.refuses = True
    with pytest.raises(
        MiniloraError, match="'me/mine' cannot be written .*hf auth login"
    ) as caught:
        share(folder, "me/mine")
    assert "\n" not in str(caught.value)


def test_a_folder_of_this_machine_is_named_to_nobody(folder, hub, tmp_path, monkeypatch):
    config = json.loads((folder / "adapter_config.json").read_text())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "models").mkdir(parents=True)
    for base in (str(tmp_path), "./here", "~/models", "my/models", "tiny", None):
        (folder / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": base})
        )
        with pytest.raises(MiniloraError, match="nobody else can find"):
            share(folder, "me/mine")
    with pytest.raises(MiniloraError, match="holds no adapter"):
        share(tmp_path, "me/mine")
    assert hub.heard == []


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_link_is_not_followed(folder, hub, tmp_path, name):
    secret = tmp_path / "secret"
    (folder / name).rename(secret)
    (folder / name).symlink_to(secret)
    with pytest.raises(MiniloraError, match=f"{name} is a symbolic link"):
        share(folder, "me/mine")
    assert hub.heard == []


def test_fields_that_are_not_the_adapters_stay_here(folder, hub):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"author": "private", "notes": {"home": "/private"}}))
    assert share(folder, "me/mine").endswith("; author, notes of adapter_config.json stayed here")
    commit = next(body for path, body in hub.heard if "/commit/" in path)
    sent = {
        each["value"]["path"]: base64.b64decode(each["value"]["content"])
        for each in map(json.loads, commit.splitlines())
        if each["key"] == "file"
    }
    assert json.loads(sent["adapter_config.json"]) == config
    assert sent["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    assert not any(b"private" in content for content in sent.values())


def test_weights_whose_header_says_more_stay_here(folder, hub):
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "trained_by": "private"})
    with pytest.raises(MiniloraError, match="holds 'trained_by' in its header"):
        share(folder, "me/mine")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(MiniloraError, match="adapter_model.safetensors is damaged"):
        share(folder, "me/mine")
    with pytest.raises(MiniloraError, match="'../mine' is no repository"):
        share(folder, "../mine")
    assert hub.heard == []

"""Pushing to the hub: the real client against a hub in this process, which also says no."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from modality_forcing.errors import UserError
from modality_forcing.export.hub import Repository, _client
from modality_forcing.paths import as_path
from tests.runs import Command, refused

huggingface_hub = pytest.importorskip("huggingface_hub")

TOKEN = "hf_right"
PRIVATE = {"private": None, "visibility": "private"}  # in the words of huggingface_hub 2


class Hub:
    """A hub that takes small files.

    Attributes:
      requests: method and path of each request. files: content of repositories, by branch.
      refuse: the status by a part of a path.
    """

    def __init__(self):
        self.requests: list[tuple[str, str]] = []
        self.made: list[dict] = []
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuse: dict[str, int] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                path = unquote(self.path.partition("?")[0])
                hub.requests.append((self.command, path))
                status, content = hub.serve(path, body, self.headers.get("Authorization", ""))
                encoded = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(encoded)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(encoded)

            do_GET = do_POST = do_HEAD = do_PUT = answer

            def log_message(self, format, *args) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    def serve(self, path: str, body: bytes, login: str) -> tuple[int, object]:
        status = next((code for part, code in self.refuse.items() if part in path), 0)
        if status or login != f"Bearer {TOKEN}":
            return status or 401, {"error": "Not here"}
        if path == "/api/whoami-v2":
            return 200, {"name": "owner", "type": "user", "auth": {"accessToken": {}}}
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            return 200, {"url": f"{self.address}/owner/name", "name": "owner/name"}
        if "/branch/" in path:
            self.files.setdefault(path.rpartition("/")[2], {})
            return 200, {}
        if "/preupload/" in path:
            listed = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return 200, {"files": [{"path": file["path"], **regular} for file in listed]}
        if "/commit/" in path:
            branch = self.files.setdefault(path.rpartition("/")[2], {})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    branch[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.address}/owner/name/commit/0123"
            return 200, {"success": True, "commitOid": "0123", "commitUrl": url, "hookOutput": ""}
        return 200, {"id": "owner/name", "sha": "0123", "siblings": []}

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    hub = Hub()
    api = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api(endpoint=hub.address, token=TOKEN))
    # Older versions read the address of a new repository by the default endpoint.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    yield hub
    hub.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    (out / "weights" / "d").mkdir(parents=True)
    (out / "README.md").write_text("---\nlicense: mit\n---\n")
    (out / "weights" / "d" / "0").write_bytes(bytes(range(256)))
    return out


def test_files_are_sent_as_one_commit(hub: Hub, folder: Path):
    repository = Repository("owner/name", private=True)
    repository.check(folder)
    assert hub.made == []
    assert repository.push(folder) == f"{hub.address}/owner/name"
    assert hub.made[0]["name"] == "name" and hub.made[0]["organization"] == "owner"
    settings = {key: hub.made[0].get(key) for key in ("private", "visibility")}
    assert settings in ({"private": True, "visibility": None}, PRIVATE)
    assert hub.files == {
        "main": {"README.md": (folder / "README.md").read_bytes(), "weights/d/0": bytes(range(256))}
    }
    assert len([path for _, path in hub.requests if "/commit/" in path]) == 1


def test_branch_is_made_and_written(hub: Hub, folder: Path):
    address = Repository("owner/name", revision="v1").push(folder)
    assert address == f"{hub.address}/owner/name/tree/v1"
    assert hub.files.keys() == {"v1"} and "README.md" in hub.files["v1"]
    assert hub.made[0].keys() <= {"name", "organization"}  # private as its owner's settings say


@pytest.mark.parametrize(
    ("part", "status", "message"),
    [
        ("whoami", 401, r"cannot be reached on the hub .* log in with `hf auth login`"),
        ("/api/", 403, r"cannot be created on the hub .*may write; the export is complete: `hf up"),
        ("/commit/", 500, r"cannot be written on the hub .*check the network"),
        ("/branch/", 404, r"cannot be given the branch v1 on the hub .*check the names"),
    ],
)
def test_refusal_is_one_line_and_the_folder_stays(
    hub: Hub, folder: Path, part: str, status: int, message: str, monkeypatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    hub.refuse = {part: status}
    repository = Repository("owner/name", revision="v1")
    with pytest.raises(UserError, match=f"owner/name: {message}") as caught:
        if part == "whoami":
            repository.check(folder)
        repository.push(folder)
    assert "\n" not in str(caught.value)
    assert (folder / "README.md").exists()


def test_hub_out_of_reach_is_one_line(hub: Hub, folder: Path):
    hub.close()
    with pytest.raises(UserError, match="owner/name: cannot be reached on the hub") as caught:
        Repository("owner/name").check(folder)
    assert "check the network" in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_names_are_refused_before_the_hub_is_asked(hub: Hub, folder: Path):
    for name in ("name", "a/b/c", "owner/", "owner/na me", "../name"):
        with pytest.raises(UserError, match=r"--push-to-hub is .*; write OWNER/NAME"):
            Repository(name).check(folder)
    with pytest.raises(UserError, match="reads no bucket; name an --out on a disk"):
        Repository("owner/name").check(as_path("gs://bucket/out"))
    assert hub.requests == []


def test_command_pushes_what_it_exported(
    hub: Hub, forcing_run: Path, tmp_path: Path, mforce: Command
):
    out = tmp_path / "out"
    command = ("export", f"--checkpoint={forcing_run}", f"--out={out}")
    refused(mforce(*command, "--push-to-hub=name"), "write OWNER/NAME")
    assert not out.exists()
    done = mforce(*command, "--format=safetensors", "--push-to-hub=owner/name")
    assert done.code == 0, done.err
    assert done.out == f"{out}\n{hub.address}/owner/name\n"
    sent = hub.files["main"]
    assert sent == {path.name: path.read_bytes() for path in out.iterdir()}
    assert sent.keys() == {"README.md", "manifest.json", "weights.safetensors"}


def test_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs the package huggingface_hub; pip install"):
        _client()

"""The page of `mforce app` as a process, and a client that speaks to it without a browser."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests import runs


@dataclass(frozen=True)
class Served:
    """A running page: its address, its process, and the folder that its files are in."""

    address: str
    process: subprocess.Popen[str]
    folder: Path


@contextmanager
def serving(checkpoint: Path, folder: Path, *options: str) -> Iterator[Served]:
    """Starts the command with its temporary files in a folder, and ends it."""
    command = runs.command("app", "--checkpoint", checkpoint, "--port", 0, *options)
    log = folder.with_name(f"{folder.name}.log")
    with log.open("w") as errors:
        running = subprocess.Popen(
            command,
            env={**runs.environment(), "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line.startswith("http://"), log.read_text()
        yield Served(line.split()[0].rstrip("/"), running, folder)
    finally:
        running.kill()
        running.wait()


class Client:
    """One user of a page, with a session of its own."""

    def __init__(self, address: str):
        self.address, self.session = address, uuid.uuid4().hex
        self.config = json.loads(self.get("/config")[1])

    def get(self, path: str) -> tuple[int, bytes]:
        """Returns the status and body of an address of the page."""
        try:
            with urllib.request.urlopen(self.address + quote(path), timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def raw(self, path: str) -> int:
        """Returns the status of a request whose path is sent as it is."""
        connection = HTTPConnection(self.address.removeprefix("http://"), timeout=60)
        connection.putrequest("GET", path, skip_host=False)
        connection.endheaders()
        status = connection.getresponse().status
        connection.close()
        return status

    def upload(self, name: str, content: bytes) -> tuple[int, Any]:
        """Sends a file; returns the status, and its path on the server or the message."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"'
        body = f"{head}\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
        about = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(f"{self.address}/gradio_api/upload", body, about)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())[0]
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(self, button: str, first: Any) -> Event:
        """Clicks a button with other inputs as the page shows them at first."""
        components = {one["id"]: one["props"] for one in self.config["components"]}
        (target,) = (i for i, props in components.items() if props.get("elem_id") == button)
        index, found = next(
            (i, one)
            for i, one in enumerate(self.config["dependencies"])
            if [target, "click"] in [list(x) for x in one["targets"]]
        )
        values = [first, *(components[i].get("value") for i in found["inputs"][1:])]
        body = {"fn_index": index, "data": values, "session_hash": self.session}
        about = {"Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{self.address}/gradio_api/queue/join", json.dumps(body).encode(), about
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200
        return Event(self)


@dataclass(frozen=True)
class Event:
    """A click whose answer is still to come."""

    client: Client

    def wait(self) -> tuple[str | None, list[str]]:
        """Returns the message of an error, None if it is none, and the paths of all its files."""
        address = f"{self.client.address}/gradio_api/queue/data?session_hash={self.client.session}"
        with urllib.request.urlopen(address, timeout=60) as lines:
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                message = json.loads(line[5:])
                if message["msg"] == "process_completed":
                    output = message["output"]
                    error = None if message["success"] else output.get("error") or "Error"
                    return error, list(_paths(output.get("data")))
        raise AssertionError("no answer")


def picture(path: str) -> dict[str, Any]:
    """Returns the value of an image component for a file on the server."""
    return {"path": path, "orig_name": os.path.basename(path), "meta": {"_type": "gradio.FileData"}}


def _paths(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for one in value.values():
            yield from _paths(one)
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one)

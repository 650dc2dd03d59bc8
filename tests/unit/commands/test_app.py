"""`mforce app`: what is refused before a page is served. tests/e2e/test_app.py serves one."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from modality_forcing.commands import app
from modality_forcing.paths import as_path
from tests.runs import refused

# It is not imported here, which takes seconds.
missing = importlib.util.find_spec("gradio") is None
needs_gradio = pytest.mark.skipif(missing, reason="needs gradio")


def test_missing_package_is_one_line(mforce, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = r"needs the package gradio; pip install 'modality_forcing\[app\]'"
    refused(mforce("app", "--checkpoint", "runs/mf"), message)


@needs_gradio
def test_taken_port_is_one_line(mforce):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = mforce("app", "--checkpoint", "runs/mf", "--port", port)
    refused(done, rf"127.0.0.1: port {port} is taken; choose another --port, or 0")


@needs_gradio
def test_missing_checkpoint_is_one_line_and_leaves_nothing(mforce, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    refused(mforce("app", "--checkpoint", tmp_path / "nowhere", "--port", 0), "nowhere")
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("port", ["-1", "65536", "x", "8.0"])
def test_port_that_is_none_is_one_line(mforce, port):
    done = mforce("app", "--checkpoint", "c", f"--port={port}")
    refused(done, "is no port: give 0 to 65535")


@pytest.mark.parametrize(
    ("checkpoint", "shown"),
    [
        ("runs/demo/forcing/", "demo/forcing"),
        ("mf", "mf"),
        ("/", ""),
        ("hf:org/name", "hf:org/name"),
    ],
)
def test_page_names_the_last_parts_of_a_checkpoint(checkpoint, shown):
    assert app._name(as_path(checkpoint)) == shown

"""What is let through to the page: its own addresses, its own files, small requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import NamedTuple

import pytest

from modality_forcing.app.guard import Guard, Message

MB = 10**6
HERE = {"host": "localhost:7860"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(
    guard: Guard, method: str, path: str, *, chunks: tuple[bytes, ...] = (), **headers: str
) -> Answer:
    """Sends one request as a web server does, and returns the whole answer."""
    named = {name.replace("_", "-"): value for name, value in {**HERE, **headers}.items()}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }
    waiting: list[Message] = [
        {"type": "http.request", "body": chunk, "more_body": i < len(chunks) - 1}
        for i, chunk in enumerate(chunks or (b"",))
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert len(starts) == 1
    body = b"".join(message.get("body", b"") for message in sent)
    answered = {name.decode(): value.decode() for name, value in starts[0]["headers"]}
    return Answer(starts[0]["status"], answered, body)


async def page(scope, receive, send) -> None:
    """Answers every request with the number of bytes it had; fails where they do not all come."""
    count, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        count += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(count).encode()})


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/own.png").write_bytes(b"own")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "files/link").symlink_to(tmp_path / "secret")
    return Guard(page, tmp_path / "files", 50 * MB)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/", "/config", "/theme.css", "/assets/index.js")),
        *(("GET", f"/gradio_api/{name}") for name in ("heartbeat/abc", "queue/data")),
        *(("POST", f"/gradio_api/{name}") for name in ("upload", "queue/join", "cancel")),
    ],
)
def test_addresses_of_the_page_pass(guard, method, path):
    assert ask(guard, method, path).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/proxy=http://127.0.0.1:22/"),
        ("GET", "/gradio_api/file=http://169.254.169.254/latest/meta-data"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/vibe-edit"),
        ("POST", "/gradio_api/component_server"),
        ("GET", "/gradio_api/info"),
        ("GET", "/monitoring"),
        ("GET", "/custom_component/0/client/component/../../x"),
        ("DELETE", "/"),
        ("POST", "/"),
        ("GET", "//gradio_api/queue/data"),
    ],
)
def test_other_addresses_are_not_found(guard, method, path):
    assert ask(guard, method, path).status == 404


def test_files_of_the_page_are_served_and_no_others(guard, tmp_path):
    folder = guard.folder

    def status(path: object) -> int:
        return ask(guard, "GET", f"/gradio_api/file={path}").status

    assert status(folder / "own.png") == 200
    for path in (
        "/etc/passwd",
        "etc/passwd",
        "../secret",
        tmp_path / "secret",
        f"{folder}/../secret",
        f"{folder}/link",
        f"{folder}",
        f"{folder}\0/own.png",
        f"file://{folder}/own.png",
        "",
    ):
        assert status(path) == 404, path


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example:7860"}, 403),  # a name of another site that leads here
        ({"host": ""}, 403),
        ({"host": "["}, 403),
        ({"origin": "http://localhost:9999"}, 200),  # a tunnel to this port
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_requests_of_other_sites_are_refused(guard, headers, status):
    assert ask(guard, "POST", "/gradio_api/queue/join", **headers).status == status


def test_any_name_of_the_machine_serves_when_told(guard):
    open_to_all = Guard(page, guard.folder, MB, any_host=True)
    assert ask(open_to_all, "GET", "/", host="gpu7.lan").status == 200
    assert ask(open_to_all, "GET", "/", host="gpu7.lan", origin="http://evil.example").status == 403


def test_large_upload_is_refused_in_words(guard):
    chunks = (bytes(MB),) * 60
    answer = ask(guard, "POST", "/gradio_api/upload", chunks=chunks, content_length=str(60 * MB))
    assert answer.status == 413
    assert answer.body == b"the file is too large: at most 50 MB\n"


def test_large_upload_of_unstated_length_is_refused(guard):
    answer = ask(guard, "POST", "/gradio_api/upload", chunks=(bytes(MB),) * 60)
    assert (answer.status, answer.body) == (413, b"the file is too large: at most 50 MB\n")


def test_upload_below_the_limit_passes(guard):
    answer = ask(guard, "POST", "/gradio_api/upload", chunks=(bytes(MB),) * 50)
    assert (answer.status, answer.body) == (200, str(50 * MB).encode())


def test_requests_that_are_no_uploads_are_small(guard):
    answer = ask(guard, "POST", "/gradio_api/queue/join", chunks=(bytes(MB),) * 2)
    assert (answer.status, answer.body) == (413, b"the request is too large\n")


def test_full_folder_refuses_uploads_alone(guard):
    full = Guard(page, guard.folder, MB, is_full=lambda: True)
    answer = ask(full, "POST", "/gradio_api/upload")
    assert answer.status == 507 and b"try again later" in answer.body
    assert ask(full, "GET", "/").status == 200


@pytest.mark.parametrize("path", ["/", "/nowhere"])
def test_every_answer_keeps_the_browser_here(guard, path):
    headers = ask(guard, "GET", path).headers
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert headers["x-content-type-options"] == "nosniff"


def test_errors_of_the_page_pass(guard):
    async def broken(scope, receive, send) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ask(Guard(broken, guard.folder, MB), "GET", "/")

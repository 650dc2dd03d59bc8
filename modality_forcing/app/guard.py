"""What a page of Gradio answers to: its own addresses, its own files, requests of bounded size.

Gradio has more routes than a page needs, such as proxies to other servers, and serves files by
path. This ASGI application stands before it and lets through only what the page uses.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]  # of ASGI, like Scope
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api/"
UPLOAD = f"{API}upload"
FILE = f"{API}file="
_GET = {
    *("/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"),
    *(f"{API}{name}" for name in ("upload_progress", "queue/data", "startup-events", "app_id")),
}
_GET_BELOW = ("/assets/", "/static/", f"{API}heartbeat/", FILE)
_POST = {UPLOAD, *(f"{API}{name}" for name in ("queue/join", "cancel", "reset"))}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MAX_JSON = 2**20  # bytes of a request that is no upload: captions and numbers
_FORM = 2**16  # bytes around a file in a form
# Scripts of the page are its own, and it connects to nothing else, whatever a library would load.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _POLICY.encode()),
]


@dataclass(frozen=True)
class Guard:
    """An ASGI application that passes on the requests of a page and answers all others.

    404: an address that the page does not use, or a file outside its folder. 403: a request that
    another site makes a browser send. 413: too many bytes. 507: the folder is full.

    Attributes:
      app: the page.
      folder: files below it may be read.
      max_bytes: of an uploaded file.
      any_host: whether requests may name this machine by any name. Else only by those of loopback,
        so that another site cannot name it by one of its own.
      is_full: whether to refuse further uploads.
    """

    app: App
    folder: Path
    max_bytes: int
    any_host: bool = False
    is_full: Callable[[], bool] = lambda: False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request, as ASGI defines it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        refused = self._refuse(scope["method"], scope["path"], headers)
        limit = self.max_bytes + _FORM if scope["path"] == UPLOAD else _MAX_JSON
        if refused is None and _length(headers) > limit:
            await _drain(receive, 20 * limit)  # a browser shows no answer while it still sends
            refused = self._too_large(scope["path"])
        if refused is not None:
            await _answer(send, *refused)
            return
        await self._pass_on(scope, receive, send, limit=limit)

    def _refuse(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str] | None:
        host = _hostname(f"//{headers.get('host', '')}")
        origin = headers.get("origin")
        if not self.any_host and host not in _LOOPBACK:
            return 403, "this page is for this machine only"
        if origin is not None and _hostname(origin) != host:
            return 403, "requests of other sites are not answered"
        if method == "POST" and path in _POST:
            full = path == UPLOAD and self.is_full()
            return (507, "the server has no room for more files, try again later") if full else None
        if method not in ("GET", "HEAD") or not (path in _GET or path.startswith(_GET_BELOW)):
            return 404, "not found"
        if path.startswith(FILE) and not self._is_below(path.removeprefix(FILE)):
            return 404, "not found"
        return None

    def _is_below(self, path: str) -> bool:
        if "\0" in path:
            return False
        return os.path.realpath(path).startswith(os.path.realpath(self.folder) + os.sep)

    def _too_large(self, path: str) -> tuple[int, str]:
        if path == UPLOAD:
            return 413, f"the file is too large: at most {self.max_bytes // 10**6} MB"
        return 413, "the request is too large"

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, *, limit: int) -> None:
        count, started = 0, False

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > limit:  # of a body whose length was not stated
                return {"type": "http.disconnect"}
            return message

        async def sent(message: Message) -> None:
            nonlocal started
            if count > limit and not started:
                return
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        try:
            await self.app(scope, counted, sent)
        except Exception:
            if count <= limit:
                raise
        if count > limit and not started:
            await _drain(receive, 20 * limit)
            await _answer(send, *self._too_large(scope["path"]))


def _length(headers: dict[str, str]) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isdecimal() else 0


def _hostname(address: str) -> str | None:
    """Returns the lower-case name of a host in an address, None where there is none."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


async def _drain(receive: Receive, at_most: int) -> None:
    """Reads and drops the rest of a request, up to a number of bytes."""
    while at_most > 0:
        message = await receive()
        at_most -= len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


async def _answer(send: Send, status: int, text: str) -> None:
    body = f"{text}\n".encode()
    about = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    about.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*about, *_HEADERS]})
    await send({"type": "http.response.body", "body": body})

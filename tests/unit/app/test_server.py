"""The socket and the web server of the page."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request

import pytest

from modality_forcing.app import server
from modality_forcing.errors import UserError


def test_taken_port_is_one_line():
    with (
        server.listen("127.0.0.1", 0) as first,
        pytest.raises(UserError, match=r"^127.0.0.1: port \d+ is taken; choose another --port"),
    ):
        server.listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("host", ["no such host", "192.0.2.1", "a" * 300])
def test_host_of_another_machine_is_one_line(host):
    with pytest.raises(UserError, match=r"choose another --host"):
        server.listen(host, 0)


def test_loopback_is_told_from_open_addresses():
    with server.listen("127.0.0.1", 0) as here, server.listen("0.0.0.0", 0) as everywhere:
        assert server.is_loopback(here) and not server.is_loopback(everywhere)
        port = everywhere.getsockname()[1]
        assert server.address_of(everywhere) == f"http://127.0.0.1:{port}/"


async def slow(scope, receive, send) -> None:
    """Answers at once, and ends one address never, as an open page does."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    endless = scope["path"] == "/endless"
    await send({"type": "http.response.body", "body": b"here\n", "more_body": endless})
    while endless and (await receive())["type"] != "http.disconnect":
        pass


def test_server_answers_and_ends_while_a_page_is_open(capfd):
    pytest.importorskip("uvicorn")
    with server.listen("127.0.0.1", 0) as listening:
        address = server.address_of(listening)
        with server.serving(slow, listening):
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert answer.read() == b"here\n"
            still_open = urllib.request.urlopen(f"{address}endless", timeout=10)
            assert still_open.readline() == b"here\n"
            start = time.monotonic()
        assert time.monotonic() - start < 3
        assert capfd.readouterr() == ("", "")
        still_open.close()
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_server_that_does_not_start_is_one_line():
    pytest.importorskip("uvicorn")

    async def broken(scope, receive, send) -> None:
        message = await receive()
        await send({"type": f"{message['type']}.failed", "message": "broken"})

    with (
        server.listen("127.0.0.1", 0) as listening,
        pytest.raises(UserError, match="the web server did not start"),
        server.serving(broken, listening),
    ):
        pass
    assert "page" not in [thread.name for thread in threading.enumerate()]

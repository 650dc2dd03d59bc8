"""Serves a page until a signal: the socket, the web server's thread, the end."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modality_forcing.app.guard import App
from modality_forcing.errors import UserError
from modality_forcing.system_errors import reason

_BACKLOG = 128
_STARTS_WITHIN, _ENDS_WITHIN = 60.0, 3.0  # seconds; a tenth is usual
_POLL = 0.01


def quiet_environment(folder: Path) -> None:
    """Sets what Gradio and its libraries read when they are imported.

    Its files are below the folder, and it asks nothing of any other machine.
    """
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples_cache"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_SSR_MODE": "False",
        "GRADIO_MCP_SERVER": "False",
        "GRADIO_SHARE": "False",
        "GRADIO_RUN_HISTORY": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def listen(host: str, port: int) -> socket.socket:
    """Returns a bound socket; port 0 takes a free one. Raises UserError if it is not available."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        what, hint = "is no address of this machine", "choose another --host"
        raise UserError(what, where=host, hint=hint) from error
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            hint = "choose another --port, or 0 for a free one"
            raise UserError(f"port {port} is taken", where=host, hint=hint) from error
        what = f"port {port} cannot be opened ({reason(error)})"
        raise UserError(what, where=host, hint="choose another --host or --port") from error
    return opened


def address_of(listening: socket.socket) -> str:
    """Returns the address of the page for a browser on this machine."""
    host, port = map(str, listening.getsockname()[:2])
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def is_loopback(listening: socket.socket) -> bool:
    """Returns whether only this machine reaches a socket."""
    host = listening.getsockname()[0]
    return host == "::1" or host.startswith("127.")


@contextmanager
def serving(app: App, listening: socket.socket) -> Iterator[None]:
    """Answers requests in a thread until the context ends, then drops those not finished.

    Raises UserError if the server does not start.
    """
    import uvicorn

    # Its own logging would close the handlers of other libraries, and absl's closes stderr.
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
    )
    logging.getLogger("uvicorn.error").disabled = False
    server = uvicorn.Server(config)

    def run() -> None:
        with suppress(SystemExit):  # how it says that it did not start
            server.run(sockets=[listening])

    thread = threading.Thread(target=run, name="page", daemon=True)
    thread.start()
    deadline = time.monotonic() + _STARTS_WITHIN
    try:
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(_POLL)
        if not server.started:
            raise UserError("the web server did not start", hint="see its messages above")
        yield
    finally:
        logging.getLogger("uvicorn.error").disabled = True  # dropped requests are not errors
        server.should_exit = server.force_exit = True  # a page keeps connections open
        thread.join(_ENDS_WITHIN)

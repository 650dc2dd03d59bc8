"""A bucket in this process: fixtures of a storage emulator that also fails on request.

`folder` runs a test twice, in a local folder and in the bucket. The emulator ignores the conditions
of requests (ifGenerationMatch), which locks rely on: they are checked here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

NAME = "bucket"


class Bucket:
    """A running emulator.

    Attributes:
      address: gs://bucket.
      requests: the method and the path, with its query, of each request so far.
      fault: called with both before a request is served: it may sleep, and returns the status to
        answer instead, if any.
      on_bytes: called with both and the number of bytes sent along.
    """

    def __init__(self):
        from gcp_storage_emulator import server
        from gcp_storage_emulator.handlers import buckets
        from gcp_storage_emulator.storage import Storage

        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(NAME, self.storage)
        self.address = f"gs://{NAME}"
        self.requests: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda method, path: None
        self.on_bytes: Callable[[str, str, int], None] = lambda method, path, size: None
        self.lock = threading.Lock()  # the emulator is not made for threads
        self._http = _Server(("127.0.0.1", 0), partial(_handler(server), self))
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.port = self._http.server_port

    def environment(self) -> dict[str, str]:
        """Variables that send the clients of a process here."""
        return environment(self.port)

    def names(self, prefix: str = "") -> list[str]:
        """The names of all objects, sorted."""
        with self.lock:
            files, _ = self.storage.get_file_list(NAME, prefix or None, None, None)
        return sorted(file["name"] for file in files)

    def below(self, folder: Path) -> list[Path]:
        """The addresses of all objects below one, sorted."""
        from modality_forcing.paths import as_path

        names = self.names(str(folder).removeprefix(f"{self.address}/") + "/")
        return [as_path(f"{self.address}/{name}") for name in names]

    def content(self, name: str) -> bytes:
        """The content of an object."""
        with self.lock:
            return self.storage.get_file(NAME, name)

    def generation(self, name: str) -> int:
        """The generation of an object, 0 if there is none. The lock is held."""
        from gcp_storage_emulator.exceptions import NotFound

        try:
            return int(self.storage.get_file_obj(NAME, name)["generation"])
        except NotFound:
            return 0

    def close(self) -> None:
        """Stops the server."""
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """Says nothing of clients that went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def environment(port: int) -> dict[str, str]:
    """Variables that send the clients of a process to the emulator of another one."""
    url = f"http://127.0.0.1:{port}"
    return {
        "STORAGE_EMULATOR_HOST": url,  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": url,
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,  # array-record
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


def _handler(server) -> type:
    class Handler(server.RequestHandler):
        def __init__(self, bucket: Bucket, *args):
            self.bucket = bucket
            super().__init__(bucket.storage, *args)

        def _serve(self) -> None:
            self.bucket.requests.append((self.command, self.path))
            size = int(self.headers.get("Content-Length") or 0)
            self.bucket.on_bytes(self.command, self.path, size)
            status = self.bucket.fault(self.command, self.path)
            if status is None:
                with self.bucket.lock:
                    if self._condition_holds():
                        server.Router(self).handle(self.command)
                        return
                status = 412
            server._read_raw_data(self)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

        def _condition_holds(self) -> bool:
            url = urlsplit(self.path)
            query = parse_qs(url.query)
            wanted = query.get("ifGenerationMatch")
            return wanted is None or int(wanted[0]) == self.bucket.generation(self._name())

        def _name(self) -> str:
            url = urlsplit(self.path)
            given = parse_qs(url.query).get("name")
            return given[0] if given else unquote(url.path.partition("/o/")[2])

        def end_headers(self) -> None:
            # As the real service does, whose clients take the generation from there.
            if self.command == "GET" and (name := self._name()):
                self.send_header("x-goog-generation", str(self.bucket.generation(name)))
            super().end_headers()

        def log_message(self, format, *args) -> None:
            pass

    return Handler


@pytest.fixture(scope="session")
def _emulator() -> Iterator[Bucket]:
    pytest.importorskip("gcp_storage_emulator")
    pytest.importorskip("gcsfs")
    bucket = Bucket()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.environment().items():
            patch.setenv(name, value)
        yield bucket
    bucket.close()


@pytest.fixture
def bucket(_emulator: Bucket) -> Iterator[Bucket]:
    """The emulator, without a memory of earlier requests and without faults."""
    _emulator.requests.clear()
    yield _emulator
    _emulator.fault = lambda method, path: None


@pytest.fixture
def gs_path(bucket: Bucket, tmp_path: Path) -> Path:
    """An address in the bucket that no other test uses."""
    from modality_forcing.paths import as_path

    return as_path(f"{bucket.address}/{tmp_path.parent.name}/{tmp_path.name}")


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder on the disk, then an address in the bucket."""
    return request.getfixturevalue("gs_path") if request.param == "bucket" else tmp_path

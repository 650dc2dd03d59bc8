"""Locks in a bucket: an object that its owner renews, and that others take over once it is old.

The object is created, renewed, taken over and deleted only if it is still the one that was seen
(tensorstore's `if_equal`, which is ifGenerationMatch of gs:// and If-Match of s3://), so that of
two who try at once one succeeds. Its owner renews it every 10 s. A process that wants it watches
it, and takes it over if it stays the same for 60 s of the watcher's own time: no clocks are
compared. The owner of a lease that was taken over, as after a pause of minutes, ends at once.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from modality_forcing import buckets
from modality_forcing.buckets import BucketPath
from modality_forcing.progress import print_stderr

if TYPE_CHECKING:
    from tensorstore import Future, KvStore

P = ParamSpec("P")
T = TypeVar("T")

RENEW_S = 10.0
DEAD_S = 60.0  # without a renewal, after which a lease belongs to whoever takes it
_POLL_S = 2.0
_ANSWER_S = 30.0  # for one request, retries included
_SCHEMES = {"gs": "gcs", "s3": "s3"}
_LOST_CODE = 1  # of a process whose lease was taken over; launchers start it again, to be refused


@contextmanager
def try_hold(path: BucketPath, wait: bool = False) -> Iterator[bool]:
    """Tries to hold a lease, and yields whether it succeeded, as `locks.try_hold` does.

    A live owner is noticed within 10 s, a dead one within 60 s; that of this machine at once.
    """
    lease = Lease(path)
    held = lease.acquire(wait)
    try:
        yield held
    finally:
        if held:
            lease.release()


def owner(path: BucketPath) -> str:
    """Returns the owner that an object names, "" if there is none or it is old by our clock.

    For reports: this is a guess where the clocks of machines differ.
    """
    content, _ = Lease(path).read()
    if content is None or _is_dead(content):
        return ""
    renewed = content.get("renewed")
    old = isinstance(renewed, int | float) and time.time() - renewed > DEAD_S
    return "" if old else str(content.get("owner", "another process"))


def live_owner(path: BucketPath) -> str:
    """Returns the owner of a lease, "" if it is dead or there is none; watches for up to 60 s."""
    with try_hold(path) as free:
        return "" if free else owner(path) or "another process"


class Lease:
    """A lease that this process may come to hold."""

    def __init__(self, path: BucketPath):
        self._path = path
        self._store = _open(path.parent)
        self._id = secrets.token_hex(8)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        name = f"process {os.getpid()} on {socket.gethostname()} since {since}"
        self._content = {"owner": name, "id": self._id, **_process()}
        self._generation = b""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, daemon=True)

    def acquire(self, wait: bool) -> bool:
        """Takes the lease if it is free or its owner is dead; returns whether it did."""
        seen: bytes | None = None
        since = time.monotonic()
        while True:
            content, generation = self.read()
            unchanged = generation == seen and time.monotonic() - since >= DEAD_S
            if content is None or _is_dead(content) or unchanged:
                if self._write(generation):
                    self._thread.start()
                    return True
                generation = None  # another one was faster
            if generation != seen:
                if seen is not None and not wait:
                    return False  # renewed: its owner lives
                if seen is None and content is not None:
                    self._note(content, wait)
                seen, since = generation, time.monotonic()
            time.sleep(_POLL_S)

    def read(self) -> tuple[Mapping[str, object] | None, bytes]:
        """Returns what the object says, None if there is none, and its generation."""
        found = self._ask("locked", self._store.read, self._path.name)
        if found.state == "missing":
            return None, found.stamp.generation
        content: object = None
        with suppress(ValueError):
            content = json.loads(found.value)
        return content if isinstance(content, dict) else {}, found.stamp.generation

    def release(self) -> None:
        """Deletes the object, if it is still this lease."""
        self._stop.set()
        self._thread.join()
        with suppress(Exception):  # it is taken over after a while
            arguments = {"if_equal": self._generation}
            self._ask("unlocked", self._store.write, self._path.name, None, **arguments)

    def _note(self, content: Mapping[str, object], wait: bool) -> None:
        who = content.get("owner", "another process")
        what = f"up to {DEAD_S:.0f} s to see whether {who} is alive"
        print_stderr(f"{self._path}: waiting {f'until {who} ends' if wait else what}")

    def _write(self, generation: bytes) -> bool:
        """Writes the object if it has a generation; returns whether it is this lease now."""
        text = json.dumps({**self._content, "renewed": time.time()})
        write = self._store.write
        stamp = self._ask("locked", write, self._path.name, text.encode(), if_equal=generation)
        if stamp.generation:
            self._generation = stamp.generation
            return True
        content, generation = self.read()  # an answer may have been lost, and the request repeated
        if content is None or content.get("id") != self._id:
            return False
        self._generation = generation
        return True

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                if self._write(self._generation):
                    continue
                content, _ = self.read()
            except Exception:  # out of reach: for others too, most likely
                continue
            if not self._stop.is_set():
                who = "nobody" if content is None else content.get("owner", "another process")
                print_stderr(f"{self._path}: was taken over by {who}; exiting")
                _end(_LOST_CODE)
                return

    def _ask(
        self, done: str, request: Callable[P, Future[T]], *arguments: P.args, **options: P.kwargs
    ) -> T:
        try:
            return request(*arguments, **options).result(timeout=_ANSWER_S)
        except Exception as error:  # ValueError and TimeoutError of many meanings
            raise buckets.explain(error, self._path, done) from error


_end = os._exit  # without a last save, which would go into the workdir of another


def _open(folder: BucketPath) -> KvStore:
    import tensorstore  # takes 0.2 s

    scheme, _, rest = str(folder).partition("://")
    bucket, _, below = rest.partition("/")
    driver = _SCHEMES[scheme]
    spec = {
        "driver": driver,
        "bucket": bucket,
        "path": f"{below}/" if below else "",
        "context": {f"{driver}_request_retries": {"max_retries": 4}},
    }
    try:
        return tensorstore.KvStore.open(spec).result(timeout=_ANSWER_S)
    except Exception as error:
        raise buckets.explain(error, folder, "locked") from error


def _process() -> dict[str, str]:
    """Returns what identifies this process among all that its machine ever ran."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        return {}
    return {"machine": f"{boot} {space}", "pid": str(os.getpid()), "started": _start(os.getpid())}


def _start(pid: int) -> str:
    """Returns when a process started, in ticks since boot; "" if there is none or it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]  # Z: killed, and its parent has not noticed


def _is_dead(content: Mapping[str, object]) -> bool:
    """Returns whether a lease is of a process of this machine that is gone."""
    ours = _process()
    if not ours or content.get("machine") != ours["machine"]:
        return False
    pid = str(content.get("pid", ""))
    return pid.isdigit() and _start(int(pid)) != content.get("started")

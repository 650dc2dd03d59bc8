"""Locks of folders in use: a second run in the same folder is refused, and a dead one holds none.

A lock is a file that its owner holds by flock and deletes at the end. The kernel releases the flock
of a killed process, and the next owner takes the file over. flock works between the processes of
one machine and on network disks that support it. Where it is not supported, a line says so once and
nothing is locked.

Callers name a folder and a lock in it. In a bucket a lease takes the place of flock (`leases`).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from modality_forcing import leases
from modality_forcing.buckets import BucketPath
from modality_forcing.errors import UserError
from modality_forcing.paths import as_path, exists, os_error
from modality_forcing.progress import print_stderr

LOCK = ".lock"  # of a whole folder
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def hold(folder: str | Path, option: str, name: str = LOCK) -> Iterator[None]:
    """Holds a lock of a folder, which is created for the time if it does not exist.

    Raises UserError, naming the owner and the option that chose the folder, if another run holds
    the lock or it cannot be written.
    """
    folder = as_path(folder)
    above: list[Path] = []
    if not isinstance(folder, BucketPath):
        folder = Path(os.path.abspath(folder))
        above = [path for path in (folder, *folder.parents) if not exists(path)]
    try:
        with try_hold(folder / name) as held:
            if not held:
                what = f"is in use by {owner(folder / name) or 'another process'}"
                hint = f"wait until it has ended, or choose another {option}"
                raise UserError(what, where=folder, hint=hint)
            yield
    finally:
        with suppress(OSError):  # not empty
            for path in above:
                path.rmdir()


@contextmanager
def try_hold(path: Path, wait: bool = False) -> Iterator[bool]:
    """Tries to hold a lock, and yields whether it succeeded.

    wait: until it is free. Raises UserError if the file cannot be written.
    """
    if isinstance(path, BucketPath):
        with leases.try_hold(path, wait) as held:
            yield held
        return
    file = _acquire(path, wait)
    try:
        yield file is not None
    finally:
        if file is not None:
            with suppress(OSError):
                path.unlink()  # before it is released: who waits for it looks again
            file.close()


def owner(path: Path) -> str:
    """Returns the process that holds a lock, "" if none is visible from here.

    For reports. In a bucket it may have died within the last minute.
    """
    if isinstance(path, BucketPath):
        return leases.owner(path)
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read().strip() or "another process"
    except OSError:
        pass
    return ""


def live_owner(path: Path) -> str:
    """Returns the process that holds a lock, "" if none; in a bucket that takes up to a minute."""
    return leases.live_owner(path) if isinstance(path, BucketPath) else owner(path)


def _acquire(path: Path, wait: bool) -> TextIO | None:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            raise os_error(error, path, "locked") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                file.close()
                raise os_error(error, path, "locked") from error
            _note_unsupported(path.parent)
        if _is_at(file, path):
            break
        file.close()  # the last owner deleted the file between its opening and the flock
    file.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"process {os.getpid()} on {socket.gethostname()} since {since}", file=file, flush=True)
    return file


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@functools.cache
def _note_unsupported(folder: Path) -> None:
    print_stderr(f"{folder}: the file system has no locks, so a second run here is not refused")

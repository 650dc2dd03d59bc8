"""Objects in buckets (gs://, s3://): what paths.py does there.

An object appears whole when its upload ends, so that no temporary name is needed, and nothing is
ever renamed, which would copy it. Folders exist only as the prefixes of objects.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import posixpath
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PosixPath
from typing import Any

import fsspec
import fsspec.config
from etils.epath.gpath import PosixGPath

from modality_forcing.errors import StorageFailed, UserError
from modality_forcing.progress import print_stderr
from modality_forcing.system_errors import os_error

# One slash is what pathlib leaves of gs://.
_ADDRESS = re.compile(r"([A-Za-z][-+.A-Za-z0-9]+):/+")
_CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}  # extra of this package with a client: its module
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_CONTACT_S = 20.0  # for the first contact with a bucket, retries included
_LOOKUP_S = 60.0  # for later questions; transfers have 5 minutes a request
_PATIENCE_S = 5.0  # after which a line says what is being waited for
_CREDENTIALS = {
    "gs": "check the credentials (gcloud auth application-default login) and their role",
    "s3": "check the credentials (AWS_ACCESS_KEY_ID, ~/.aws) and their policy",
}
_SCOPE = "https://www.googleapis.com/auth/devstorage.full_control"
_CLIENT_MODULES = ("aiohttp", "requests", "gcsfs", "botocore", "google")
_SERVICE = re.compile(r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|HTTP response code")  # tensorstore's
_DENIED = re.compile(
    r"forbidden|denied|unauthorized|\b40[13]\b|credentials|does not have .*access", re.I
)


class BucketPath(PosixGPath, PosixPath):
    """An address in a bucket, a `pathlib.Path` for all that does not touch files.

    It is an `etils.epath.Path` too, as which Orbax takes it. Files are read and written through
    `paths` only.
    """

    def absolute(self) -> BucketPath:
        """Returns itself."""
        return self

    def resolve(self, strict: bool = False) -> BucketPath:
        """Returns the address without `..`, whether it exists or not."""
        scheme, _, rest = str(self).partition("://")
        return BucketPath(f"{scheme}://{posixpath.normpath('/' + rest).strip('/')}")

    def expanduser(self) -> BucketPath:
        """Returns itself."""
        return self

    def is_symlink(self) -> bool:
        """Returns False: buckets have no links."""
        return False


def is_address(path: str | Path) -> bool:
    """Returns whether a path is the address of a bucket, such as gs://bucket/folder."""
    return isinstance(path, BucketPath) or _ADDRESS.match(os.fspath(path)) is not None


def is_supported(path: str | Path) -> bool:
    """Returns whether a path is an address that a client reads: gs:// or s3://."""
    match = _ADDRESS.match(os.fspath(path))
    return match is not None and match[1].lower() in _CLIENTS


def as_bucket_path(address: str | Path) -> BucketPath:
    """Returns an address as a path; raises UserError for schemes other than gs and s3."""
    if isinstance(address, BucketPath):
        return address
    text = os.fspath(address)
    match = _ADDRESS.match(text)
    scheme = match[1].lower() if match else ""
    if match is None or scheme not in _CLIENTS:
        what = f"is an address of the kind {scheme}://, which is not supported"
        raise UserError(what, where=text, hint="use gs://, s3:// or a path")
    return BucketPath(f"{scheme}://{text[match.end() :]}")


def kind(path: BucketPath) -> int | None:
    """Returns stat.S_IFREG of an object, stat.S_IFDIR of a prefix, None if there is nothing.

    Raises UserError if the bucket does not answer: sooner, and as a mistake, if it never did.
    """
    bucket = _bucket(path)
    if bucket in _reached:
        return _kind(path, _LOOKUP_S)
    noted = f"{bucket}: waiting for an answer, for up to {_CONTACT_S:.0f} s"
    timer = threading.Timer(_PATIENCE_S, print_stderr, (noted,))
    timer.daemon = True
    timer.start()
    try:
        found = _kind(path, _CONTACT_S)
    except StorageFailed as error:
        raise UserError(str(error)) from error  # a wrong name as well as a bad network
    finally:
        timer.cancel()
    _reached.add(bucket)
    return found


def check(path: BucketPath, hint: str) -> int | None:
    """Returns the kind of an address; raises UserError if its bucket cannot be reached or read."""
    bucket = _bucket(path)
    if str(bucket).endswith("//"):
        raise UserError("names no bucket", where=path, hint=hint)
    found = kind(path)
    if found is None and kind(bucket) is None:
        raise UserError("no such bucket", where=bucket, hint=hint)
    return found


def list_dir(path: BucketPath) -> list[BucketPath]:
    """Returns what is directly below a prefix, sorted."""
    with _one_line(path, "listed"):
        names = _client(path).ls(str(path), detail=False, timeout=_LOOKUP_S)
    last = {name.rstrip("/").rpartition("/")[2] for name in names if not _same(name, path)}
    return sorted(path / name for name in last)


def read(path: BucketPath) -> bytes:
    """Returns the content of an object."""
    with _one_line(path, "read"):
        content = _client(path).cat_file(str(path))
        return content.encode() if isinstance(content, str) else content


def write(path: BucketPath, content: bytes) -> None:
    """Writes an object, which replaces an earlier one at once."""
    with _one_line(path, "written"):
        _client(path).pipe_file(str(path), content)


def upload(local: Path, path: BucketPath) -> None:
    """Writes an object with the content of a local file."""
    with _one_line(path, "written"):
        _client(path).put_file(str(local), str(path))


def download(path: BucketPath, local: Path) -> None:
    """Writes the content of an object into a local file."""
    with _one_line(path, "read"):
        _client(path).get_file(str(path), str(local))


def remove(path: BucketPath) -> None:
    """Deletes an object, if it exists."""
    with _one_line(path, "deleted"), suppress(FileNotFoundError):
        _client(path).rm_file(str(path))


def remove_tree(path: BucketPath) -> None:
    """Deletes all objects below a prefix."""
    with _one_line(path, "deleted"), suppress(FileNotFoundError):
        _client(path).rm(str(path), recursive=True)


def size(path: BucketPath) -> int:
    """Returns the bytes of an object; raises FileNotFoundError if it does not exist."""
    return _info(path)["size"]


def version(path: BucketPath) -> str:
    """Returns a text that changes with each write of an object."""
    found = _info(path)
    return str(found.get("generation") or found.get("ETag") or found.get("mtime"))


_reached: set[BucketPath] = set()  # buckets that answered this process


def _bucket(path: BucketPath) -> BucketPath:
    return BucketPath("/".join(str(path).split("/")[:3]))


def _kind(path: BucketPath, seconds: float) -> int | None:
    try:
        found = _info(path, seconds)
    except FileNotFoundError:
        return None
    return stat.S_IFDIR if found["type"] == "directory" else stat.S_IFREG


def _info(path: BucketPath, seconds: float = _LOOKUP_S) -> dict[str, Any]:
    with _one_line(path, "looked up", missing=True):
        return _client(path).info(str(path), timeout=seconds)


def _same(name: str, path: BucketPath) -> bool:
    return name.rstrip("/") == str(path).partition("://")[2].rstrip("/")


def _client(path: BucketPath) -> fsspec.AbstractFileSystem:
    scheme = str(path).partition("://")[0]
    _set_up(scheme)
    return fsspec.filesystem(scheme)  # one a process and scheme, which fsspec keeps


@functools.cache
def _set_up(scheme: str) -> None:
    """Loads the package of a scheme; raises UserError if it is not installed."""
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks more and prints
    try:
        importlib.import_module(_CLIENTS[scheme])
    except ImportError as error:
        hint = f"pip install 'modality_forcing[{_EXTRAS[scheme]}]'"
        raise UserError(f"{scheme}:// needs {_CLIENTS[scheme]}", hint=hint) from error
    for name in (_CLIENTS[scheme], "fsspec", "google.auth"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they print tracebacks of retries
    # For every client of the process, those of Orbax too: another process writes in between.
    options = fsspec.config.conf.setdefault(scheme, {})
    options.setdefault("use_listings_cache", False)
    if scheme == "gs" and not os.environ.get("STORAGE_EMULATOR_HOST"):
        _check_google(options)


def _check_google(options: dict[str, object]) -> None:
    """Finds the credentials of gs://, which gcsfs looks for and tries for too long.

    Where there are none, it would ask a metadata server for 20 s that is not there; public buckets
    remain. With expired ones it would repeat requests. Raises UserError for those.
    """
    auth = importlib.import_module("google.auth")
    request = importlib.import_module("google.auth.transport.requests").Request()
    errors = auth.exceptions
    try:
        found, _ = auth.default(scopes=[_SCOPE], request=request)
        found.refresh(request)
    except errors.DefaultCredentialsError:
        options.setdefault("token", "anon")
    except errors.RefreshError as error:
        unreachable = isinstance(error.__cause__, errors.TransportError)
        if not error.retryable and not unreachable:
            reason = " ".join(str(error.args[0]).split())[:200]
            what = f"access is denied (the credentials cannot be refreshed: {reason})"
            raise UserError(what, where="gs://", hint=_CREDENTIALS["gs"]) from error
    except errors.TransportError:
        pass  # of a network that may come back


@contextmanager
def _one_line(path: BucketPath, done: str, missing: bool = False) -> Iterator[None]:
    """Turns the many kinds of errors of clients into a UserError.

    missing: FileNotFoundError stays.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        if missing:
            raise
        what = f"cannot be {done}: no such object or bucket"
        raise UserError(what, where=path, hint="check the address") from error
    except Exception as error:
        raise explain(error, path, done) from error


def explain(error: Exception, path: BucketPath, done: str) -> UserError:
    """Returns the error of a client in one line: "ADDRESS: cannot be DONE (reason); hint"."""
    words = " ".join(str(error).split()).strip(" ,")[:200] or type(error).__name__
    module = type(error).__module__.partition(".")[0]
    if isinstance(error, PermissionError) or _DENIED.search(words):
        hint = _CREDENTIALS[str(path).partition("://")[0]]
        return UserError(f"cannot be {done}: access is denied ({words})", where=path, hint=hint)
    if isinstance(error, TimeoutError):
        words = "no answer in time"
    elif module not in _CLIENT_MODULES and not _SERVICE.search(words):
        return os_error(error, path, done, "check the address and the credentials")
    hint = "check the address, the network and the credentials"
    return StorageFailed(f"cannot be {done} ({words})", where=path, hint=hint)

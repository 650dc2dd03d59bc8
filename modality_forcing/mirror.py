"""A local folder in place of an address, for libraries that write to disks only.

Its files are uploaded under their own names. Of a path on a disk the mirror is the path itself.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from modality_forcing import buckets, paths
from modality_forcing.buckets import BucketPath


class Mirror:
    """The local folder of a path, whose new and changed files are uploaded on request.

    Attributes:
      local: the path itself, or a temporary folder for an address.
    """

    def __init__(self, path: Path):
        self._target = path if isinstance(path, BucketPath) else None
        self.local = path
        if self._target is not None:
            try:
                self.local = Path(tempfile.mkdtemp(prefix="mforce-"))
            except OSError as error:
                raise paths.os_error(error, tempfile.gettempdir(), "written") from error
        self._uploaded: dict[Path, tuple[int, int]] = {}

    def upload(self) -> None:
        """Uploads the files that changed since the last time; raises UserError if that fails."""
        if self._target is None:
            return
        for file in sorted(self.local.rglob("*")):
            if not file.is_file():
                continue
            state = file.stat()
            seen = (state.st_size, state.st_mtime_ns)
            if self._uploaded.get(file) != seen:
                name = file.relative_to(self.local).as_posix()
                buckets.upload(file, self._target / name)
                self._uploaded[file] = seen

    def discard(self) -> None:
        """Deletes the temporary folder."""
        if self._target is not None:
            shutil.rmtree(self.local, ignore_errors=True)

    def close(self) -> None:
        """Uploads and deletes the temporary folder; raises UserError if the former fails."""
        try:
            self.upload()
        finally:
            self.discard()


def on_disk(path: Path, patterns: Sequence[str]) -> Path:
    """Returns a file or folder of a disk with the content of a path.

    An address is downloaded once for each version into `~/.cache/modality_forcing`
    (XDG_CACHE_HOME), of a folder the files whose names match a pattern. Raises UserError if that
    fails.
    """
    if not isinstance(path, BucketPath):
        return path
    if paths.is_file(path):
        files = [path]
    elif paths.is_dir(path):
        files = sorted({BucketPath(f) for p in patterns for f in paths.glob(path, p)})
    else:
        return path  # whoever reads it reports it
    versions = "\n".join(f"{file} {buckets.version(file)}" for file in files)
    digest = hashlib.sha256(versions.encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = paths.make_folder(Path(cache) / "modality_forcing" / digest)
    for file in files:
        if not paths.exists(folder / file.name):
            unfinished = folder / f".{file.name}.{secrets.token_hex(4)}"
            try:
                buckets.download(file, unfinished)
                paths.move_file(unfinished, folder / file.name)
            except OSError as error:
                raise paths.os_error(error, folder, "written") from error
            finally:
                unfinished.unlink(missing_ok=True)
    return folder / path.name if files == [path] else folder


@contextmanager
def fetched(path: Path) -> Iterator[Path]:
    """Yields a path of a disk: that of a file in a bucket has a copy of it, for as long.

    A folder of a bucket stays what it is.
    """
    if not isinstance(path, BucketPath) or not paths.is_file(path):
        yield path
        return
    mirror = Mirror(path.parent)
    try:
        buckets.download(path, mirror.local / path.name)
        yield mirror.local / path.name
    except OSError as error:
        raise paths.os_error(error, mirror.local, "written") from error
    finally:
        mirror.discard()


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yields the local folder of a path; its files are uploaded if the block ends well."""
    mirror = Mirror(path)
    try:
        yield mirror.local
        mirror.upload()
    finally:
        mirror.discard()

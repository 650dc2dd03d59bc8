"""A local folder in place of an address, for libraries that write to disks only.

Its files are uploaded under their own names. Of a path on a disk the mirror is the path itself.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
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


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Yields the local folder of a path; its files are uploaded if the block ends well."""
    mirror = Mirror(path)
    try:
        yield mirror.local
        mirror.upload()
    finally:
        mirror.discard()

"""The one door to files, on disks and in buckets: what a path names, reading, listing, writing.

Whatever the system or a bucket refuses becomes a UserError of one line. All of the package passes
paths through `as_path` and acts on files through these functions, so that gs://bucket/folder serves
as a folder does. Exceptions stay on disks: the unpacked data sets of others, and what libraries map
into memory.
"""

from __future__ import annotations

import fnmatch
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from modality_forcing import buckets
from modality_forcing.buckets import BucketPath, is_address
from modality_forcing.errors import UserError
from modality_forcing.system_errors import cause as cause
from modality_forcing.system_errors import hint_for as hint_for
from modality_forcing.system_errors import is_environment_error as is_environment_error
from modality_forcing.system_errors import os_error as os_error
from modality_forcing.system_errors import reason as reason

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_DESCRIPTORS = ("/dev/std", "/dev/fd/", "/proc/")  # replacing their files would cut the output off
_NEARLY_ADDRESSES = ("gs:", "s3:")  # without a slash: a run would be kept on a disk
_CHECK = "check the path"


def as_path(text: str | Path) -> Path:
    """Returns the path of a text: a `BucketPath` for an address such as gs://bucket/folder.

    Serves as the type of an option. `pathlib.Path(text)` would drop a slash of an address. One of
    another kind than gs:// and s3:// is refused where it is used.
    """
    return buckets.as_bucket_path(text) if buckets.is_supported(text) else Path(text)


def exists(path: str | Path) -> bool:
    """Returns whether a path names anything; a dangling link does not.

    Like all functions of this module it raises UserError where the system does not say, as below a
    folder that may not be searched, for a name that is too long and for a bucket out of reach.
    """
    return _kind(path) is not None


def is_file(path: str | Path) -> bool:
    """Returns whether a path names a regular file, maybe through links."""
    return _kind(path) == stat.S_IFREG


def is_dir(path: str | Path) -> bool:
    """Returns whether a path names a folder, maybe through links."""
    return _kind(path) == stat.S_IFDIR


def require_dir(path: str | Path, hint: str = _CHECK) -> Path:
    """Returns the path; raises UserError if it is no folder that can be listed."""
    return _require(path, stat.S_IFDIR, hint)


def list_dir(path: str | Path, hint: str = _CHECK) -> list[Path]:
    """Returns what is in a folder, sorted; raises UserError if it cannot be listed."""
    path = require_dir(path, hint)
    if isinstance(path, BucketPath):
        return [*buckets.list_dir(path)]
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise os_error(error, path, "listed") from error


def glob(folder: str | Path, pattern: str) -> list[Path]:
    """Returns what is in a folder under names that match a pattern, sorted; [] if there is none.

    The pattern is of one name: it has no slash. Case counts.
    """
    if not is_dir(folder):
        return []
    return [path for path in list_dir(folder) if fnmatch.fnmatchcase(path.name, pattern)]


def require_file(path: str | Path, hint: str = _CHECK) -> Path:
    """Returns the path; raises UserError if it is no regular file, such as a device or a pipe."""
    return _require(path, stat.S_IFREG, hint)


def read_bytes(path: str | Path, hint: str = _CHECK) -> bytes:
    """Returns the content of a file, or of a pipe to its end.

    Raises UserError if it cannot be read, or is a folder or a device, which may have no end.
    """
    path = as_path(path)
    if isinstance(path, BucketPath):
        return buckets.read(path)
    if _kind(path) != stat.S_IFIFO:
        require_file(path, hint)
    try:
        return path.read_bytes()
    except OSError as error:
        raise os_error(error, path, "read", hint) from error


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file for reading; an object of a bucket is fetched into memory.

    Raises OSError as `open` does, and UserError for what a bucket refuses.
    """
    path = as_path(path)
    if isinstance(path, BucketPath):
        yield io.BytesIO(buckets.read(path))
        return
    with open(path, "rb") as opened:
        yield opened


def size(path: str | Path) -> int:
    """Returns the bytes of a file. Raises OSError if it does not exist."""
    path = as_path(path)
    return buckets.size(path) if isinstance(path, BucketPath) else path.stat().st_size


def read_text(path: str | Path, hint: str = _CHECK) -> str:
    """Returns the content of a text file in UTF-8, with its line ends as they are stored.

    A byte-order mark is dropped. Raises UserError as `read_bytes` does, and for other encodings.
    """
    try:
        return read_bytes(path, hint).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"is not text in UTF-8 (byte {error.start})"
        raise UserError(what, where=path, hint=hint) from error


def resolve(path: str | Path) -> Path:
    """Returns the absolute path without links, `..` and a slash at the end.

    Nothing need exist there.
    """
    if is_address(path):
        return buckets.as_bucket_path(path).resolve()
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # the working directory may be deleted
        raise os_error(error, path, "looked up") from error


def check_folder(path: str | Path, option: str, *, utf8: bool = False) -> None:
    """Raises UserError, naming the option, if a folder cannot be written to; creates nothing.

    utf8: libraries will write there that take no other names. Of a bucket it is checked that it
    can be reached; whether it may be written to shows when something is.
    """
    hint = f"choose another {option}"
    if is_address(path):
        if buckets.check(buckets.as_bucket_path(path), hint) == stat.S_IFREG:
            raise UserError("is a file", where=path, hint=hint)
        return
    if str(path).startswith(_NEARLY_ADDRESSES):
        hint = f"write {str(path).partition(':')[0]}://BUCKET/FOLDER"
        raise UserError("is not the address of a bucket", where=path, hint=hint)
    absolute = Path(os.path.abspath(path))
    if utf8 and not _is_utf8(absolute):
        what = "has a name that is not UTF-8, in which checkpoints and shards cannot be written"
        raise UserError(what, where=absolute, hint=hint)
    above = (absolute, *absolute.parents)
    existing = next(folder for folder in above if exists(folder) or folder.is_symlink())
    kind = _kind(existing)
    if kind != stat.S_IFDIR:
        what = "is a link to nothing" if kind is None else f"is {_KINDS[kind]}"
        raise UserError(what, where=existing, hint=hint)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError("may not be written to", where=existing, hint=hint)


def check_file(path: str | Path, option: str) -> None:
    """Raises UserError, naming the option, if `write_file` would fail for a path; creates nothing.

    A pipe or a character device passes: it is written into.
    """
    if is_address(path):
        buckets.check(buckets.as_bucket_path(path), f"choose another {option}")
    kind = _kind(path)
    if kind in (stat.S_IFDIR, stat.S_IFBLK, stat.S_IFSOCK):
        raise UserError(f"is {_KINDS[kind]}", where=path, hint=f"name a file with {option}")
    if kind in (None, stat.S_IFREG):
        if not is_address(path):
            check_folder(resolve(path).parent, option)
    elif not os.access(path, os.W_OK):
        raise UserError("may not be written to", where=path, hint=f"choose another {option}")


def write_file(path: str | Path, content: bytes | str) -> None:
    """Writes a file atomically, text as UTF-8, and creates its folder.

    Links are followed. A pipe or a character device is written into and never replaced. Raises
    UserError, leaving nothing behind, if that fails and for anything else that is no file.
    """
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")  # names of files may not be UTF-8
    if is_address(path):
        return buckets.write(buckets.as_bucket_path(path), content)
    kind = _kind(path)
    open_elsewhere = os.path.abspath(path).startswith(_DESCRIPTORS)
    try:
        if kind in (stat.S_IFIFO, stat.S_IFCHR) or (kind == stat.S_IFREG and open_elsewhere):
            with open(path, "wb", buffering=0) as opened:
                _write_all(opened.fileno(), content)
        elif kind not in (None, stat.S_IFREG):
            raise UserError(f"is {_KINDS[kind]}, not a file", where=path, hint="name a file")
        else:
            _replace(resolve(path), content)
    except OSError as error:
        raise os_error(error, path, "written", "choose a folder you may write to") from error


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The prefix is cut, because a name may have 255 bytes at most.
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}."[:60], delete=False
    ) as opened:
        try:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(opened.name, 0o666 & ~umask)  # temporary files are private by default
            os.replace(opened.name, path)
        except BaseException:
            os.unlink(opened.name)
            raise


def require_disk(path: Path, what: str) -> Path:
    """Returns a path; raises UserError for an address. what: is read there, which is on disks."""
    if is_address(path):
        hint = "copy them to a disk or mount the bucket; mforce prepare makes shards for buckets"
        raise UserError(f"is in a bucket, and {what} are read from disks", where=path, hint=hint)
    return path


def move_file(finished: Path, path: Path) -> None:
    """Moves a finished file of a disk to where it is read: renamed on a disk, else uploaded.

    Raises OSError where the system refuses it, and UserError where a bucket does.
    """
    if isinstance(path, BucketPath):
        buckets.upload(finished, path)
        finished.unlink()
    else:
        with open(finished, "rb") as opened:
            os.fsync(opened.fileno())
        os.replace(finished, path)


def append_file(path: str | Path, content: str) -> None:
    """Adds text to the end of a file of a disk; objects of buckets cannot be added to."""
    try:
        with open(path, "a") as opened:
            opened.write(content)
    except OSError as error:
        raise os_error(error, path, "written") from error


def make_folder(path: str | Path) -> Path:
    """Creates a folder and those above it; raises UserError if that fails.

    In a bucket there are no folders, and nothing is done.
    """
    path = as_path(path)
    if isinstance(path, BucketPath):
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, path, "created") from error
    return path


def remove(path: str | Path) -> None:
    """Deletes a file, if it exists; raises UserError if that fails."""
    path = as_path(path)
    if isinstance(path, BucketPath):
        return buckets.remove(path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise os_error(error, path, "deleted") from error


def remove_tree(path: str | Path) -> None:
    """Deletes a folder with all that is in it, as far as the system allows."""
    path = as_path(path)
    if isinstance(path, BucketPath):
        buckets.remove_tree(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _kind(path: str | Path) -> int | None:
    """Returns the type of what a path names, as in stat.S_IFMT; None if there is nothing."""
    if is_address(path):
        return buckets.kind(buckets.as_bucket_path(path))
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise os_error(error, path, "looked up") from error


def _require(path: str | Path, wanted: int, hint: str) -> Path:
    path, kind = as_path(path), _kind(path)
    if kind != wanted:
        name = _KINDS[wanted]
        what = f"is {_KINDS[kind]}, not {name}" if kind else f"no such {name.removeprefix('a ')}"
        raise UserError(what, where=path, hint=hint)
    return path


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True

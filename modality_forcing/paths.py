"""The one door to the file system: what a path names, reading, listing and atomic writing.

Whatever the system refuses becomes a UserError of one line, and addresses of buckets are refused
in one place.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

from modality_forcing.errors import UserError

# One slash is what pathlib leaves of gs://.
_ADDRESS = re.compile(r"[A-Za-z][-+.A-Za-z0-9]+:/")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_DESCRIPTORS = ("/dev/std", "/dev/fd/", "/proc/")  # replacing their files would cut the output off
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Causes that libraries report by their name or their words, without an errno.
_NAMED = (*_FULL, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_HINTS = {
    **dict.fromkeys(_FULL, "make room"),
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has too many open files",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "mend the link",
    errno.EIO: "check the disk",
}
_CHECK = "check the path"
_PERMISSION = "check the path and its permissions"


def exists(path: str | Path) -> bool:
    """Returns whether a path names anything; a dangling link does not.

    Like all functions of this module it raises UserError where the system does not say, as below a
    folder that may not be searched, for a name that is too long and for an address.
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
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise os_error(error, path, "listed") from error


def require_file(path: str | Path, hint: str = _CHECK) -> Path:
    """Returns the path; raises UserError if it is no regular file, such as a device or a pipe."""
    return _require(path, stat.S_IFREG, hint)


def read_bytes(path: str | Path, hint: str = _CHECK) -> bytes:
    """Returns the content of a file, or of a pipe to its end.

    Raises UserError if it cannot be read, or is a folder or a device, which may have no end.
    """
    path = Path(path)
    if _kind(path) != stat.S_IFIFO:
        require_file(path, hint)
    try:
        return path.read_bytes()
    except OSError as error:
        raise os_error(error, path, "read", hint) from error


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

    Nothing need exist there. An address stays as it is.
    """
    if is_address(path):
        return Path(path)
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # the working directory may be deleted
        raise os_error(error, path, "looked up") from error


def is_address(path: str | Path) -> bool:
    """Returns whether a path is the address of a bucket, such as gs://bucket/folder."""
    return _ADDRESS.match(os.fspath(path)) is not None


def check_folder(path: str | Path, option: str, *, utf8: bool = False) -> None:
    """Raises UserError, naming the option, if a folder cannot be written to; creates nothing.

    utf8: libraries will write there that take no other names.
    """
    hint = f"choose another {option}"
    if is_address(path):
        hint = f"mount the bucket and choose an {option} below the mount"
        raise UserError("is an address, and files are written to paths only", where=path, hint=hint)
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
        check_folder(path, option)  # which says what to do
    kind = _kind(path)
    if kind in (stat.S_IFDIR, stat.S_IFBLK, stat.S_IFSOCK):
        raise UserError(f"is {_KINDS[kind]}", where=path, hint=f"name a file with {option}")
    if kind in (None, stat.S_IFREG):
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


def make_folder(path: str | Path) -> Path:
    """Creates a folder and those above it; raises UserError if that fails."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, path, "created") from error
    return Path(path)


def remove(path: str | Path) -> None:
    """Deletes a file if it is there; raises UserError if that fails."""
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise os_error(error, path, "deleted") from error


def remove_tree(path: str | Path) -> None:
    """Deletes a folder and what is in it, as far as that is possible."""
    shutil.rmtree(path, ignore_errors=True)


def cause(error: BaseException) -> int | None:
    """Returns the errno of the system's error behind an error; None if there is none.

    Libraries wrap it, or leave its name or its words in their message.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        for code in _NAMED:
            if re.search(rf"\b{errno.errorcode[code]}\b|{os.strerror(code)}", str(seen), re.I):
                return code
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def is_environment_error(error: BaseException) -> bool:
    """Returns whether the machine, not data or program, causes an error: no room, no permission."""
    return cause(error) in _NAMED


def reason(error: BaseException) -> str:
    """Returns why something failed in the system's words, else in the error's own."""
    code = cause(error)
    return os.strerror(code) if code is not None else " ".join(str(error).split())


def hint_for(error: BaseException, default: str = _PERMISSION) -> str:
    """Returns what to do about an error; the default is for causes without a hint of their own."""
    code = cause(error)
    return default if code is None else _HINTS.get(code, default)


def os_error(
    error: BaseException, path: object, done: str = "used", hint: str = _PERMISSION
) -> UserError:
    """Returns the error in one line: "PATH: cannot be DONE (reason); hint"."""
    where = None if path is None else _shown(path)
    what = f"cannot be {done} ({reason(error)})"
    return UserError(what, where=where, hint=hint_for(error, hint))


def _kind(path: str | Path) -> int | None:
    """Returns the type of what a path names, as in stat.S_IFMT; None if there is nothing."""
    if is_address(path):
        raise UserError("is an address, not a path", where=path, hint="mount the bucket")
    try:
        return stat.S_IFMT(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise os_error(error, path, "looked up") from error


def _require(path: str | Path, wanted: int, hint: str) -> Path:
    path, kind = Path(path), _kind(path)
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


def _shown(path: object) -> str:
    """Returns a path for a message, a very long one cut in the middle."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:90]}...{text[-90:]}"

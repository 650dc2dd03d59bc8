"""What the system refuses, in one line: its reason, and what to do about it."""

from __future__ import annotations

import errno
import os
import re

from modality_forcing.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Causes that libraries report by their name or their words, without an errno.
_NAMED = (*_FULL, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
_HINTS = {
    **dict.fromkeys(_FULL, "make room"),
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has too many open files",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "fix the link",
    errno.EIO: "check the disk",
}
_PERMISSION = "check the path and its permissions"


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


def _shown(path: object) -> str:
    """Returns a path for a message, a very long one cut in the middle."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:90]}...{text[-90:]}"

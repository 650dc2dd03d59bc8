"""Files that are whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from modality_forcing.errors import UserError


def check_folder(path: str | Path, option: str) -> None:
    """Raises UserError, naming the option to hint, where files could not be put into a folder; makes nothing."""
    if re.match(
        r"[A-Za-z][-+.A-Za-z0-9]+:/", str(path)
    ):  # one slash is what pathlib leaves of gs://
        hint = f"mount the bucket and choose an {option} below the mount"
        raise UserError("is an address, and files are written to paths only", where=path, hint=hint)
    path = Path(path).absolute()
    place = next(place for place in (path, *path.parents) if place.exists())
    if not place.is_dir():
        raise UserError("is a file", where=place, hint=f"choose another {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError("may not be written to", where=place, hint=f"choose another {option}")


def write_file(path: str | Path, content: bytes | str) -> None:
    """Puts a whole file in place at once (text in UTF-8), making its folder; raises UserError, leaving nothing, if it cannot."""
    path = Path(path)
    if isinstance(content, str):
        content = content.encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as opened:
            try:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(
                    opened.name, 0o666 & ~umask
                )  # a temporary file is private; this one is to be shown
                os.replace(opened.name, path)
            except BaseException:
                os.unlink(opened.name)
                raise
    except OSError as error:
        hint = "make room, or choose a folder you may write to"
        raise UserError(
            f"cannot be written ({error.strerror or error})", where=path, hint=hint
        ) from error

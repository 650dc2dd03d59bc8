"""Atomic file writes: to a temporary file beside the target, then renamed."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from modality_forcing.errors import UserError


def check_folder(path: str | Path, option: str) -> None:
    """Raises UserError, naming the option, if a folder cannot be written to; creates nothing."""
    # One slash is what pathlib leaves of gs://.
    if re.match(r"[A-Za-z][-+.A-Za-z0-9]+:/", str(path)):
        hint = f"mount the bucket and choose an {option} below the mount"
        raise UserError("is an address, and files are written to paths only", where=path, hint=hint)
    path = Path(path).absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir():
        raise UserError("is a file", where=existing, hint=f"choose another {option}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError("may not be written to", where=existing, hint=f"choose another {option}")


def write_file(path: str | Path, content: bytes | str) -> None:
    """Writes a file atomically, text as UTF-8, and creates its folder.

    Raises UserError, leaving nothing behind, if that fails.
    """
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
                os.chmod(opened.name, 0o666 & ~umask)  # temporary files are private by default
                os.replace(opened.name, path)
            except BaseException:
                os.unlink(opened.name)
                raise
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        hint = "make room, or choose a folder you may write to"
        raise UserError(what, where=path, hint=hint) from error

"""File names as text: compared in one Unicode form, and written where they are not UTF-8."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence

_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN = 3


def name_key(name: str) -> str:
    """Returns the form (NFC) in which names are compared: macOS stores others than people type."""
    return unicodedata.normalize("NFC", name)


def printable_name(name: str) -> str:
    """Returns a file name as valid text: bytes that are not UTF-8 become escapes as \\xe9."""
    if is_valid_text(name):
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_valid_text(text: str) -> bool:
    """Returns whether text can be stored as UTF-8: lone surrogates cannot."""
    return text.isascii() or not _SURROGATE.search(text)


def replace_surrogates(text: str) -> str:
    """Returns text with U+FFFD for each lone surrogate, half of a character beyond U+FFFF."""
    return _SURROGATE.sub("\ufffd", text)


def list_some(names: Iterable[str]) -> str:
    """Returns the first names of a list in words, and that there are more."""
    listed: Sequence[str] = [printable_name(name) for name in names]
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")

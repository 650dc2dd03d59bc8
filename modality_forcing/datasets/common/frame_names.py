"""Lists of frame names: the official ones of this package, in a compact form, and a user's own."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from modality_forcing.errors import UserError
from modality_forcing.paths import read_text
from modality_forcing.text_io import split_lines

_RANGE = re.compile(r"(\d+)-(\d+)")


def official_names(benchmark: str) -> tuple[str, ...]:
    """Returns the names of an official list, in its order.

    lists/<benchmark>.txt starts with its source.
    """
    lists = resources.files("modality_forcing.datasets") / "lists"
    text = (lists / f"{benchmark}.txt").read_text(encoding="utf-8")
    return read_list(text)


def read_list(text: str) -> tuple[str, ...]:
    """Returns the frame names of a compact list.

    A line `prefix: a b c-d` stands for prefix + a, prefix + b and prefix + each number from c to d,
    padded with zeros to the width of c, which is that of d. Lines that start with # and empty lines
    are skipped. Raises ValueError for any other line, since lists are part of the package.
    """
    names: list[str] = []
    for line in split_lines(text):
        if not line.strip() or line.startswith("#"):
            continue
        prefix, colon, items = line.partition(": ")
        if not colon or not items.split():
            raise ValueError(f"not 'prefix: items': {line!r}")
        names += (prefix + name for item in items.split() for name in _expand(item))
    return tuple(names)


def _expand(item: str) -> list[str]:
    ends = _RANGE.fullmatch(item)
    if not ends:
        return [item]
    first, last = ends.groups()
    if len(first) != len(last) or int(first) > int(last):
        raise ValueError(f"not a range of numbers of one width: {item!r}")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


def read_name_list(path: Path) -> tuple[str, ...]:
    """Returns the names of a file with one name per line, without empty lines and # comments.

    Raises UserError if the file cannot be read, has no names, or has a name twice.
    """
    text = read_text(path, "give a text file with one frame name a line")
    lines = [line.strip() for line in split_lines(text)]
    names = tuple(line for line in lines if line and not line.startswith("#"))
    if not names:
        raise UserError("names no frames", where=path, hint="write one frame name a line")
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        hint = "a frame counts once: remove one of the lines"
        raise UserError(f"names {twice!r} twice", where=path, hint=hint)
    return names

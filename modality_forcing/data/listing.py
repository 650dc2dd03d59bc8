"""Lists the files of known kinds in a folder and below."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from modality_forcing import paths
from modality_forcing.errors import UserError


def files_below(
    folder: Path, suffixes: tuple[str, ...], seen: set[Path] | None = None
) -> Iterator[tuple[Path, Path]]:
    """Yields the files of some suffixes in a folder and below, with their paths below it.

    Hidden files and folders are left out. Links are followed, each folder once. The order is that
    of names, folder by folder.

    Args:
      folder: where to start.
      suffixes: in lower case; those of files may have any case.
      seen: resolved folders that are left out; those that are listed are added.

    Raises UserError for a folder that cannot be listed.
    """
    yield from _walk(folder, Path(), suffixes, set() if seen is None else seen)


def _walk(
    folder: Path, below: Path, suffixes: tuple[str, ...], seen: set[Path]
) -> Iterator[tuple[Path, Path]]:
    if (resolved := paths.resolve(folder)) in seen:
        return  # a link back up, or a folder to leave out
    seen.add(resolved)
    for path in paths.list_dir(folder):
        if path.name.startswith("."):
            continue
        if is_folder(path):
            yield from _walk(path, below / path.name, suffixes, seen)
        elif may_be_file(path, suffixes):
            yield path, below / path.name


def is_folder(path: Path) -> bool:
    """Returns whether a path is a folder; a link to itself is none."""
    with suppress(UserError):
        return paths.is_dir(path)
    return False


def may_be_file(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Returns whether a path is to be read: a link to itself, like one to nothing, fails then."""
    with suppress(UserError):
        if paths.exists(path) and not paths.is_file(path):
            return False
    return path.name.lower().endswith(suffixes)

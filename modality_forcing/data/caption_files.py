"""Captions of a folder of images: one file for all of them, or a text file each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modality_forcing import paths, text_io
from modality_forcing.data.files import IMAGE_SUFFIXES
from modality_forcing.data.names import is_valid_text, list_some, name_key, replace_surrogates
from modality_forcing.errors import UserError
from modality_forcing.text_io import split_lines

Captions = tuple[str, ...]


@dataclass(frozen=True)
class CaptionTable:
    """Captions from one file, by `name_key`. notes: lines about what of it is not used as it is."""

    captions: Mapping[str, Captions]
    notes: tuple[str, ...] = ()

    def __call__(self, key: str) -> Captions:
        """Returns the captions of an image."""
        return self.captions.get(key, ())


@dataclass(frozen=True)
class CaptionFolder:
    """Captions from a text file each, by `name_key`."""

    paths: Mapping[str, Path]
    notes: tuple[str, ...] = ()

    def __call__(self, key: str) -> Captions:
        """Returns the caption of an image; raises UserError if its file cannot be read."""
        path = self.paths.get(key)
        text = " ".join(read_text(path).split()) if path else ""
        return (text,) if text else ()


def read_caption_table(path: Path, keys: set[str]) -> CaptionTable:
    """Returns the captions in a file: of lines (NAME, tab, caption), or of JSON by NAME.

    A name may have several captions, as lines or as a JSON list. keys: those of the images.
    Raises UserError for a file of another kind, and if no name is that of an image.
    """
    listed = _read_json(path) if path.suffix.lower() == ".json" else _read_lines(path)
    # Most tools write NAME.jpg for NAME. Names of other images, or a heading, are ignored.
    found: dict[str, dict[str, None]] = {}
    unknown, cut = [], []
    for name, caption in listed:
        key = match(name, keys)
        if key not in keys:
            unknown.append(name)
            continue
        if not is_valid_text(caption):
            cut.append(name)
        texts = found.setdefault(key, {})
        if caption:
            texts[replace_surrogates(caption)] = None
    if listed and not found:
        what = f"names no image here (first {listed[0][0]!r})"
        raise UserError(what, where=path, hint="use the images' file names")
    notes = []
    if unknown:
        notes.append(
            f"{path}: {len(unknown)} of {len(listed)} captions name no image here "
            f"({list_some(unknown)})"
        )
    if cut:
        notes.append(
            f"{path}: {len(cut)} captions hold half a character (a lone surrogate), replaced by "
            f"U+FFFD ({list_some(cut)})"
        )
    return CaptionTable({key: tuple(texts) for key, texts in found.items()}, tuple(notes))


def match(name: str, keys: set[str]) -> str:
    """Returns the key of the image that a list names, with or without the ending of its file."""
    key = name_key(name)
    is_file_name = key not in keys and Path(key).suffix.lower() in IMAGE_SUFFIXES
    return Path(key).stem if is_file_name else key


def read_text(path: Path) -> str:
    """Returns the content of a UTF-8 text file; raises UserError if it cannot be read."""
    return paths.read_text(path, "name a file of text in UTF-8")


def read_json(path: Path) -> object:
    """Returns the content of a JSON file; raises UserError if it is not valid.

    Strings may hold lone surrogates, see `replace_surrogates`.
    """
    return text_io.read_json(path, hint="check it with a JSON validator", surrogates=True)


def _read_lines(path: Path) -> list[tuple[str, str]]:
    listed = []
    for number, line in enumerate(split_lines(read_text(path)), 1):
        name, tab, caption = line.partition("\t")
        if line.strip() and not tab:
            hint = "write NAME, a tab, and the caption"
            raise UserError(f"line {number} has no tab", where=path, hint=hint)
        if line.strip():
            listed.append((name.strip(), caption.strip()))
    return listed


def _read_json(path: Path) -> list[tuple[str, str]]:
    loaded = read_json(path)
    listed: list[tuple[str, str]] = []
    for name, value in loaded.items() if isinstance(loaded, dict) else [("", None)]:
        for caption in value if isinstance(value, list) else [value]:
            if not isinstance(caption, str):
                hint = 'write {"NAME": "caption", ...}; a list holds several'
                raise UserError("is not an object of captions by name", where=path, hint=hint)
            listed.append((name, caption))
    return listed

"""Pictures and captions in tar files as WebDataset has them: LAION, DataComp and whatever else img2dataset writes.

Layout: *.tar in the folder or below it, not compressed. Files of one name up to the first dot, one after the other, are an
example: .jpg, .jpeg, .png or .webp with .txt, or with .json that has "caption"; the .txt is taken where there are both.
Examples without a picture are passed over; without text the caption is empty. There is no depth.

The heads of all members are read once, when the set is opened; records are then read at random by their offset.
Source: webdataset/webdataset, docs on the format; rom1504/img2dataset, README.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from modality_forcing.data.files import IMAGE_SUFFIXES, read_image
from modality_forcing.data.records import Record, RecordSource
from modality_forcing.datasets.common.lazy import glob_paths, require_dir
from modality_forcing.datasets.registry import Dataset, check_split
from modality_forcing.errors import UserError

_TITLE = "WebDataset"
_TEXT, _JSON = ".txt", ".json"


@dataclass(frozen=True)
class Member:
    """A file in a tar: its suffix, and where its bytes are."""

    suffix: str
    offset: int
    size: int


@dataclass(frozen=True)
class Pair:
    """A picture and its text in one tar."""

    tar: Path
    key: str
    image: Member
    text: Member | None


@dataclass(frozen=True)
class Tars:
    """The pictures of many tars, in the order of the tars' names and as they lie in each."""

    root: Path
    pairs: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Record:
        pair = self.pairs[index]
        where = f"{pair.tar}:{pair.key}"
        image = read_image(
            cast(Path, _Named(_content(pair.tar, pair.image), f"{where}{pair.image.suffix}"))
        )
        size = image.shape[:2]
        return Record(
            image=image,
            depth=np.zeros(size, np.float32),
            valid=np.zeros(size, np.bool_),
            intrinsics=np.full((3, 3), np.nan, np.float32),
            unit="relative",
            caption=_caption(_content(pair.tar, pair.text), pair.text.suffix, where)
            if pair.text
            else "",
            source=DATASET.name,
            id=f"{pair.tar.relative_to(self.root).with_suffix('').as_posix()}/{pair.key}",
        )


def pairs(tar: Path) -> Iterator[Pair]:
    """Yields the examples of a tar; raises UserError for one that is compressed or damaged, or ends within a file."""
    key, image, text = "", None, None
    for name, member in _members(tar):
        if name != key:
            if image:
                yield Pair(tar, key, image, text)
            key, image, text = name, None, None
        if member.suffix in IMAGE_SUFFIXES and image is None:
            image = member
        elif member.suffix == _TEXT or (member.suffix == _JSON and text is None):
            text = member
    if image:
        yield Pair(tar, key, image, text)


class _Named(io.BytesIO):
    """Bytes for Pillow, with the name that an error tells."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self._name = name

    def __str__(self) -> str:
        return self._name


def _members(tar: Path) -> Iterator[tuple[str, Member]]:
    """The files of a tar by the part of their path before the first dot of its last name."""
    try:
        with tarfile.open(tar, "r:") as opened:
            for entry in opened:
                folder, slash, name = entry.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if entry.isreg() and stem:  # nothing before the dot: macOS's "._" twins
                    yield (
                        f"{folder}{slash}{stem}",
                        Member(f"{dot}{suffix}".lower(), entry.offset_data, entry.size),
                    )
                opened.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # else all heads are kept
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or "compressed, damaged or cut short"
        raise UserError(
            f"cannot be read as a plain tar ({reason})",
            where=tar,
            hint="unpack its compression, or get it again",
        ) from error


def _content(tar: Path, member: Member) -> bytes:
    try:
        with open(tar, "rb") as opened:
            opened.seek(member.offset)
            content = opened.read(member.size)
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=tar, hint="check the path"
        ) from error
    if len(content) != member.size:
        raise UserError("has become shorter", where=tar, hint="get it again")
    return content


def _caption(content: bytes, suffix: str, where: str) -> str:
    try:
        text = content.decode("utf-8-sig")
        if suffix == _JSON:
            about = json.loads(text)
            text = (about.get("caption") if isinstance(about, dict) else None) or ""
        if not isinstance(text, str):
            raise ValueError("a caption that is no text")
    except (ValueError, RecursionError) as error:
        raise UserError(
            "its text cannot be read", where=f"{where}{suffix}", hint="leave the example out"
        ) from error
    return " ".join(text.split())


def _open(root: Path, split: str) -> RecordSource:
    check_split(DATASET, split)
    root = require_dir(root, _TITLE)
    tars = glob_paths(root, "**/*.tar")
    found = tuple(pair for tar in tars for pair in pairs(tar))
    if not found:
        what = f"holds no picture in {len(tars)} tars" if tars else "holds no .tar"
        raise UserError(
            what, where=root, hint="its layout is NAME.tar with KEY.jpg and KEY.txt in it"
        )
    return Tars(root, found)


DATASET = Dataset("webdataset", _TITLE, "relative", ("train",), "that of its pictures", _open)

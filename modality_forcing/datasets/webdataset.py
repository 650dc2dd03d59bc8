"""Images and captions in tar files of WebDataset: LAION, DataComp and other img2dataset output.

Layout: uncompressed *.tar in the root or below. Consecutive files of the same name up to the first
dot are one example: .jpg, .jpeg, .png or .webp with .txt, or with .json that has "caption"; the
.txt is used if there are both. Examples without an image are skipped. Without text
the caption is empty. There is no depth.

The headers of all members are read once, when the data set is opened. Records are then read at
random by their offset. Source: webdataset/webdataset, docs on the format; rom1504/img2dataset,
README.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modality_forcing.data.files import IMAGE_SUFFIXES, read_image
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import wrap_parse_errors
from modality_forcing.datasets.common.lazy import glob_paths, require_dir
from modality_forcing.datasets.registry import Dataset, check_split
from modality_forcing.errors import UserError

_TEXT, _JSON = ".txt", ".json"


@dataclass(frozen=True)
class Member:
    """A file in a tar: its suffix, and where its bytes are."""

    suffix: str
    offset: int
    size: int


@dataclass(frozen=True)
class Pair:
    """An image and its text in one tar."""

    tar: Path
    key: str
    image: Member
    text: Member | None


@dataclass(frozen=True)
class Tars:
    """The images of many tars, sorted by tar, in the order of each tar."""

    root: Path
    pairs: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Record:
        pair = self.pairs[index]
        where = f"{pair.tar}:{pair.key}"
        content = _read_bytes(pair.tar, pair.image)
        image = read_image(_NamedBytes(content, f"{where}{pair.image.suffix}"))
        size = image.shape[:2]
        caption = ""
        if pair.text:
            content = _read_bytes(pair.tar, pair.text)
            caption = _parse_caption(content, pair.text.suffix, where)
        return Record(
            image=image,
            depth=np.zeros(size, np.float32),
            valid=np.zeros(size, np.bool_),
            intrinsics=np.full((3, 3), np.nan, np.float32),
            unit="relative",
            caption=caption,
            source=DATASET.name,
            id=f"{pair.tar.relative_to(self.root).with_suffix('').as_posix()}/{pair.key}",
        )


def pairs(tar: Path) -> Iterator[Pair]:
    """Yields the examples of a tar. Raises UserError if it is compressed, damaged or truncated."""
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


class _NamedBytes(io.BytesIO):
    """Bytes for Pillow, with a name for errors."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self._name = name

    def __str__(self) -> str:
        return self._name


def _members(tar: Path) -> Iterator[tuple[str, Member]]:
    """Yields the files of a tar with their path up to the first dot of the file name."""
    try:
        with tarfile.open(tar, "r:") as opened:
            for entry in opened:
                folder, slash, name = entry.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if entry.isreg() and stem:  # macOS's "._" twins have no stem
                    member = Member(f"{dot}{suffix}".lower(), entry.offset_data, entry.size)
                    yield f"{folder}{slash}{stem}", member
                # Frees the headers.
                opened.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or "compressed, damaged or cut short"
        what = f"cannot be read as a plain tar ({reason})"
        hint = "decompress it, or download it again"
        raise UserError(what, where=tar, hint=hint) from error


def _read_bytes(tar: Path, member: Member) -> bytes:
    try:
        with open(tar, "rb") as opened:
            opened.seek(member.offset)
            content = opened.read(member.size)
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise UserError(what, where=tar, hint="check the path") from error
    if len(content) != member.size:
        raise UserError("has become shorter", where=tar, hint="download it again")
    return content


def _parse_caption(content: bytes, suffix: str, where: str) -> str:
    path, hint = Path(f"{where}{suffix}"), "leave the example out"
    with wrap_parse_errors(path, "its text cannot be read", hint):
        text = content.decode("utf-8-sig")
        if suffix == _JSON:
            loaded = json.loads(text)
            text = (loaded.get("caption") if isinstance(loaded, dict) else None) or ""
        if not isinstance(text, str):
            raise ValueError("a caption that is not text")
    return " ".join(text.split())


@dataclass(frozen=True, kw_only=True)
class WebDataset(Dataset):
    """The data set of a folder of tars."""

    def open(self, root: Path, split: str) -> Tars:
        """Returns the records of all tars, see `Dataset.open`."""
        check_split(self, split)
        root = require_dir(root, self.title)
        tars = glob_paths(root, "**/*.tar")
        found = tuple(pair for tar in tars for pair in pairs(tar))
        if not found:
            what = f"holds no image in {len(tars)} tars" if tars else "holds no .tar"
            hint = "its layout is NAME.tar with KEY.jpg and KEY.txt in it"
            raise UserError(what, where=root, hint=hint)
        return Tars(root, found)


DATASET = WebDataset(
    name="webdataset",
    title="WebDataset",
    unit="relative",
    splits=("train",),
    license="that of its images",
)

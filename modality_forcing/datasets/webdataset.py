"""Images and captions in tar files of WebDataset: LAION, DataComp and other img2dataset output.

Layout: uncompressed *.tar in the root or below, also behind links. Files of a tar with the same
name up to the first dot are one example, wherever they are: .jpg, .jpeg, .png or .webp with .txt,
or with .json that has "caption", a text or a list of texts; the .txt is used if there are both. A
second image, .txt or .json of a name that does not follow the first starts another example, as in
tars that were joined. Examples without an image are skipped. Without text the caption is empty.
There is no depth.

The headers of all members are read once, when the data set is opened. Records are then read at
random by their offset. Source: webdataset/webdataset, docs on the format; rom1504/img2dataset,
README.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modality_forcing.data.files import IMAGE_SUFFIXES, read_image
from modality_forcing.data.names import is_valid_text, list_some, printable_name
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_span, wrap_parse_errors
from modality_forcing.datasets.common.lazy import glob_paths, image_record, require_dir
from modality_forcing.datasets.registry import Dataset, check_split
from modality_forcing.errors import UserError
from modality_forcing.text_io import parse_json

_IMAGE, _TEXT, _JSON = "image", ".txt", ".json"


@dataclass(frozen=True)
class Member:
    """A file in a tar: its suffix, and where its bytes are."""

    suffix: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarEntry:
    """An image and its text in one tar; without an image it is no example."""

    tar: Path
    key: str
    image: Member | None
    text: Member | None


@dataclass(frozen=True)
class TarSource:
    """The images of many tars, sorted by tar, in the order of each tar.

    without_image: TAR:KEY of texts that have none.
    """

    root: Path
    pairs: tuple[TarEntry, ...]
    without_image: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Record:
        pair = self.pairs[index]
        assert pair.image is not None
        where = printable_name(f"{pair.tar}:{pair.key}")
        content = read_span(pair.tar, pair.image.offset, pair.image.size)
        image = read_image(_NamedBytes(content, f"{where}{pair.image.suffix}"))
        captions: list[str] = []
        if pair.text:
            content = read_span(pair.tar, pair.text.offset, pair.text.size)
            captions = _parse_captions(content, pair.text.suffix, where)
        tar = pair.tar.relative_to(self.root).with_suffix("").as_posix()
        name = printable_name(f"{tar}/{pair.key}")
        return image_record(image, captions, source=DATASET.name, id=name)

    def notes(self) -> list[str]:
        """Returns lines about texts without an image, and about images without a text."""
        notes = []
        if self.without_image:
            what = f"{len(self.without_image)} texts have no image beside them"
            notes.append(f"{self.root}: {what} ({list_some(self.without_image)})")
        bare = [f"{pair.tar.name}:{pair.key}" for pair in self.pairs if not pair.text]
        if bare:
            what = f"{len(bare)} of {len(self.pairs)} images have no text beside them"
            notes.append(f"{self.root}: {what} ({list_some(bare)})")
        return notes


@dataclass
class _Group:
    """The files of an example that have been found, by what they are for."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)


def pairs(tar: Path) -> Iterator[TarEntry]:
    """Yields images and texts of a tar, in the order of their first files.

    Raises UserError if it is compressed, damaged or truncated.
    """
    groups: list[_Group] = []
    latest: dict[str, _Group] = {}
    last = ""
    for key, member in _members(tar):
        kind = _IMAGE if member.suffix in IMAGE_SUFFIXES else member.suffix
        if kind in (_IMAGE, _TEXT, _JSON):
            group = latest.get(key)
            if group is None or (kind in group.members and key != last):
                group = latest[key] = _Group(key)
                groups.append(group)
            if kind == _TEXT:
                group.members[kind] = member
            else:
                group.members.setdefault(kind, member)
        last = key
    for group in groups:
        found = group.members
        yield TarEntry(tar, group.key, found.get(_IMAGE), found.get(_TEXT) or found.get(_JSON))


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


def _parse_captions(content: bytes, suffix: str, where: str) -> list[str]:
    path, hint = Path(f"{where}{suffix}"), "leave the example out"
    with wrap_parse_errors(path, "its text cannot be read", hint):
        value = text = content.decode("utf-8-sig")
        if suffix == _JSON:
            loaded = parse_json(text, finite=False, surrogates=True)
            value = (loaded.get("caption") if isinstance(loaded, dict) else None) or ""
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a caption that is not text")
        captions = list(dict.fromkeys(filter(None, (" ".join(text.split()) for text in texts))))
    if not all(map(is_valid_text, captions)):
        what = "its caption holds half a character (a lone surrogate)"
        raise UserError(what, where=path, hint=hint)
    return captions


@dataclass(frozen=True, kw_only=True)
class WebDataset(Dataset):
    """The data set of a folder of tars."""

    def open(self, root: Path, split: str) -> TarSource:
        """Returns the records of all tars, see `Dataset.open`."""
        check_split(self, split)
        root = require_dir(root, self.title)
        tars = glob_paths(root, "**/*.tar")
        everything = [pair for tar in tars for pair in pairs(tar)]
        found = tuple(pair for pair in everything if pair.image)
        if not found:
            what = f"holds no image in {len(tars)} tars" if tars else "holds no .tar"
            hint = "its layout is NAME.tar with KEY.jpg and KEY.txt in it"
            raise UserError(what, where=root, hint=hint)
        bare = tuple(f"{pair.tar.name}:{pair.key}" for pair in everything if not pair.image)
        return TarSource(root, found, bare)


DATASET = WebDataset(
    name="webdataset",
    title="WebDataset",
    unit="relative",
    splits=("train",),
    license="that of its images",
)

"""A user's own pictures: a folder of images with optional depth, captions and intrinsics, as a source of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.data.files import (
    DEPTH_SUFFIXES,
    IMAGE_SUFFIXES,
    check_scale,
    read_depth,
    read_image,
)
from modality_forcing.data.records import Record, Unit
from modality_forcing.data.resize import centre_square, place_depth, place_image, place_intrinsics
from modality_forcing.errors import UserError

_CAPTION_FILES = ("captions.txt", "captions.tsv", "captions.json")
_DEPTH = ".depth"  # what ends the name of a depth map that lies beside its picture
_LAYOUT = "put pictures (.jpg .jpeg .png .webp) into it, or into images/ with depth/NAME.png or .npy beside"


@dataclass(frozen=True)
class _Entry:
    name: str
    image: Path
    depth: Path | None


@dataclass(frozen=True)
class Folder:
    """Pictures and depth of one folder, cropped to their centre square at `resolution`, in the order of their names.

    pictures    images/NAME.jpg (.jpeg .png .webp), or NAME.jpg where there is no images/
    depth       depth/NAME.png or .npy, or NAME.depth.png or .npy beside the picture; sizes may differ
    captions    captions.txt or .tsv (a line each: NAME, tab, caption), captions.json ({NAME: caption}),
                captions/NAME.txt, or NAME.txt beside the picture
    intrinsics  intrinsics.json with {"fx", "fy", "cx", "cy"} in pixels of the upright picture, one for all or by NAME;
                the centre of the first pixel is at (0, 0)
    All but the pictures may be absent: then nothing is valid, captions are empty, intrinsics NaN. Hidden files are
    passed over.

    depth_scale: unit per stored number (`read_depth`). unit: what the scaled depth means. captions: a captions file
    elsewhere. Raises UserError at once for a wrong listing, and for a wrong file, naming it, when that is read.
    """

    root: Path
    resolution: int
    depth_scale: float | None = None
    unit: Unit = "relative"
    captions: Path | None = None
    _entries: tuple[_Entry, ...] = field(init=False, repr=False, compare=False)
    _captions: Callable[[str], str] = field(init=False, repr=False, compare=False)
    _intrinsics: Callable[[str], np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        root = Path(self.root)
        if not root.is_dir():
            raise UserError(
                "no such folder", where=root, hint="give the folder that holds the pictures"
            )
        if self.resolution < 1:
            raise UserError(f"resolution is {self.resolution}", hint="it must be at least 1 pixel")
        if self.depth_scale is not None:
            check_scale(self.depth_scale)
        entries = _entries(root)
        counts = next(
            (
                entry.depth
                for entry in entries
                if entry.depth and entry.depth.suffix.lower() == ".png"
            ),
            None,
        )
        if counts and self.depth_scale is None:
            hint = "state depth_scale, e.g. 0.001 for millimetres"
            raise UserError("the unit of its counts is not known", where=counts, hint=hint)
        names = {entry.name for entry in entries}
        set_once = object.__setattr__
        set_once(self, "root", root)
        set_once(self, "_entries", entries)
        set_once(self, "_captions", _find_captions(root, self.captions, names))
        set_once(self, "_intrinsics", _find_intrinsics(root, names))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        image = read_image(entry.image)
        size = image.shape[:2]
        window = centre_square(size)
        if entry.depth is None:
            depth = np.zeros((self.resolution, self.resolution), np.float32)
            valid = np.zeros_like(depth, np.bool_)
        else:
            depth, valid = read_depth(entry.depth, self.depth_scale)
            check_aspect(entry, size, depth.shape)
            depth, valid = place_depth(
                depth, valid, window.seen_from(size, depth.shape), self.resolution
            )
        return Record(
            image=place_image(image, window, self.resolution),
            depth=depth,
            valid=valid,
            intrinsics=place_intrinsics(self._intrinsics(entry.name), window, self.resolution),
            unit=self.unit,
            caption=self._captions(entry.name),
            source=self.root.resolve().name,
            id=entry.name,
        )

    def validate(self) -> None:
        """Reads every record, so that a wrong last file shows before a long run; raises the first one's UserError."""
        for index in range(len(self)):
            self[index]


def _visible(folder: Path) -> list[Path]:
    """Returns a folder's files by name; hidden ones, among them macOS's "._" twins, are nobody's pictures."""
    try:
        return sorted(
            path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file()
        )
    except OSError as error:
        raise UserError(
            f"cannot be listed ({error.strerror})", where=folder, hint="check its permissions"
        ) from error


def _entries(root: Path) -> tuple[_Entry, ...]:
    beside: list[Path] = []
    pictures: list[Path] = []
    for path in _visible(_pictures_folder(root)):
        (beside if path.stem.lower().endswith(_DEPTH) else pictures).append(path)
    images = _by_name(pictures, IMAGE_SUFFIXES, "pictures")
    if (root / "depth").is_dir():
        depths = _by_name(_visible(root / "depth"), DEPTH_SUFFIXES, "depth maps")
    else:
        depths = _by_name(beside, DEPTH_SUFFIXES, "depth maps", ending=_DEPTH)
    for name in sorted(depths.keys() - images.keys()):
        raise UserError(
            f"no picture is named {name}",
            where=depths[name],
            hint="add the picture or remove the depth",
        )
    if not images:
        raise UserError("no picture in this folder", where=root, hint=_LAYOUT)
    return tuple(_Entry(name, images[name], depths.get(name)) for name in sorted(images))


def _pictures_folder(root: Path) -> Path:
    return root / "images" if (root / "images").is_dir() else root


def _by_name(
    paths: Iterable[Path], suffixes: tuple[str, ...], kind: str, ending: str = ""
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() not in suffixes:
            continue
        name = path.stem[: len(path.stem) - len(ending)]
        if name in found:
            raise UserError(
                f"two {kind} named {name}", where=path, hint=f"keep this one or {found[name].name}"
            )
        found[name] = path
    return found


def check_aspect(entry: _Entry, image: tuple[int, int], depth: tuple[int, int]) -> None:
    """Raises UserError if a depth map of (h, w) is not of the aspect of its picture, give or take a pixel's rounding."""
    expected = (
        depth[0] * image[1] / image[0]
    )  # columns that the picture's aspect gives the depth map's rows
    # A scaled size is rounded to whole pixels on both axes, which counts for much in a small map.
    rounding = 0.5 + 0.5 * image[1] / image[0]
    if abs(depth[1] - expected) > max(0.01 * expected, rounding):
        sizes = f"{depth[1]} x {depth[0]}, the upright picture {image[1]} x {image[0]}"
        raise UserError(
            f"depth has another aspect ({sizes})",
            where=entry.depth,
            hint="crop or turn one like the other",
        )


@dataclass(frozen=True)
class _Listed:
    """Captions that stand in one file."""

    captions: Mapping[str, str]

    def __call__(self, name: str) -> str:
        return self.captions.get(name, "")


@dataclass(frozen=True)
class _Beside:
    """Captions that stand in a text file each."""

    folder: Path

    def __call__(self, name: str) -> str:
        path = self.folder / f"{name}.txt"
        return " ".join(_text(path).split()) if path.is_file() else ""


def _find_captions(root: Path, elsewhere: Path | None, names: set[str]) -> Callable[[str], str]:
    files = (
        [Path(elsewhere)]
        if elsewhere
        else [root / name for name in _CAPTION_FILES if (root / name).is_file()]
    )
    if (root / "captions").is_dir() and not elsewhere:
        files.append(root / "captions")
    if len(files) > 1:
        raise UserError(
            f"captions stand in {files[0].name} and {files[1].name}",
            where=root,
            hint="keep one of them",
        )
    if not files:
        return _Beside(_pictures_folder(root))
    if files[0].is_dir():
        return _Beside(files[0])
    captions = _captions_of(files[0])
    # "NAME.jpg" is what most tools write for NAME; names of pictures that are not here (or a heading) are no mistake.
    known = {
        _match(name, names): caption
        for name, caption in captions.items()
        if _match(name, names) in names
    }
    if captions and not known:
        first = next(iter(captions))
        raise UserError(
            f"names no picture here (first {first!r})",
            where=files[0],
            hint="use the pictures' file names",
        )
    return _Listed(known)


def _match(name: str, names: set[str]) -> str:
    return (
        Path(name).stem
        if name not in names and Path(name).suffix.lower() in IMAGE_SUFFIXES
        else name
    )


def _captions_of(path: Path) -> dict[str, str]:
    if path.suffix.lower() == ".json":
        loaded = _json(path)
        if not isinstance(loaded, dict) or not all(
            isinstance(caption, str) for caption in loaded.values()
        ):
            raise UserError(
                "is not an object of captions by name",
                where=path,
                hint='write {"NAME": "caption", ...}',
            )
        return loaded
    captions: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        name, tab, caption = line.partition("\t")
        if line.strip() and not tab:
            raise UserError(
                f"line {number} has no tab", where=path, hint="write NAME, a tab, and the caption"
            )
        if line.strip():
            captions[name.strip()] = caption.strip()
    return captions


@dataclass(frozen=True)
class _Pinholes:
    """Intrinsics by name, or one for all, or none."""

    by_name: Mapping[str, np.ndarray]
    default: np.ndarray

    def __call__(self, name: str) -> np.ndarray:
        return self.by_name.get(name, self.default)


def _find_intrinsics(root: Path, names: set[str]) -> Callable[[str], np.ndarray]:
    path = root / "intrinsics.json"
    unknown = np.full((3, 3), np.nan, np.float32)
    if not path.is_file():
        return _Pinholes({}, unknown)
    loaded = _json(path)
    if not isinstance(loaded, dict):
        raise UserError(
            "is not an object",
            where=path,
            hint='write {"fx": ..., "fy": ..., "cx": ..., "cy": ...}',
        )
    if "fx" in loaded:
        return _Pinholes({}, _pinhole(loaded, path))
    return _Pinholes(
        {_match(name, names): _pinhole(value, path) for name, value in loaded.items()}, unknown
    )


def _pinhole(values: Any, path: Path) -> np.ndarray:
    try:
        fx, fy, cx, cy = (float(values[key]) for key in ("fx", "fy", "cx", "cy"))
    except (KeyError, TypeError, ValueError) as error:
        hint = 'write {"fx": ..., "fy": ..., "cx": ..., "cy": ...}'
        raise UserError(
            "holds intrinsics without one of fx fy cx cy", where=path, hint=hint
        ) from error
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        raise UserError(
            "holds a focal length that is not positive", where=path, hint="give fx and fy in pixels"
        )
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror})", where=path, hint="check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError("is not UTF-8 text", where=path, hint="save it as UTF-8") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(
            "is not valid JSON", where=path, hint="check it with a JSON validator"
        ) from error

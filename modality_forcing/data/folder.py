"""A folder of images with optional depth, captions and intrinsics, as a source of records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modality_forcing.data.files import (
    DEPTH_SUFFIXES,
    IMAGE_SUFFIXES,
    check_scale,
    read_depth,
    read_image,
)
from modality_forcing.data.intrinsics import check_principal_point, pinhole, rescale_intrinsics
from modality_forcing.data.records import Record, Unit
from modality_forcing.data.resize import (
    Size,
    center_square,
    crop_resize_depth,
    crop_resize_image,
    crop_resize_intrinsics,
)
from modality_forcing.errors import UserError

_CAPTION_FILES = ("captions.txt", "captions.tsv", "captions.json")
_DEPTH = ".depth"  # ends the name of a depth map beside its image
_LAYOUT = "add images (.jpg .jpeg .png .webp), or images/ with depth/NAME.png or .npy beside it"
_INTRINSICS = 'write {"fx": ..., "fy": ..., "cx": ..., "cy": ...}'


@dataclass(frozen=True)
class _Entry:
    name: str
    image: Path
    depth: Path | None


@dataclass(frozen=True)
class ImageFolder:
    """Images and depth of one folder, center-cropped to `resolution`, sorted by name.

    images      images/NAME.jpg (.jpeg .png .webp), or NAME.jpg if there is no images/
    depth       depth/NAME.png or .npy, or NAME.depth.png or .npy beside the image; sizes may differ
    captions    captions.txt or .tsv (a line each: NAME, tab, caption), captions.json
                ({NAME: caption}), captions/NAME.txt, or NAME.txt beside the image
    intrinsics  intrinsics.json with {"fx", "fy", "cx", "cy"} in pixels of the upright image, one
                for all or by NAME; (0, 0) is the center of the first pixel; with "width" and
                "height" of the images they are for, they are rescaled to others

    All but the images are optional: without them nothing is valid, captions are empty, intrinsics
    NaN. Hidden files are ignored.

    depth_scale: depth per stored number (`read_depth`). unit: of the scaled depth. captions: a
    captions file elsewhere. Raises UserError at once for a wrong layout, and on reading a wrong
    file.
    """

    root: Path
    resolution: int
    depth_scale: float | None = None
    unit: Unit = "relative"
    captions: Path | None = None
    _entries: tuple[_Entry, ...] = field(init=False, repr=False, compare=False)
    _captions: Callable[[str], str] = field(init=False, repr=False, compare=False)
    _intrinsics: _IntrinsicsTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        root = Path(self.root)
        if not root.is_dir():
            hint = "give the folder that holds the images"
            raise UserError("no such folder", where=root, hint=hint)
        if self.resolution < 1:
            raise UserError(f"resolution is {self.resolution}", hint="it must be at least 1 pixel")
        if self.depth_scale is not None:
            check_scale(self.depth_scale)
        entries = _find_entries(root)
        pngs = (one.depth for one in entries if one.depth and one.depth.suffix.lower() == ".png")
        if self.depth_scale is None and (png := next(pngs, None)):
            hint = "state depth_scale, e.g. 0.001 for millimeters"
            raise UserError("the unit of its counts is not known", where=png, hint=hint)
        names = {entry.name for entry in entries}
        set_once = object.__setattr__
        set_once(self, "root", root)
        set_once(self, "_entries", entries)
        set_once(self, "_captions", _find_captions(root, self.captions, names))
        set_once(self, "_intrinsics", _find_intrinsics(root, names))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Record:
        entry, resolution = self._entries[index], self.resolution
        image = read_image(entry.image)
        size = (image.shape[0], image.shape[1])
        window = center_square(size)
        if entry.depth is None:
            depth = np.zeros((resolution, resolution), np.float32)
            valid = np.zeros((resolution, resolution), np.bool_)
        else:
            depth, valid = read_depth(entry.depth, self.depth_scale)
            depth_size = (depth.shape[0], depth.shape[1])
            check_aspect(entry, size, depth_size)
            in_depth = window.rescale(size, depth_size)
            depth, valid = crop_resize_depth(depth, valid, in_depth, resolution)
        return Record(
            image=crop_resize_image(image, window, resolution),
            depth=depth,
            valid=valid,
            intrinsics=crop_resize_intrinsics(self._intrinsics_of(entry, size), window, resolution),
            unit=self.unit,
            caption=self._captions(entry.name),
            source=self.root.resolve().name,
            id=entry.name,
        )

    def _intrinsics_of(self, entry: _Entry, size: Size) -> np.ndarray:
        """Returns intrinsics f32 [3 3] of an image of (h, w) `size`, NaN if unknown."""
        return self._intrinsics(entry.name, size, entry.image)


def check_aspect(entry: _Entry, image: Size, depth: Size) -> None:
    """Raises UserError if a depth map's aspect is not its image's, to within a pixel's rounding."""
    expected = depth[0] * image[1] / image[0]  # columns, for the rows of the depth map
    # A scaled size is rounded to whole pixels on both axes, which matters in a small map.
    rounding = 0.5 + 0.5 * image[1] / image[0]
    if abs(depth[1] - expected) > max(0.01 * expected, rounding):
        sizes = f"{depth[1]} x {depth[0]}, the upright image {image[1]} x {image[0]}"
        hint = "crop or turn one like the other"
        raise UserError(f"depth has another aspect ({sizes})", where=entry.depth, hint=hint)


def _find_entries(root: Path) -> tuple[_Entry, ...]:
    files = _visible_files(_image_folder(root))
    beside = {path for path in files if path.stem.lower().endswith(_DEPTH)}
    images = _by_name([path for path in files if path not in beside], IMAGE_SUFFIXES, "images")
    if (root / "depth").is_dir():
        depths = _by_name(_visible_files(root / "depth"), DEPTH_SUFFIXES, "depth maps")
    else:
        depths = _by_name(sorted(beside), DEPTH_SUFFIXES, "depth maps", ending=_DEPTH)
    for name in sorted(depths.keys() - images.keys()):
        hint = "add the image or remove the depth"
        raise UserError(f"no image is named {name}", where=depths[name], hint=hint)
    if not images:
        raise UserError("no image in this folder", where=root, hint=_LAYOUT)
    return tuple(_Entry(name, images[name], depths.get(name)) for name in sorted(images))


def _visible_files(folder: Path) -> list[Path]:
    """Returns a folder's files by name, without hidden ones such as macOS's "._" twins."""
    try:
        paths = sorted(folder.iterdir())
        return [path for path in paths if not path.name.startswith(".") and path.is_file()]
    except OSError as error:
        what = f"cannot be listed ({error.strerror})"
        raise UserError(what, where=folder, hint="check its permissions") from error


def _image_folder(root: Path) -> Path:
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
            hint = f"keep this one or {found[name].name}"
            raise UserError(f"two {kind} named {name}", where=path, hint=hint)
        found[name] = path
    return found


@dataclass(frozen=True)
class _CaptionTable:
    """Captions from one file."""

    captions: Mapping[str, str]

    def __call__(self, name: str) -> str:
        return self.captions.get(name, "")


@dataclass(frozen=True)
class _CaptionFolder:
    """Captions from a text file each."""

    folder: Path

    def __call__(self, name: str) -> str:
        path = self.folder / f"{name}.txt"
        return " ".join(_read_text(path).split()) if path.is_file() else ""


def _find_captions(root: Path, elsewhere: Path | None, names: set[str]) -> Callable[[str], str]:
    if elsewhere:
        found = [Path(elsewhere)]
    else:
        found = [root / name for name in _CAPTION_FILES if (root / name).is_file()]
        if (root / "captions").is_dir():
            found.append(root / "captions")
    if len(found) > 1:
        what = f"has captions in {found[0].name} and in {found[1].name}"
        raise UserError(what, where=root, hint="keep one of them")
    path = found[0] if found else _image_folder(root)
    if path.is_dir():
        return _CaptionFolder(path)
    captions = _read_captions(path)
    # Most tools write NAME.jpg for NAME. Names of other images, or a heading, are ignored.
    matched = {_match(name, names): caption for name, caption in captions.items()}
    known = {name: caption for name, caption in matched.items() if name in names}
    if captions and not known:
        what = f"names no image here (first {next(iter(captions))!r})"
        raise UserError(what, where=path, hint="use the images' file names")
    return _CaptionTable(known)


def _match(name: str, names: set[str]) -> str:
    is_file_name = name not in names and Path(name).suffix.lower() in IMAGE_SUFFIXES
    return Path(name).stem if is_file_name else name


def _read_captions(path: Path) -> dict[str, str]:
    if path.suffix.lower() == ".json":
        captions = _read_json(path)
        if not isinstance(captions, dict) or not all(isinstance(c, str) for c in captions.values()):
            hint = 'write {"NAME": "caption", ...}'
            raise UserError("is not an object of captions by name", where=path, hint=hint)
        return captions
    captions = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        name, tab, caption = line.partition("\t")
        if line.strip() and not tab:
            hint = "write NAME, a tab, and the caption"
            raise UserError(f"line {number} has no tab", where=path, hint=hint)
        if line.strip():
            captions[name.strip()] = caption.strip()
    return captions


class _Intrinsics(NamedTuple):
    matrix: np.ndarray  # f32 [3 3]
    size: Size | None  # of the images that it is for


@dataclass(frozen=True)
class _IntrinsicsTable:
    """Intrinsics by name, each with the (h, w) that it is for if that is stated, and a default."""

    by_name: Mapping[str, _Intrinsics]
    default: _Intrinsics

    def __call__(self, name: str, size: Size, image: Path) -> np.ndarray:
        matrix, stated = self.by_name.get(name, self.default)
        if stated:
            return rescale_intrinsics(matrix, stated, size, image).astype(np.float32)
        hint = "state there width and height of the images that it is for"
        return check_principal_point(matrix, size, image, "intrinsics.json", hint)


def _find_intrinsics(root: Path, names: set[str]) -> _IntrinsicsTable:
    path = root / "intrinsics.json"
    unknown = _Intrinsics(np.full((3, 3), np.nan, np.float32), None)
    if not path.is_file():
        return _IntrinsicsTable({}, unknown)
    loaded = _read_json(path)
    if not isinstance(loaded, dict):
        raise UserError("is not an object", where=path, hint=_INTRINSICS)
    if "fx" in loaded:
        return _IntrinsicsTable({}, _to_matrix(loaded, path))
    by_name = {_match(name, names): _to_matrix(values, path) for name, values in loaded.items()}
    return _IntrinsicsTable(by_name, unknown)


def _to_matrix(values: object, path: Path) -> _Intrinsics:
    try:
        if not isinstance(values, Mapping):
            raise TypeError("not an object")
        fx, fy, cx, cy = (float(values[key]) for key in ("fx", "fy", "cx", "cy"))
        size = (int(values["height"]), int(values["width"])) if "width" in values else None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = "holds intrinsics without one of fx fy cx cy"
        raise UserError(what, where=path, hint=_INTRINSICS) from error
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        what = "holds a focal length that is not positive"
        raise UserError(what, where=path, hint="give fx and fy in pixels")
    if size and min(size) < 1:
        raise UserError("is for images without pixels", where=path, hint="correct width and height")
    return _Intrinsics(pinhole(fx, fy, cx, cy).astype(np.float32), size)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise UserError(what, where=path, hint="check the path") from error
    except UnicodeDecodeError as error:
        raise UserError("is not UTF-8 text", where=path, hint="save it as UTF-8") from error


def _read_json(path: Path) -> object:
    try:
        return json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        hint = "check it with a JSON validator"
        raise UserError("is not valid JSON", where=path, hint=hint) from error

"""A folder of images with optional depth, captions and intrinsics, as a source of records."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modality_forcing.data.caption_files import (
    CaptionFolder,
    CaptionTable,
    match,
    read_caption_table,
    read_json,
)
from modality_forcing.data.files import DepthFormat, holds_floats, read_depth
from modality_forcing.data.folder_files import (
    CAPTION_FILES,
    INTRINSICS_FILE,
    FolderFiles,
    find_files,
)
from modality_forcing.data.intrinsics import check_principal_point, pinhole, rescale_intrinsics
from modality_forcing.data.names import list_some, printable_name
from modality_forcing.data.pairs import REPEATED, Orientation, read_pair, repeated_values
from modality_forcing.data.records import Record, Unit
from modality_forcing.data.resize import (
    Size,
    center_square,
    crop_resize_depth,
    crop_resize_image,
    crop_resize_intrinsics,
)
from modality_forcing.errors import UserError
from modality_forcing.exr_io import require_package
from modality_forcing.paths import is_dir, is_file
from modality_forcing.text_io import parse_number

_MAPS_EXAMINED = 32  # for values that repeat, evenly spread over the folder
_MAX_PIXELS = 1e9  # of a focal length or a principal point
_INTRINSICS = 'write {"fx": ..., "fy": ..., "cx": ..., "cy": ...}'


@dataclass(frozen=True)
class ImageFolder:
    """Images and depth of one folder, center-cropped to `resolution`, sorted by name.

    images      images/NAME.jpg (.jpeg .png .webp), or NAME.jpg if there is no images/
    depth       depth/NAME.png, .npy or .exr, or NAME.depth.png, ... beside the image; sizes
                may differ
    captions    captions.txt or .tsv (a line each: NAME, tab, caption), captions.json
                ({NAME: caption or list of captions}), captions/NAME.txt, or NAME.txt beside the
                image
    intrinsics  intrinsics.json with {"fx", "fy", "cx", "cy"} in pixels of the upright image, one
                for all or by NAME; (0, 0) is the center of the first pixel; with "width" and
                "height" of the images they are for, they are rescaled to others

    All but the images are optional: without them nothing is valid, captions are empty, intrinsics
    NaN. Hidden files are ignored. Names are compared in one Unicode form.

    depth_scale, depth_invalid, depth_max: see `DepthFormat`; 0 excludes nothing.
    depth_orientation: see `pairs.Orientation`. unit: of the scaled depth. captions: a captions file
    elsewhere. Raises UserError at once for a wrong layout, and on reading a wrong file.
    """

    root: Path
    resolution: int
    depth_scale: float | None = None
    unit: Unit = "relative"
    captions: Path | None = None
    depth_invalid: float = 0.0
    depth_max: float = 0.0
    depth_orientation: Orientation = ""
    _files: FolderFiles = field(init=False, repr=False, compare=False)
    _keys: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _captions: CaptionTable | CaptionFolder = field(init=False, repr=False, compare=False)
    _intrinsics: _IntrinsicsTable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        root = Path(self.root)
        if not is_dir(root):
            hint = "give the folder that holds the images"
            raise UserError("no such folder", where=root, hint=hint)
        if self.resolution < 1:
            raise UserError(f"resolution is {self.resolution}", hint="it must be at least 1 pixel")
        files = find_files(root)
        _check_depth(self._form.scale, files)
        set_once = object.__setattr__
        set_once(self, "root", root)
        set_once(self, "_files", files)
        set_once(self, "_keys", tuple(files.pairs))
        set_once(self, "_captions", _find_captions(root, self.captions, files))
        set_once(self, "_intrinsics", _find_intrinsics(root, set(files.pairs)))

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Record:
        record, resolution = self._read(index), self.resolution
        size, depth_size = record.image.shape[:2], record.depth.shape
        window = center_square((size[0], size[1]))
        in_depth = window.rescale((size[0], size[1]), (depth_size[0], depth_size[1]))
        depth, valid = crop_resize_depth(record.depth, record.valid, in_depth, resolution)
        return replace(
            record,
            image=crop_resize_image(record.image, window, resolution),
            depth=depth,
            valid=valid,
            intrinsics=crop_resize_intrinsics(record.intrinsics, window, resolution),
        )

    def notes(self) -> list[str]:
        """Returns a line for each kind of thing in the folder that is not used or looks wrong."""
        notes = [*self._files.notes(self.root), *self._captions.notes, *self._intrinsics.notes]
        names = self._files.names
        escaped = [name for name in names.values() if printable_name(name) != name]
        if escaped:
            what = f"{len(escaped)} names are not UTF-8 and written with escapes"
            notes.append(f"{self.root}: {what} ({list_some(escaped)})")
        notes += self._note_of_floats()
        maps = [(names[key], pair.depth) for key, pair in self._files.pairs.items() if pair.depth]
        examined = maps[:: max(1, len(maps) // _MAPS_EXAMINED)]
        count, name, depth, fraction = repeated_values(
            (name, partial(read_depth, path, self._form)) for name, path in examined
        )
        if count:
            one = f"{printable_name(name)}: {depth:g} in {fraction:.0%}"
            notes.append(
                f"{self.root}: one value fills more than {REPEATED:.0%} of {count} of "
                f"{len(examined)} depth maps examined ({one}); if it marks missing depth, set "
                "depth_invalid to the stored number, or depth_max"
            )
        return notes

    def _note_of_floats(self) -> list[str]:
        depths = [pair.depth for pair in self._files.pairs.values() if pair.depth]
        arrays = [path for path in depths if path.suffix.lower() in (".npy", ".exr")]
        if self.depth_scale in (None, 1) or not arrays or not holds_floats(arrays[0]):
            return []
        kind = arrays[0].suffix.lower()
        what = f"floats of {kind} are depth already: depth_scale={self.depth_scale:g}"
        return [f"{self.root}: {what} is for the PNG beside them ({arrays[0].name}, ...)"]

    @property
    def _form(self) -> DepthFormat:
        return DepthFormat(self.depth_scale, self.depth_invalid, self.depth_max or math.inf)

    def _read(self, index: int) -> Record:
        """Returns a record, uncropped; its depth may have another size than its image."""
        key = self._keys[index]
        pair = self._files.pairs[key]
        image, depth, valid = read_pair(pair, self._form, self.depth_orientation)
        first, *others = self._captions(key) or ("",)
        return Record(
            image=image,
            depth=depth,
            valid=valid,
            intrinsics=self._intrinsics(key, (image.shape[0], image.shape[1]), pair.image),
            unit=self.unit,
            caption=first,
            source=printable_name(self.root.resolve().name),
            id=printable_name(self._files.names[key]),
            other_captions=tuple(others),
        )


def _check_depth(scale: float | None, files: FolderFiles) -> None:
    """Raises UserError for PNG without a scale, a scale where all depth is floats, unread .exr."""
    depths = [pair.depth for pair in files.pairs.values() if pair.depth]
    for path in depths:
        if path.suffix.lower() == ".exr":
            require_package(path)
            break
    png = next((path for path in depths if path.suffix.lower() == ".png"), None)
    if scale is None and png:
        hint = "state depth_scale, e.g. 0.001 for millimeters"
        raise UserError("the unit of its counts is not known", where=png, hint=hint)
    if scale is not None and depths and not png and holds_floats(depths[0]):
        what = "holds floats, which are depth already: depth_scale is for 16-bit PNG and integers"
        raise UserError(what, where=depths[0], hint="leave depth_scale out, or convert the files")


def _find_captions(
    root: Path, elsewhere: Path | None, files: FolderFiles
) -> CaptionTable | CaptionFolder:
    if elsewhere:
        return read_caption_table(Path(elsewhere), set(files.pairs))
    found = [root / name for name in CAPTION_FILES if is_file(root / name)]
    if is_dir(root / "captions"):
        found.append(root / "captions")
    if len(found) > 1:
        what = f"has captions in {found[0].name} and in {found[1].name}"
        raise UserError(what, where=root, hint="keep one of them")
    if not found or found[0].name == "captions":
        return CaptionFolder(files.texts)
    table = read_caption_table(found[0], set(files.pairs))
    if files.texts:
        names = list_some(path.name for path in files.texts.values())
        note = f"{root}: {len(files.texts)} not used beside {found[0].name} ({names})"
        table = replace(table, notes=(*table.notes, note))
    return table


class _Intrinsics(NamedTuple):
    matrix: np.ndarray  # f32 [3 3]
    size: Size | None  # of the images that it is for


@dataclass(frozen=True)
class _IntrinsicsTable:
    """Intrinsics by `name_key`, each with the (h, w) that it is for if stated, and a default.

    notes: lines about what of them is not used.
    """

    by_name: Mapping[str, _Intrinsics]
    default: _Intrinsics
    notes: tuple[str, ...] = ()

    def __call__(self, key: str, size: Size, image: Path) -> np.ndarray:
        """Returns intrinsics f32 [3 3] of an image of (h, w) `size`, NaN if unknown."""
        matrix, stated = self.by_name.get(key, self.default)
        if stated:
            return rescale_intrinsics(matrix, stated, size, image).astype(np.float32)
        hint = "state there width and height of the images that it is for"
        return check_principal_point(matrix, size, image, "intrinsics.json", hint)


def _find_intrinsics(root: Path, keys: set[str]) -> _IntrinsicsTable:
    path = root / INTRINSICS_FILE
    unknown = _Intrinsics(np.full((3, 3), np.nan, np.float32), None)
    if not is_file(path):
        return _IntrinsicsTable({}, unknown)
    loaded = read_json(path)
    if not isinstance(loaded, dict):
        raise UserError("is not an object", where=path, hint=_INTRINSICS)
    if "fx" in loaded:
        return _IntrinsicsTable({}, _to_matrix(loaded, path))
    by_name = {match(name, keys): _to_matrix(values, path) for name, values in loaded.items()}
    strange = [name for name in loaded if match(name, keys) not in keys]
    if loaded and len(strange) == len(loaded):
        what = f"names no image here (first {strange[0]!r})"
        raise UserError(what, where=path, hint="use the images' file names")
    note = f"{path}: {len(strange)} of {len(loaded)} name no image here ({list_some(strange)})"
    return _IntrinsicsTable(by_name, unknown, (note,) if strange else ())


def _to_matrix(values: object, path: Path) -> _Intrinsics:
    try:
        if not isinstance(values, Mapping):
            raise TypeError("not an object")
        fx, fy, cx, cy = (parse_number(values[key]) for key in ("fx", "fy", "cx", "cy"))
        size = None
        if "width" in values:
            size = int(parse_number(values["height"])), int(parse_number(values["width"]))
    except (KeyError, TypeError, ValueError) as error:
        what = f"holds intrinsics without one of fx fy cx cy ({error})"
        raise UserError(what, where=path, hint=_INTRINSICS) from error
    if not (min(fx, fy) > 0 and max(fx, fy, abs(cx), abs(cy)) <= _MAX_PIXELS):
        what = f"holds a focal length that is not positive, or a number beyond {_MAX_PIXELS:g}"
        raise UserError(what, where=path, hint="give fx and fy in pixels")
    if size and min(size) < 1:
        raise UserError("is for images without pixels", where=path, hint="correct width and height")
    return _Intrinsics(pinhole(fx, fy, cx, cy).astype(np.float32), size)

"""One file of a job: read and made an input of the network, and its results made into files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from modality_forcing.data.files import read_depth
from modality_forcing.data.names import printable_name
from modality_forcing.data.pairs import repeated_values
from modality_forcing.data.resize import Size
from modality_forcing.errors import UserError
from modality_forcing.inference import fit as fits
from modality_forcing.inference import outputs
from modality_forcing.inference.fit import Arrays, Fitted
from modality_forcing.inference.job import Job
from modality_forcing.inference.manifest import Entry
from modality_forcing.inference.metric import Measured, Scaling, align, doubts
from modality_forcing.inference.photos import Item, read_photo
from modality_forcing.inference.points import FOV
from modality_forcing.inference.result import Result, restore, restore_maps
from modality_forcing.modalities.base import Modality
from modality_forcing.progress import print_stderr
from modality_forcing.tasks import SAMPLED, TASKS

LARGE = 4_000_000  # pixels; of a photograph with more only the network's input is kept

Maps = tuple[np.ndarray, np.ndarray]  # depth f32 and valid bool [h w]
# What the network made of one file: by member of an ensemble and placement.
Members = Sequence[Sequence[Arrays]]


@dataclass(frozen=True)
class Loaded:
    """A file as inputs of the network, with what its results need of it."""

    item: Item
    fitted: Fitted
    image: np.ndarray | None = None  # None: too large to be kept
    depth: Maps | None = None
    fov: float | None = None
    measured: Measured | None = None

    @property
    def is_large(self) -> bool:
        """Whether its results are made one file at a time."""
        return self.fitted.is_larger(LARGE)


@dataclass(frozen=True)
class Encoded:
    """The files of an item by name, its entry in the manifest, and how it became metric.

    Contents of files are freed once they are written.
    """

    files: dict[str, bytes]
    entry: Entry
    scaling: Scaling | None = None
    doubts: tuple[str, ...] = ()


def load(item: Item, job: Job, size: Size) -> Loaded | UserError:
    """Reads a file and makes the network's inputs of it."""
    try:
        if "image" not in SAMPLED[job.mode]:
            return _load_depth(item, job, size)
        photo = read_photo(item.path)
        fitted = fits.fit_image(photo.image, size, job.fit)
        find = None if job.scale is None else job.scale.measured
        measured = None if find is None else find(item.path, item.name, fitted.size)
        kept = None if fitted.is_larger(LARGE) else photo.image
        return Loaded(item, fitted, kept, fov=photo.fov, measured=measured)
    except UserError as error:
        return _named(error, item)


def _load_depth(item: Item, job: Job, size: Size) -> Loaded:
    depth, valid = read_depth(item.path, job.depth_form)
    count, _, value, fraction = repeated_values([("", lambda: (depth, valid))])
    if count:
        hint = "set --depth-invalid to the stored number, or --depth-max"
        what = f"{value:g} fills {fraction:.0%} of it; if it marks missing depth, {hint}"
        print_stderr(f"{item.path}: {what}")
    return Loaded(item, fits.fit_depth(depth, valid, size, job.fit), depth=(depth, valid))


def encode(
    loaded: Loaded | UserError, variants: Sequence[Members], job: Job, asked: Sequence[Modality]
) -> Encoded | UserError:
    """Returns the files of an item, from what the network made of it."""
    if isinstance(loaded, UserError):
        return loaded
    try:
        rows, columns = loaded.fitted.size
        entry: dict[str, object] = {"mode": job.mode, "size": [columns, rows]}
        whole = Encoded({}, entry)
        for number, members in enumerate(variants):
            suffix = f"_{number:03d}" if len(variants) > 1 else ""
            if job.mode == "i2d":
                made = _encode_depth(loaded, members, job)
            elif job.mode in TASKS:
                made = _encode_image(loaded, members, job)
            else:
                made = _encode_maps(loaded, members, job, asked)
            files = {f"{loaded.item.name}{suffix}{end}": x for end, x in made.files.items()}
            doubted = tuple(dict.fromkeys(whole.doubts + made.doubts))
            whole = Encoded(
                whole.files | files, {**whole.entry, **made.entry}, made.scaling, doubted
            )
        names = [printable_name(name) for name in whole.files]
        return replace(whole, entry={**whole.entry, "outputs": names})
    except UserError as error:
        return _named(error, loaded.item)


def _encode_depth(loaded: Loaded, members: Members, job: Job) -> Encoded:
    """Returns one result: its files by the ends of their names."""
    image = _image(loaded)
    result, unit = restore(image, loaded.fitted, members), "relative"
    entry: dict[str, object] = {}
    scaling, doubted = None, ()
    if loaded.measured is not None:
        result, scaling = align(result, loaded.measured)
        unit, doubted = "metric", tuple(doubts(result, scaling))
        entry["scaling"] = asdict(scaling)
    entry["unit"] = unit
    files = outputs.depth_files(result, job.formats, unit)
    if job.geometry:
        fov = job.fov or loaded.fov or FOV
        entry["fov"] = round(fov, 3)
        files |= outputs.geometry_files(result, job.geometry, fov, job.edge)
    return Encoded(files, entry, scaling, doubted)


def _encode_image(loaded: Loaded, members: Members, job: Job) -> Encoded:
    (placements,) = members  # an ensemble is of depth only
    image = fits.restore_image([x["image"] for x in placements], loaded.fitted)
    assert loaded.depth is not None
    return Encoded(outputs.image_files(Result(image, *loaded.depth), job.formats), {})


def _encode_maps(loaded: Loaded, members: Members, job: Job, asked: Sequence[Modality]) -> Encoded:
    (placements,) = members
    given = _image(loaded) if loaded.depth is None else Result(None, *loaded.depth).colored()
    files: dict[str, bytes] = {}
    made = restore_maps(placements, loaded.fitted, asked)
    for m in asked:
        colors = m.colorize(made[m.name][None])[0]
        files |= outputs.map_files(m.name, made[m.name], colors, job.formats, beside=given)
    return Encoded(files, {})


def _image(loaded: Loaded) -> np.ndarray:
    """Returns the photograph of a file, which is read again if it was too large to keep."""
    return read_photo(loaded.item.path).image if loaded.image is None else loaded.image


def _named(error: UserError, item: Item) -> UserError:
    """Returns an error that names its file."""
    path = printable_name(str(item.path))
    return error if path in str(error) else UserError(str(error), where=path)

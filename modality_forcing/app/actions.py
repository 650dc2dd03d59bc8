"""What the buttons of the page do: files and settings in, files of one answer out.

Nothing here knows of Gradio. Errors name a file where it is on the server; the page puts its own
name in that place.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from modality_forcing import paths
from modality_forcing.data.files import HEIF_SUFFIXES, DepthFormat, read_depth, register_heif
from modality_forcing.errors import UserError
from modality_forcing.inference import outputs, points
from modality_forcing.inference.photos import read_photo
from modality_forcing.inference.result import Result
from modality_forcing.viz import images

COLORMAPS = ("spectral", "plasma", "gray")
# Not EPS, for example, which Pillow has another program run.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "MPO", "HEIF", "AVIF")
MAX_PIXELS = 50_000_000  # of an uploaded picture: phones make up to 50 million
MAX_POINTS = 500_000  # of a point cloud; of larger maps some rows and columns are left out
MAX_STEPS, MAX_ENSEMBLE, MAX_CAPTION, MAX_GUIDANCE, MAX_TILT = 100, 16, 500, 15, 8
KEEP_ALL = 100  # percent of depth: larger jumps are no edges
_SHOWN = 1024  # pixels of the longer side of what the page shows; files have every pixel
_MAGNIFIED = 256  # at least, so that 32 pixels are not a stamp
_FEW_POINTS = 60_000  # fewer leave gaps in a viewer that draws each as one pixel
_NO_EDGE = 1e9  # a jump that depth never makes
_WHOLE = ("steps", "seed", "ensemble")
_LEVEL = 3  # of PNGs' compression: fast, for a tenth more bytes
_PNG_SCALE = 0.001  # of 16-bit PNGs; the unit has no effect on images


@runtime_checkable
class Model(Protocol):
    """What the page needs of `inference.pipeline.Pipeline`."""

    def image_to_depth(
        self, images: np.ndarray, *, ensemble: int, steps: int | None, seed: int
    ) -> Result:
        """Estimates the depth of an image u8 [h w 3]."""
        ...

    def depth_to_image(
        self,
        depths: np.ndarray,
        captions: str,
        *,
        strength: float,
        steps: int | None,
        seed: int,
        guidance: float | None,
    ) -> Result:
        """Generates the image of a depth map f32 [h w], 0 where unknown."""
        ...

    def generate(
        self,
        captions: str,
        *,
        log2_alpha: float | None,
        refine: bool,
        steps: int | None,
        seed: int,
        guidance: float | None,
    ) -> Result:
        """Generates an image, and its depth if the network makes depth."""
        ...


@dataclass(frozen=True)
class Settings:
    """How an answer is made and shown.

    steps, guidance: 0 for the config's. fov: degrees across the longer side; 0 for what the photo
    says, else 65. jump: percent of depth between neighbors from which on both are left out of point
    clouds; KEEP_ALL leaves out none.

    Raises UserError for a value that the page does not offer, as a request made by hand may have.
    """

    steps: int = 0
    seed: int = 0
    guidance: float = 0.0
    ensemble: int = 1
    strength: float = 1.0
    log2_alpha: float = 0.0
    refine: bool = False
    fov: float = 0.0
    jump: float = 10.0
    colormap: str = COLORMAPS[0]

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 0, MAX_STEPS),
            ("seed", 0, 2**31 - 1),
            ("guidance", 0, MAX_GUIDANCE),
            ("ensemble", 1, MAX_ENSEMBLE),
            ("strength", 0, 1),
            ("log2_alpha", -MAX_TILT, MAX_TILT),
            ("fov", 0, 150),
            ("jump", 1, KEEP_ALL),
        ):
            value = getattr(self, name)
            kinds = int if name in _WHOLE else int | float
            if not isinstance(value, kinds) or not low <= value <= high:
                whole = "a whole number " if name in _WHOLE else ""
                hint = f"choose {whole}from {low} to {high}"
                raise UserError(f"{name.replace('_', ' ')} is {value!r}", hint=hint)
        if self.colormap not in COLORMAPS:
            raise UserError(f"colormap is {self.colormap!r}", hint=f"choose of {COLORMAPS}")


def parse_settings(values: Mapping[str, Any]) -> Settings:
    """Returns settings from numbers as JSON has them, where 4 may be 4.0."""

    def whole(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return Settings(**{name: whole(v) if name in _WHOLE else v for name, v in values.items()})


@dataclass(frozen=True)
class Answer:
    """The files of one answer; None where there is no such thing.

    Attributes:
      image, depth, uncertainty: PNGs to look at.
      scene: a point cloud to look at, as .glb.
      files: to download.
    """

    image: Path | None
    depth: Path | None
    uncertainty: Path | None
    scene: Path | None
    files: tuple[Path, ...]


def image_to_depth(model: Model, picture: Path | None, folder: Path, settings: Settings) -> Answer:
    """Estimates the depth of an uploaded picture. Raises UserError if it is missing or no image."""
    if picture is None:
        raise UserError("no picture", hint="upload one, or choose an example")
    check_picture(picture)
    photo = read_photo(picture)
    made = model.image_to_depth(
        photo.image, ensemble=settings.ensemble, steps=settings.steps or None, seed=settings.seed
    )
    settings = replace(settings, fov=settings.fov or photo.fov or 0.0)
    return write(made, folder, settings, given="image")


def depth_to_image(
    model: Model, file: Path | None, caption: str | None, folder: Path, settings: Settings
) -> Answer:
    """Generates an image for an uploaded depth map. Raises UserError if it is missing or none."""
    depth = read_map(file)
    made = model.depth_to_image(
        depth,
        check_caption(caption),
        strength=settings.strength,
        steps=settings.steps or None,
        seed=settings.seed,
        guidance=settings.guidance or None,
    )
    return write(made, folder, settings, given="depth")


def generate(
    model: Model, caption: str | None, folder: Path, settings: Settings, *, has_depth: bool
) -> Answer:
    """Generates an image, and its depth where the model has one."""
    made = model.generate(
        check_caption(caption),
        log2_alpha=settings.log2_alpha if has_depth else None,
        refine=settings.refine and has_depth,
        steps=settings.steps or None,
        seed=settings.seed,
        guidance=settings.guidance or None,
    )
    return write(made, folder, settings)


def preview(file: Path | None, folder: Path) -> Path | None:
    """Writes the colors of an uploaded depth map, to look at; None if there is no file."""
    if file is None:
        return None
    depth = read_map(file)
    return _write_png(folder / "given.png", Result(None, depth, depth > 0).colored(COLORMAPS[0]))


def read_map(path: Path | None) -> np.ndarray:
    """Returns an uploaded depth map as f32 [h w], 0 where unknown.

    Raises UserError if there is no file or it is no depth map.
    """
    if path is None:
        raise UserError("no depth map", hint="upload one, or choose an example")
    if path.suffix.lower() not in (".npy", ".png"):
        what = f"depth in a {path.suffix or 'nameless'} file is not understood"
        raise UserError(what, where=path, hint="upload a .npy of floats or a 16-bit PNG")
    if path.suffix.lower() == ".png":
        check_picture(path)
    depth, valid = read_depth(path, DepthFormat(_PNG_SCALE))
    if depth.size > MAX_PIXELS:
        _refuse_pixels(path, depth.shape[::-1])
    return np.where(valid, depth, np.float32(0))


def check_picture(path: Path) -> None:
    """Raises UserError for a picture of a format or a size that is not taken, before it is decoded.

    What is no picture passes: who reads it says so.
    """
    if path.suffix.lower() in HEIF_SUFFIXES:
        register_heif(path)  # or the size could not be read here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                size, kind = opened.size, opened.format or "nameless"
    except Image.DecompressionBombError:
        _refuse_pixels(path)
    except Exception:  # of a dozen kinds, which `data.files` tells apart
        return
    if kind not in FORMATS:
        hint = f"upload one of {', '.join(FORMATS)}"
        raise UserError(f"is a picture of the format {kind}", where=path, hint=hint)
    if math.prod(size) > MAX_PIXELS:
        _refuse_pixels(path, size)


def _refuse_pixels(path: Path, size: Sequence[int] = ()) -> NoReturn:
    what = f"has {' x '.join(map(str, size)) or 'too many'} pixels"
    hint = f"scale it down to {MAX_PIXELS // 10**6} million at most"
    raise UserError(what, where=path, hint=hint)


def check_caption(caption: str | None) -> str:
    """Returns a caption without spaces around it; raises UserError if it is too long."""
    text = (caption or "").strip()
    if len(text) > MAX_CAPTION:
        raise UserError(f"the caption has {len(text)} characters", hint=f"at most {MAX_CAPTION}")
    return text


def write(made: Result, folder: Path, settings: Settings, *, given: str = "") -> Answer:
    """Writes the files of a result. given: what was put in, which is not written."""
    files: list[Path] = []
    shown: dict[str, Path | None] = dict.fromkeys(("image", "depth", "uncertainty", "scene"))
    if made.image is not None and given != "image":
        paths.write_file(folder / "image.png", images.png_bytes(made.image, _LEVEL))
        files.append(folder / "image.png")
        shown["image"] = _write_png(folder / "shown_image.png", made.image)
    if made.depth is not None and given != "depth":
        written = outputs.depth_files(made, ("npy", "png"), "relative")
        for ending in (name for name in written if not name.endswith(".json")):
            paths.write_file(folder / ending.lstrip("_"), written[ending])
            files.append(folder / ending.lstrip("_"))
        shown["depth"] = _write_png(folder / "shown_depth.png", made.colored(settings.colormap))
    if made.uncertainty is not None:
        colors = uncertainty_colors(made)
        shown["uncertainty"] = _write_png(folder / "shown_uncertainty.png", colors)
    if made.depth is not None:
        scene, clouds = write_points(made, folder, settings)
        shown["scene"] = scene
        files += clouds
    return Answer(**shown, files=tuple(files))


def write_points(made: Result, folder: Path, settings: Settings) -> tuple[Path | None, list[Path]]:
    """Writes the point cloud of a result; returns one to look at, and those to download.

    There is none where depth jumps everywhere.
    """
    assert made.depth is not None
    edge = settings.jump / 100 if settings.jump < KEEP_ALL else _NO_EDGE
    fov = settings.fov or points.FOV
    cloud = points.cloud(made, fov, edge=edge, max_points=MAX_POINTS)
    if not len(cloud.xyz):
        return None, []
    files = [points.write(cloud, folder / f"points.{suffix}") for suffix in ("ply", "glb")]
    if made.depth.size >= _FEW_POINTS:
        return files[-1], files
    valid = made.depth > 0 if made.valid is None else made.valid
    cut = replace(made, valid=valid & ~points.depth_edges(made.depth, valid, edge))
    thick = points.cloud(thicken(cut), fov, edge=_NO_EDGE)
    return points.write(thick, folder / "shown_points.glb"), files


def thicken(made: Result, at_least: int = _FEW_POINTS) -> Result:
    """Returns a result whose pixels are repeated, so that it has at least so many."""
    assert made.depth is not None
    n = math.ceil(math.sqrt(at_least / made.depth.size))
    return _each(made, lambda x: images.upscale(x, n))


def _each(made: Result, change: Callable[[np.ndarray], np.ndarray]) -> Result:
    maps = {name: change(x) for name, x in vars(made).items() if x is not None}
    return replace(made, **maps)


def uncertainty_colors(made: Result) -> np.ndarray:
    """Returns the uncertainty of a result as colors u8 [h w 3]: dark is certain."""
    assert made.uncertainty is not None
    valid = np.isfinite(made.uncertainty)
    if made.valid is not None:
        valid &= made.valid
    high = float(np.percentile(made.uncertainty[valid], 98)) if valid.any() else 0.0
    return images.colorize(made.uncertainty, valid, (0.0, high), colormap="magma")


def _write_png(path: Path, colors: np.ndarray) -> Path:
    """Writes an image u8 [h w 3] at a size to look at."""
    longer = max(colors.shape[:2])
    if longer > _SHOWN:
        height, width = (max(1, round(side * _SHOWN / longer)) for side in colors.shape[:2])
        colors = np.asarray(Image.fromarray(colors).resize((width, height), Image.Resampling.BOX))
    elif longer < _MAGNIFIED:
        colors = images.upscale(colors, -(-_MAGNIFIED // longer))
    paths.write_file(path, images.png_bytes(colors, _LEVEL))
    return path

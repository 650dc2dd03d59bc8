"""What the buttons of the page do: files and settings in, files of one answer out.

Nothing here uses Gradio. Errors name a file where it is on the server; the page puts its own
name in that place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from modality_forcing import paths
from modality_forcing.app.settings import COLORMAPS, KEEP_ALL, Settings
from modality_forcing.app.uploads import check_image, read_map
from modality_forcing.errors import UserError
from modality_forcing.inference import metric, outputs, points
from modality_forcing.inference.photos import Photo, read_photo
from modality_forcing.inference.pipeline import Pipeline
from modality_forcing.inference.result import Result
from modality_forcing.modalities import normals
from modality_forcing.viz import images

MAX_CAPTION = 500  # characters
MAX_TABLE = 10**6  # bytes of measurements
MAX_POINTS = 500_000  # of a point cloud; of larger maps some rows and columns are left out
_SHOWN = 1024  # pixels of the longer side of what the page shows; files have every pixel
_MAGNIFIED = 256  # at least, so that 32 pixels are not a stamp
_FEW_POINTS = 60_000  # fewer leave gaps in a viewer that draws each as one pixel
_LEVEL = 3  # of PNGs' compression: fast, for a tenth more bytes
_NO_EDGE = 1e9  # a jump that depth never makes


@dataclass(frozen=True)
class Answer:
    """The files of one answer; None where there is no such thing.

    Attributes:
      image, depth, uncertainty, normals: PNGs to look at.
      scene: a point cloud to look at, as .glb.
      files: to download.
      note: a line to show.
    """

    image: Path | None = None
    depth: Path | None = None
    uncertainty: Path | None = None
    normals: Path | None = None
    scene: Path | None = None
    files: tuple[Path, ...] = ()
    note: str = ""


def image_to_depth(
    model: Pipeline,
    image: Path | None,
    folder: Path,
    settings: Settings,
    *,
    measured: Path | None = None,
) -> Answer:
    """Estimates the depth of an uploaded image.

    measured: a table of measurements (`inference.metric.read_points`), which make meters of depth.
    Raises UserError if there is no image, or a file is not what it should be.
    """
    photo = _read_photo(image)
    made = model.image_to_depth(
        photo.image,
        ensemble=settings.ensemble,
        steps=settings.steps or None,
        seed=settings.seed,
        condition_guidance=settings.condition_guidance or None,
    )
    settings = replace(settings, fov=settings.fov or photo.fov or 0.0)
    if measured is None:
        return write(made, folder, settings, cond="image")
    if (size := paths.size(measured)) > MAX_TABLE:
        hint = f"give at most {MAX_TABLE // 10**6} MB of measurements"
        raise UserError(f"has {size} bytes", where=measured, hint=hint)
    height, width = photo.image.shape[:2]
    made, scaling = metric.align(made, metric.read_points(measured, (height, width)))
    note = "; ".join([scaling.describe(), *metric.doubts(made, scaling)])
    return replace(write(made, folder, settings, cond="image", unit="m"), note=note)


def image_to_normals(
    model: Pipeline, image: Path | None, folder: Path, settings: Settings
) -> Answer:
    """Estimates the normals of an uploaded image. Raises UserError if it is missing or none."""
    made = model.image_to_normals(
        _read_photo(image).image,
        steps=settings.steps or None,
        seed=settings.seed,
        condition_guidance=settings.condition_guidance or None,
    )
    return write(made, folder, settings, cond="image")


def depth_to_image(
    model: Pipeline, file: Path | None, caption: str | None, folder: Path, settings: Settings
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
        condition_guidance=settings.condition_guidance or None,
    )
    return write(made, folder, settings, cond="depth")


def generate(
    model: Pipeline, caption: str | None, folder: Path, settings: Settings, *, has_depth: bool
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


def _read_photo(image: Path | None) -> Photo:
    if image is None:
        raise UserError("no image", hint="upload one, or choose an example")
    check_image(image)
    return read_photo(image)


def preview(file: Path | None, folder: Path) -> Path | None:
    """Writes the colors of an uploaded depth map, to look at; None if there is no file."""
    if file is None:
        return None
    depth = read_map(file)
    return _write_png(folder / "given.png", Result(None, depth, depth > 0).colored(COLORMAPS[0]))


def check_caption(caption: str | None) -> str:
    """Returns a caption without spaces around it; raises UserError if it is too long."""
    text = (caption or "").strip()
    if len(text) > MAX_CAPTION:
        hint = f"shorten it to at most {MAX_CAPTION}"
        raise UserError(f"the caption has {len(text)} characters", hint=hint)
    return text


def write(
    made: Result, folder: Path, settings: Settings, *, cond: str = "", unit: str = "relative"
) -> Answer:
    """Writes the files of a result. cond: the input, which is not written. unit: of depth."""
    files: dict[str, bytes] = {}
    shown: dict[str, np.ndarray] = {}  # colors u8 [h w 3]
    if made.image is not None and cond != "image":
        files |= outputs.image_files(made, ())
        shown["image"] = made.image
    if made.depth is not None and cond != "depth":
        written = outputs.depth_files(made, ("npy", "png"), unit)
        files |= {end: x for end, x in written.items() if not end.endswith(".json")}
        shown["depth"] = made.colored(settings.colormap)
    if made.uncertainty is not None:
        valid = np.isfinite(made.uncertainty)
        valid &= True if made.valid is None else made.valid
        shown["uncertainty"] = outputs.uncertainty_colors(made.uncertainty, valid)
    if made.normals is not None:
        shown["normals"] = colors = normals.colors_of(made.normals)
        files |= outputs.map_files("normals", made.normals, colors, ("npy", "png"))
    files = {end.lstrip("_"): content for end, content in files.items()}
    for name, content in files.items():
        paths.write_file(folder / name, content)
    seen = {kind: _write_png(folder / f"shown_{kind}.png", x) for kind, x in shown.items()}
    scene, clouds = (None, []) if made.depth is None else write_points(made, folder, settings)
    return Answer(
        image=seen.get("image"),
        depth=seen.get("depth"),
        uncertainty=seen.get("uncertainty"),
        normals=seen.get("normals"),
        scene=scene,
        files=(*(folder / name for name in files), *clouds),
    )


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
    arrays = {name: change(x) for name, x in vars(made).items() if isinstance(x, np.ndarray)}
    return replace(made, **arrays, maps={name: change(x) for name, x in made.maps.items()})


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

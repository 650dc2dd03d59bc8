"""How a photograph of any size becomes inputs of the network, and maps of it the photograph's size.

A network has one size, the canvas. A placement puts a window of the photograph into a box of the
canvas; a fit is one placement or, for tiles, several. Sizes are (rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from modality_forcing.data.resize import (
    Size,
    Window,
    center_window,
    crop_resize_depth,
    crop_resize_image,
)
from modality_forcing.errors import UserError
from modality_forcing.evaluation.resample import resize_prediction
from modality_forcing.inference.enlarge import enlarge_depth

Fit = Literal["letterbox", "crop", "stretch", "tiles"]
FITS: tuple[Fit, ...] = get_args(Fit)
# Of images the fit with the least error of depth (benchmarks/photo_fits.py). Depth is not
# distorted, since images that are made for it would be too.
IMAGE_FIT: Fit = "stretch"
DEPTH_FIT: Fit = "letterbox"
_MOST_TILES = 32  # of a very long photograph; its tiles are then letterboxed themselves

# Of one canvas: the network's inputs (image, or depth and valid), or what it made of them.
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Placement:
    """A window of whole pixels of the photograph, and the box of the canvas that it fills."""

    window: Window
    box: Window

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Returns the box of an array [H W ...] of the canvas."""
        return values[_slices(self.box)]


@dataclass(frozen=True)
class Fitted:
    """A photograph or a depth map as inputs of the network.

    size: of the original. inputs: one per placement, image u8 [H W 3] or depth f32 and valid bool
    [H W] of the canvas.
    """

    size: Size
    placements: tuple[Placement, ...]
    inputs: tuple[Arrays, ...]

    def is_larger(self, pixels: int) -> bool:
        """Returns whether the original has more pixels."""
        return math.prod(self.size) > pixels


def parse_fit(name: str) -> Fit:
    """Returns a fit by its name; raises UserError for an unknown one."""
    for fit in FITS:
        if fit == name:
            return fit
    raise UserError(f"unknown fit {name!r}", hint=f"choose one of {', '.join(FITS)}")


def place(size: Size, canvas: Size, fit: Fit) -> tuple[Placement, ...]:
    """Returns where the parts of a photograph of `size` are on a canvas.

    letterbox: all of it, at its own aspect. crop: its largest center of the canvas's aspect.
    stretch: all of it, distorted. tiles: all of it, in overlapping windows of the canvas's aspect.
    """
    whole, full = Window(0, 0, *size), Window(0, 0, *canvas)
    if fit == "stretch":
        return (Placement(whole, full),)
    if fit == "letterbox":
        return (Placement(whole, _inner_box(size, canvas)),)
    if fit == "crop":
        window = center_window(size, canvas)
        height, width = max(1, round(window.height)), max(1, round(window.width))
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        return (Placement(Window(top, left, height, width), full),)
    return _tiles(size, canvas)


def fit_image(image: np.ndarray, canvas: Size, fit: Fit) -> Fitted:
    """Returns an image u8 [h w 3] as inputs of a network of a canvas.

    The padding of a letterbox repeats the pixels at the border of the image.
    """
    height, width = image.shape[:2]
    placements = place((height, width), canvas, fit)
    inputs = []
    for p in placements:
        part = crop_resize_image(image, p.window, (int(p.box.height), int(p.box.width)))
        inputs.append({"image": _pad(part, p.box, canvas, "edge")})
    return Fitted((height, width), placements, tuple(inputs))


def fit_depth(depth: np.ndarray, valid: np.ndarray, canvas: Size, fit: Fit) -> Fitted:
    """Returns depth f32 and valid bool [h w] as inputs; padding is not valid.

    Raises UserError if no pixel is valid there, as for a crop whose center is empty.
    """
    height, width = depth.shape
    placements = place((height, width), canvas, fit)
    inputs = []
    for p in placements:
        z, ok = crop_resize_depth(depth, valid, p.window, (int(p.box.height), int(p.box.width)))
        inputs.append({"depth": _pad(z, p.box, canvas), "valid": _pad(ok, p.box, canvas)})
    if not all(x["valid"].any() for x in inputs):
        part = {"crop": "its center", "tiles": "a tile of it"}.get(fit, "it")
        raise UserError(f"{part} holds no valid depth", hint="use another fit, such as letterbox")
    return Fitted((height, width), placements, tuple(inputs))


def restore_depth(
    maps: Sequence[np.ndarray], fitted: Fitted, image: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 and valid bool [h w] at the original's size, from a map per placement.

    image: the original u8 [h w 3], by whose edges depth is enlarged; bilinear without it.

    What no placement covers is 0 and not valid. Maps [H W] are cut to their boxes before they are
    enlarged, so no value of padding enters. The maps of tiles are each depth up to scale: they get
    the scale at which they agree with the tiles before them where they overlap.
    """
    return _restore(maps, fitted, image)[:2]


def restore_ensemble(
    maps: Sequence[np.ndarray], sigmas: Sequence[np.ndarray], fitted: Fitted, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns depth and valid as `restore_depth`, and uncertainty f32 [h w] in the unit of depth.

    sigmas: the uncertainty of each map, which gets the map's scale.
    """
    depth, valid, scales = _restore(maps, fitted, image)
    return depth, valid, _restore(sigmas, fitted, None, scales)[0]


def restore_image(images: Sequence[np.ndarray], fitted: Fitted) -> np.ndarray:
    """Returns generated colors f32 [H W 3] as an image u8 [h w 3] at the original's size.

    What a crop leaves out is black; overlapping tiles are blended.
    """

    def enlarged(image: np.ndarray, size: Size) -> np.ndarray:
        codes = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        return crop_resize_image(codes, Window(0, 0, *codes.shape[:2]), size)

    return np.rint(_blend(images, fitted, enlarged)[0]).astype(np.uint8)


def restore_channels(maps: Sequence[np.ndarray], fitted: Fitted) -> tuple[np.ndarray, np.ndarray]:
    """Returns channels f32 [h w c] and valid bool [h w] at the original's size, bilinear.

    maps: f32 [H W c], one per placement. What no placement covers is 0 and not valid; overlapping
    tiles are blended. The mean of several values may need `Modality.project`.
    """

    def enlarged(values: np.ndarray, size: Size) -> np.ndarray:
        planes = np.moveaxis(values, -1, 0)
        return np.stack([resize_prediction(x, size) for x in planes], axis=-1)

    return _blend(maps, fitted, enlarged)


def _blend(
    maps: Sequence[np.ndarray], fitted: Fitted, enlarge: Callable[[np.ndarray, Size], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weighted means f32 [h w c] of placements, and where there are any."""
    channels = maps[0].shape[-1]
    sums = np.zeros((*fitted.size, channels), np.float32)
    weights = np.zeros(fitted.size, np.float32)
    for values, p in zip(maps, fitted.placements, strict=True):
        size = _window_size(p.window)
        part = enlarge(p.cut(values), size)
        weight = _feather(size) if len(maps) > 1 else np.ones(size, np.float32)
        sums[_slices(p.window)] += weight[..., None] * part
        weights[_slices(p.window)] += weight
    return sums / np.where(weights > 0, weights, 1)[..., None], weights > 0


def _inner_box(size: Size, canvas: Size) -> Window:
    """Returns the largest centered box of whole pixels with the aspect of `size`."""
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    rows, columns = (
        min(max(1, round(side * scale)), most) for side, most in zip(size, canvas, strict=True)
    )
    return Window((canvas[0] - rows) // 2, (canvas[1] - columns) // 2, rows, columns)


def _tiles(size: Size, canvas: Size) -> tuple[Placement, ...]:
    """Returns windows of the canvas's aspect along the longer way, each half over the next."""
    window = center_window(size, canvas)
    sides = [max(1, round(window.height)), max(1, round(window.width))]
    axis = 0 if size[0] - sides[0] > size[1] - sides[1] else 1
    sides[axis] = max(sides[axis], math.ceil(2 * size[axis] / (_MOST_TILES + 1)))
    rest = size[axis] - sides[axis]
    count = 1 + math.ceil(2 * rest / sides[axis])
    placements = []
    for start in np.rint(np.linspace(0, rest, count)).astype(int).tolist():
        top, left = (start, 0) if axis == 0 else (0, start)
        part = Window(top, left, *sides)
        placements.append(Placement(part, _inner_box((sides[0], sides[1]), canvas)))
    return tuple(placements)


def _enlarge(
    values: np.ndarray, placement: Placement, image: np.ndarray | None, fitted: Fitted
) -> np.ndarray:
    """Returns a map [H W] of the canvas at the size of the placement's window."""
    inner = placement.cut(values)
    if image is None:
        return resize_prediction(inner, _window_size(placement.window))
    small = None
    if _window_size(placement.window) == fitted.size and "image" in fitted.inputs[0]:
        small = placement.cut(fitted.inputs[0]["image"])  # of a part, the border has other colors
    return enlarge_depth(inner, image[_slices(placement.window)], small=small)


def _restore(
    maps: Sequence[np.ndarray],
    fitted: Fitted,
    image: np.ndarray | None,
    scales: Sequence[float] = (),
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Returns values and valid [h w], and the scale of each map: those given, or the agreeing."""
    if len(fitted.placements) > 1:
        depth, scales = _merge(maps, fitted, image, scales)
        return depth, np.ones(fitted.size, bool), scales
    placement = next(iter(fitted.placements))
    window, part = placement.window, _enlarge(maps[0], placement, image, fitted)
    if part.shape == fitted.size:
        return part, np.ones(fitted.size, bool), [1.0]
    depth, valid = np.zeros(fitted.size, np.float32), np.zeros(fitted.size, bool)
    depth[_slices(window)], valid[_slices(window)] = part, True
    return depth, valid, [1.0]


def _merge(
    maps: Sequence[np.ndarray], fitted: Fitted, image: np.ndarray | None, scales: Sequence[float]
) -> tuple[np.ndarray, list[float]]:
    sums, weights = np.zeros((2, *fitted.size), np.float32)
    used = []
    for i, (values, p) in enumerate(zip(maps, fitted.placements, strict=True)):
        size, at = _window_size(p.window), _slices(p.window)
        part = _enlarge(values, p, image, fitted)
        before = weights[at]
        scale = scales[i] if scales else 1.0
        if not scales and (overlap := before > 0).any():
            merged = sums[at][overlap] / before[overlap]
            scale = float(np.median(merged / np.maximum(part[overlap], 1e-30)))
        used.append(scale)
        part = part * scale
        weight = _feather(size)
        sums[at] += weight * part
        weights[at] += weight
    return sums / weights, used


def _feather(size: Size) -> np.ndarray:
    """Returns weights f32 [h w], 1 in the middle of a window and small at its border."""
    rows, columns = (
        np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / max(1.0, n / 2) for n in size
    )
    return np.minimum.outer(rows, columns).astype(np.float32)


def _pad(part: np.ndarray, box: Window, canvas: Size, mode: str = "constant") -> np.ndarray:
    top, left = int(box.top), int(box.left)
    bottom, right = canvas[0] - top - part.shape[0], canvas[1] - left - part.shape[1]
    widths = [(top, bottom), (left, right)] + [(0, 0)] * (part.ndim - 2)
    return np.pad(part, widths, "edge" if mode == "edge" else "constant")


def _slices(window: Window) -> tuple[slice, slice]:
    top, left = int(window.top), int(window.left)
    return slice(top, top + int(window.height)), slice(left, left + int(window.width))


def _window_size(window: Window) -> Size:
    return int(window.height), int(window.width)

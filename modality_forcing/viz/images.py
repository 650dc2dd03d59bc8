"""Images and maps as files and sheets: color-mapped disparity, grids, depth as .npy and PNG."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from modality_forcing import numpy_io
from modality_forcing.paths import as_path, write_file

# Perceptually uniform: lightness rises evenly, also in a gray print and for the color-blind. The
# maps of most depth papers are "Spectral_r" of disparity (near is red).
COLORMAP = "plasma"
INVALID_COLOR = (128, 128, 128)  # no color of the map is gray
_BACKGROUND = (24, 24, 27)
_TEXT_COLOR = (228, 228, 231)
_MAX_CODE = 65535  # 16 bits; code 0 means invalid

Limits = tuple[float, float]


def colorize_disparity(
    depth: np.ndarray,
    valid: np.ndarray | None = None,
    limits: Limits | None = None,
    *,
    colormap: str = COLORMAP,
) -> np.ndarray:
    """Returns depth [h w] as colors u8 [h w 3] of its inverse: near is yellow, far is dark blue.

    Invalid pixels are gray; depth that is not finite and positive is invalid too.

    Args:
      depth: in any unit.
      valid: bool [h w].
      limits: inverse depth at the far and the near end of the map, by default `disparity_limits`;
        give those of another map to make two maps comparable.
      colormap: the name of a matplotlib colormap.
    """
    valid = _valid_mask(depth, valid)
    disparity = 1 / np.where(valid, depth, 1).astype(np.float64)
    limits = disparity_limits(depth, valid) if limits is None else limits
    return colorize(disparity, valid, limits, colormap=colormap)


def colorize(
    values: np.ndarray, valid: np.ndarray, limits: Limits, *, colormap: str = COLORMAP
) -> np.ndarray:
    """Returns values [h w] as colors u8 [h w 3] between the limits, gray where not valid."""
    low, high = limits
    # If all values are equal: the middle of the map, which suggests neither end.
    scaled = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    scaled = np.clip(np.where(valid, scaled, 0), 0, 1)  # invalid values may be NaN
    table = _color_table(colormap)
    colors = table.take(np.rint(scaled * (len(table) - 1)).astype(int), axis=0)
    colors[~valid] = INVALID_COLOR
    return colors


@cache
def _color_table(colormap: str) -> np.ndarray:
    """Returns the colors of a map, u8 [256 3]."""
    import matplotlib  # here: most commands need no colors

    return matplotlib.colormaps[colormap](np.linspace(0, 1, 256), bytes=True)[:, :3]


def disparity_limits(depth: np.ndarray, valid: np.ndarray | None = None) -> Limits:
    """Returns the 2nd and 98th percentile of valid inverse depth; (0, 0) if none is valid."""
    valid = _valid_mask(depth, valid)
    if not valid.any():
        return 0.0, 0.0
    far, near = np.percentile(1 / depth[valid].astype(np.float64), (2, 98))
    return float(far), float(near)


def _valid_mask(depth: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    positive = np.isfinite(depth) & (depth > 0)
    return positive if valid is None else positive & valid


def to_u8(image: np.ndarray) -> np.ndarray:
    """Rounds images in [0, 1] to bytes."""
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def upscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Repeats each pixel as a factor x factor block."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def grid(
    rows: Sequence[Sequence[np.ndarray | None]], *, pad: int = 4, labels: Sequence[str] = ()
) -> np.ndarray:
    """Returns one image u8 [h w 3] of rows of equally large images u8 [h w 3].

    None leaves a gap; labels head the columns. Raises ValueError if sizes differ or all are None.
    """
    cells = [cell for row in rows for cell in row if cell is not None]
    if len({cell.shape for cell in cells}) != 1:
        shapes = sorted({cell.shape for cell in cells})
        raise ValueError(f"a grid needs images of one size, not {shapes}")
    height, width, _ = cells[0].shape
    columns = max(len(row) for row in rows)
    header = 22 if labels else 0
    size = header + pad + len(rows) * (height + pad), pad + columns * (width + pad)
    canvas = np.full((*size, 3), _BACKGROUND, np.uint8)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            if cell is not None:
                top, left = header + pad + y * (height + pad), pad + x * (width + pad)
                canvas[top : top + height, left : left + width] = cell
    if not labels:
        return canvas
    sheet = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for x, label in enumerate(labels):
        center = pad + x * (width + pad) + width / 2, (header + pad) / 2
        draw.text(center, label, fill=_TEXT_COLOR, font=font, anchor="mm")
    return np.asarray(sheet)


def add_caption(image: np.ndarray, text: str) -> np.ndarray:
    """Returns the image u8 [h w 3] with a line of text over its lower edge."""
    height, width = image.shape[:2]
    captioned = Image.fromarray(image)
    draw, font = ImageDraw.Draw(captioned), ImageFont.load_default(size=12)
    draw.rectangle((0, height - 17, width, height), fill=_BACKGROUND)
    draw.text((4, height - 3), text, fill=_TEXT_COLOR, font=font, anchor="ls")
    return np.asarray(captioned)


def text_cell(text: str, side: int) -> np.ndarray:
    """Returns an image u8 [side side 3] of wrapped text; what does not fit is cut off."""
    cell = Image.new("RGB", (side, side), _BACKGROUND)
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(size=max(11, side // 12))
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= side - 6 or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    draw.multiline_text((3, 3), "\n".join(lines), fill=_TEXT_COLOR, font=font, spacing=2)
    return np.asarray(cell)


def png_bytes(image: np.ndarray, level: int | None = None) -> bytes:
    """Returns the PNG of an image u8 [h w 3] or u8 [h w].

    level: of compression, 0 to 9; by default the smallest file, which takes long for a photograph.
    """
    buffer = io.BytesIO()
    options = {"optimize": True} if level is None else _compression(level)
    Image.fromarray(image).save(buffer, "PNG", **options)
    return buffer.getvalue()


def _compression(level: int) -> dict[str, int]:
    """Returns Pillow's options of a level; at 1, runs alone are as small and take less time."""
    runs = {"compress_type": zlib.Z_RLE} if level == 1 else {}
    return {"compress_level": level, **runs}


def npy_bytes(values: np.ndarray, valid: np.ndarray) -> bytes:
    """Returns the .npy of a map [h w]: float32, NaN where not valid."""
    return numpy_io.npy_bytes(np.where(valid, values, np.nan).astype(np.float32))


def png16_bytes(
    depth: np.ndarray, valid: np.ndarray | None = None, unit: str = "relative", level: int = 6
) -> tuple[bytes, bytes]:
    """Returns depth [h w] as a 16-bit PNG, and the JSON of its scale, as in `save_depth`."""
    valid = _valid_mask(depth, valid)
    clean = np.where(valid, depth, 0).astype(np.float32)
    scale = float(np.max(clean, initial=0)) / _MAX_CODE or 1.0
    codes = np.clip(np.rint(clean / scale), 1, _MAX_CODE)
    codes = np.where(valid, codes, 0).astype(np.uint16)
    png, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("scale", repr(scale))
    text.add_text("unit", unit)
    Image.fromarray(codes).save(png, "PNG", pnginfo=text, **_compression(level))
    about = json.dumps({"scale": scale, "unit": unit, "invalid": 0}, indent=2) + "\n"
    return png.getvalue(), about.encode()


def save_depth(
    stem: str | Path, depth: np.ndarray, valid: np.ndarray | None = None, unit: str = "relative"
) -> list[Path]:
    """Writes depth [h w] as <stem>.npy, .png, .json and _color.png; returns the four paths.

    .npy: float32, NaN where invalid. .png: 16 bits, depth = code * scale, 0 where invalid. The
    scale assigns the largest code to the largest depth, so the error is at most half the scale (the
    whole scale for depth below half a scale). It is stored in the .json and in the PNG's text chunk
    `scale`, with the unit. Depth that is not finite and positive is invalid. Raises UserError if a
    file cannot be written; files are written atomically.
    """
    stem = as_path(stem)
    png, about = png16_bytes(depth, valid, unit)
    contents = {
        ".npy": npy_bytes(depth, _valid_mask(depth, valid)),
        ".png": png,
        ".json": about,
        "_color.png": png_bytes(colorize_disparity(depth, valid)),
    }
    paths = [stem.with_name(stem.name + ending) for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_file(path, content)
    return paths

"""Arrays into things to look at and files to keep: disparity colours, grids, depth as .npy and 16-bit PNG."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from modality_forcing.atomic_io import write_file

UNKNOWN = (128, 128, 128)  # no colour of the map is a gray
_BACKGROUND = (24, 24, 27)
_INK = (228, 228, 231)
_CODES = 65535  # 16 bits; code 0 says unknown


def disparity_colours(
    depth: np.ndarray, valid: np.ndarray | None = None, limits: tuple[float, float] | None = None
) -> np.ndarray:
    """Colours u8 [h w 3] of depth [h w] by its inverse: near is bright yellow, far is dark blue, unknown is gray.

    Depth that is not finite and positive is unknown too. limits: the inverse depths at the far and the near end, by
    default `disparity_limits` of this map; give those of another map to make the two comparable.
    """
    known = _known(depth, valid)
    far, near = disparity_limits(depth, valid) if limits is None else limits
    return value_colours(1 / np.where(known, depth, 1).astype(np.float64), known, (far, near))


def value_colours(values: np.ndarray, known: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Colours u8 [h w 3] of numbers [h w] from dark blue at limits[0] to bright yellow at limits[1], gray where not known."""
    least, most = limits
    # All of one value: the middle of the map, which claims neither end.
    place = (values - least) / (most - least) if most > least else np.full(values.shape, 0.5)
    place = np.where(known, place, 0)  # what is not known may be no number
    colours = _COLOURS[np.rint(np.clip(place, 0, 1) * (len(_COLOURS) - 1)).astype(int)]
    return np.where(known[..., None], colours, np.array(UNKNOWN, np.uint8))


def disparity_limits(depth: np.ndarray, valid: np.ndarray | None = None) -> tuple[float, float]:
    """The 2nd and 98th percentile of inverse depth over known pixels, (0, 0) if there are none: robust to outliers."""
    known = _known(depth, valid)
    if not known.any():
        return 0.0, 0.0
    far, near = np.percentile(1 / depth[known].astype(np.float64), (2, 98))
    return float(far), float(near)


def _known(depth: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    known = np.isfinite(depth) & (depth > 0)
    return known if valid is None else known & valid


def _colour_table(steps: int = 256) -> np.ndarray:
    """Far to near, u8 [steps 3]: the hue runs from blue by red to yellow while lightness, to the eye, rises evenly.

    Laid out in OKLab (Ottosson 2020), so it stays ordered in a gray print and for the colour-blind.
    """
    along = np.linspace(0, 1, steps)
    lightness = 0.24 + 0.70 * along
    hue = np.deg2rad(272 + 195 * along)
    colours = np.zeros((steps, 3))
    # The largest chroma up to 0.2 that the screen can show, at each step.
    for chroma in np.linspace(0, 0.2, 81):
        linear = _oklab_to_linear(lightness, chroma * np.cos(hue), chroma * np.sin(hue))
        fits = np.all((linear >= 0) & (linear <= 1), axis=1)
        colours[fits] = linear[fits]
    encoded = np.where(colours <= 0.0031308, 12.92 * colours, 1.055 * colours ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def _oklab_to_linear(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Linear sRGB [n 3] of OKLab coordinates; the constants are those of Ottosson (2020)."""
    cone = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return (to_rgb @ cone**3).T


_COLOURS = _colour_table()


def to_u8(image: np.ndarray) -> np.ndarray:
    """Rounds pictures in [0, 1] to bytes."""
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def upscale(image: np.ndarray, factor: int) -> np.ndarray:
    """The picture with each pixel as a factor x factor block."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def grid(
    rows: Sequence[Sequence[np.ndarray | None]], *, pad: int = 4, labels: Sequence[str] = ()
) -> np.ndarray:
    """One picture u8 [h w 3] of rows of pictures u8 [h w 3] of one size; None leaves a gap, labels head the columns.

    Raises ValueError if the pictures differ in size or there is none.
    """
    cells = [cell for row in rows for cell in row if cell is not None]
    if len({cell.shape for cell in cells}) != 1:
        raise ValueError(
            f"a grid needs pictures of one size, not {sorted({cell.shape for cell in cells})}"
        )
    height, width, _ = cells[0].shape
    columns = max(len(row) for row in rows)
    head = 22 if labels else 0
    canvas = np.empty(
        (head + pad + len(rows) * (height + pad), pad + columns * (width + pad), 3), np.uint8
    )
    canvas[:] = _BACKGROUND
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            if cell is not None:
                top, left = head + pad + y * (height + pad), pad + x * (width + pad)
                canvas[top : top + height, left : left + width] = cell
    if not labels:
        return canvas
    sheet = Image.fromarray(canvas)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for x, label in enumerate(labels):
        middle = pad + x * (width + pad) + width / 2
        draw.text((middle, head / 2 + pad / 2), label, fill=_INK, font=font, anchor="mm")
    return np.asarray(sheet)


def captioned(image: np.ndarray, text: str) -> np.ndarray:
    """The picture u8 [h w 3] with a line of text over its lower edge."""
    picture = Image.fromarray(image)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    height, width = image.shape[:2]
    draw.rectangle((0, height - 17, width, height), fill=_BACKGROUND)
    draw.text((4, height - 3), text, fill=_INK, font=font, anchor="ls")
    return np.asarray(picture)


def png_bytes(image: np.ndarray) -> bytes:
    """A PNG of u8 [h w 3] or u8 [h w]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_depth(
    stem: str | Path, depth: np.ndarray, valid: np.ndarray | None = None, unit: str = "relative"
) -> list[Path]:
    """Writes depth [h w] as <stem>.npy, <stem>.png with <stem>.json, and <stem>_colour.png; returns the four paths.

    .npy: float32, NaN where unknown. .png: 16 bits, depth = code * scale with 0 for unknown; the scale, in `unit`,
    spends all codes on the largest depth, so an error is at most half a scale (a whole one for depth below half a
    scale). It stands in the .json and in the PNG's text chunk `scale`. Depth not finite and positive is unknown.
    Raises UserError if a file cannot be written; each file is whole or not there.
    """
    stem, known = Path(stem), _known(depth, valid)
    clean = np.where(known, depth, np.nan).astype(np.float32)
    scale = float(np.max(clean[known], initial=0)) / _CODES or 1.0
    codes = np.where(
        known, np.clip(np.rint(np.where(known, clean, 0) / scale), 1, _CODES), 0
    ).astype(np.uint16)

    array, coded = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array(array, clean, allow_pickle=False)
    text = PngImagePlugin.PngInfo()
    text.add_text("scale", repr(scale))
    text.add_text("unit", unit)
    Image.fromarray(codes).save(coded, "PNG", pnginfo=text)
    about = json.dumps({"scale": scale, "unit": unit, "invalid": 0}, indent=2) + "\n"
    contents = {
        ".npy": array.getvalue(),
        ".png": coded.getvalue(),
        ".json": about.encode(),
        "_colour.png": png_bytes(disparity_colours(depth, known)),
    }
    paths = [stem.with_name(stem.name + ending) for ending in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        write_file(path, content)
    return paths


def load_depth_png(path: str | Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Depth f32 [h w], valid bool [h w] and the scale of a PNG that `save_depth` wrote."""
    with Image.open(path) as opened:
        codes, scale = np.asarray(opened).astype(np.float64), float(opened.info["scale"])
    return (codes * scale).astype(np.float32), codes > 0, scale

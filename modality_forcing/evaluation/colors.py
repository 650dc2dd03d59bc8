"""Color recall: how many of a caption's color words its image shows. Measures text following."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

# Hue in degrees (from, to), for saturated colors: hue is robust to lighting, lightness is not.
_HUES = {
    "red": (345, 15),
    "orange": (18, 43),
    "yellow": (47, 70),
    "green": (85, 160),
    "cyan": (165, 195),
    "blue": (210, 255),
    "purple": (258, 305),
    "magenta": (285, 325),
}
_MIN_SATURATION = 0.55  # skies and walls are below
_MIN_VALUE = 0.12  # the hue of the nearly black is noise
# Share of the image: six pixels of 32 x 32, a small object with every other stripe in another tone.
_MIN_AREA = 0.006
_SYNONYMS = {"violet": "purple", "grey": "gray"}
COLORS = (*_HUES, "pink", "brown", "white", "black", "gray")
_WORDS = re.compile(rf"\b({'|'.join((*COLORS, *_SYNONYMS))})\b", re.IGNORECASE)


def named_colors(caption: str) -> set[str]:
    """Returns the colors that an English caption names, synonyms merged."""
    words: list[str] = [word.lower() for word in _WORDS.findall(caption)]
    return {_SYNONYMS.get(word, word) for word in words}


def color_recall(images: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """Returns the share of color words found in the caption's own image, and in other images.

    `chance` compares each caption with every image whose caption names a different set of colors.
    Each of the `words` counts alike. NaN where no caption names a color, or no two captions differ.

    images: u8 [n h w 3], one per caption.
    """
    named = [named_colors(caption) for caption in captions]
    shown = {
        color: _color_mask(images, color).mean(axis=(1, 2)) >= _MIN_AREA
        for color in set().union(*named)
    }
    recall, chance = [], []
    for i, colors in enumerate(named):
        others = [j for j, theirs in enumerate(named) if theirs != colors]
        for color in sorted(colors):  # a set's own order, and a sum's last digit, change by process
            recall.append(float(shown[color][i]))
            if others:
                chance.append(float(shown[color][others].mean()))
    return {"color_recall": _mean(recall), "chance": _mean(chance), "words": len(recall)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _color_mask(image: np.ndarray, color: str) -> np.ndarray:
    """Returns which pixels have a color: u8 [... 3] -> bool [...]."""
    hue, saturation, value = _to_hsv(image)
    if color in _HUES:
        strong = (saturation >= _MIN_SATURATION) & (value >= _MIN_VALUE)
        return _in_hue_range(hue, *_HUES[color]) & strong
    match color:
        case "pink":
            pale = (saturation >= 0.2) & (saturation < 0.6) & (value >= 0.75)
            return (_in_hue_range(hue, 305, 360) | (hue <= 15)) & pale
        case "brown":
            dark = (saturation >= 0.4) & (value >= 0.2) & (value < 0.6)
            return _in_hue_range(hue, 10, 43) & dark
        case "white":  # pale walls and clouds are white too: a weak word
            return (saturation <= 0.08) & (value >= 0.75)
        case "black":
            return value <= 0.12
        case "gray":
            return (saturation <= 0.12) & (value > 0.2) & (value < 0.8)
    raise KeyError(color)


def _in_hue_range(hue: np.ndarray, start: float, stop: float) -> np.ndarray:
    return (hue >= start) & (hue <= stop) if start <= stop else (hue >= start) | (hue <= stop)


def _to_hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns hue in degrees, saturation and value in [0, 1] of u8 [... 3]."""
    red, green, blue = np.moveaxis(image.astype(np.float32) / 255, -1, 0)
    value = np.maximum(np.maximum(red, green), blue)
    span = value - np.minimum(np.minimum(red, green), blue)
    safe = np.where(span > 0, span, 1)
    sector = np.where(
        value == red,
        (green - blue) / safe % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return 60 * np.where(span > 0, sector, 0), span / np.where(value > 0, value, 1), value

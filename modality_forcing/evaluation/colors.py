"""Does a picture show the colours that its caption names? A plain measure of whether generation heeds the text."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

# Hue in degrees (from, to), for strong colours: hue survives light and shadow where lightness does not.
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
_STRONG, _LIT = (
    0.55,
    0.12,
)  # least saturation (skies and walls stay below) and value (hue of the nearly black is noise)
_AREA = 0.006  # share of the picture: six pixels of 32 x 32, a small thing with every other stripe in another tone
_SAME = {"violet": "purple", "grey": "gray"}
COLOURS = (*_HUES, "pink", "brown", "white", "black", "gray")
_WORDS = re.compile(rf"\b({'|'.join((*COLOURS, *_SAME))})\b", re.IGNORECASE)


def named_colours(caption: str) -> set[str]:
    """The colours a caption names in English, under one name each."""
    words: list[str] = [word.lower() for word in _WORDS.findall(caption)]
    return {_SAME.get(word, word) for word in words}


def colour_present(image: np.ndarray, colour: str) -> bool:
    """Whether enough pixels of a picture u8 [h w 3] have a colour; raises KeyError for a name not in COLOURS."""
    return bool(_shows(image, colour).mean() >= _AREA)


def colour_word_score(images: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """Of the colour words in captions, the share `found` in the caption's own picture, and by `chance` in the others.

    images u8 [n h w 3], one per caption. Chance is each caption against every picture whose caption names another set
    of colours. Every word counts alike, `words` of them; NaN where no caption names a colour, or no two differ.
    """
    named = [named_colours(caption) for caption in captions]
    shown = {
        colour: _shows(images, colour).mean(axis=(1, 2)) >= _AREA for colour in set().union(*named)
    }
    found, chance = [], []
    for i, colours in enumerate(named):
        others = [j for j, theirs in enumerate(named) if theirs != colours]
        for colour in colours:
            found.append(shown[colour][i])
            if others:
                chance.append(shown[colour][others].mean())
    return {"found": _mean(found), "chance": _mean(chance), "words": len(found)}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _shows(image: np.ndarray, colour: str) -> np.ndarray:
    """The pixels that have a colour: u8 [... 3] -> bool [...]."""
    hue, saturation, value = _hsv(image)
    if colour in _HUES:
        return _between(hue, *_HUES[colour]) & (saturation >= _STRONG) & (value >= _LIT)
    return {
        "pink": (_between(hue, 305, 360) | (hue <= 15))
        & (saturation >= 0.2)
        & (saturation < 0.6)
        & (value >= 0.75),
        "brown": _between(hue, 10, 43) & (saturation >= 0.4) & (value >= 0.2) & (value < 0.6),
        "white": (saturation <= 0.08)
        & (value >= 0.75),  # pale walls and clouds are that too: a weak word
        "black": value <= 0.12,
        "gray": (saturation <= 0.12) & (value > 0.2) & (value < 0.8),
    }[colour]


def _between(hue: np.ndarray, start: float, stop: float) -> np.ndarray:
    return (hue >= start) & (hue <= stop) if start <= stop else (hue >= start) | (hue <= stop)


def _hsv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value in [0, 1] of u8 [... 3]."""
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

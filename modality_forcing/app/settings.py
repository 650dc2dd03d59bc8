"""The settings of the page: what may be chosen."""

from __future__ import annotations

from dataclasses import dataclass

from modality_forcing.errors import UserError
from modality_forcing.tree import JsonObject

COLORMAPS = ("spectral", "plasma", "gray")
MAX_STEPS, MAX_ENSEMBLE, MAX_GUIDANCE, MAX_TILT = 100, 16, 15, 8
MAX_CONDITION_GUIDANCE = 8
KEEP_ALL = 100  # percent of depth: larger jumps are no edges
_WHOLE = ("steps", "seed", "ensemble")


@dataclass(frozen=True)
class Settings:
    """How an answer is made and shown.

    steps, guidance, condition_guidance: 0 for the config's. fov: degrees across the longer side; 0
    for what the photo says, else 65. jump: percent of depth between neighbors from which on both
    are left out of point clouds; KEEP_ALL leaves out none.

    Raises UserError for a value that the page does not offer, as a request made by hand may have.
    """

    steps: int = 0
    seed: int = 0
    guidance: float = 0.0
    condition_guidance: float = 0.0
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
            ("condition_guidance", 0, MAX_CONDITION_GUIDANCE),
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
            hint = f"choose one of {', '.join(COLORMAPS)}"
            raise UserError(f"colormap is {self.colormap!r}", hint=hint)


def parse_settings(values: JsonObject) -> Settings:
    """Returns settings from numbers as JSON has them, where 4 may be 4.0."""
    chosen = dict(values)
    for name in _WHOLE:
        value = chosen.get(name)
        if isinstance(value, float) and value.is_integer():
            chosen[name] = int(value)
    return Settings(**chosen)

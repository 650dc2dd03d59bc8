"""Evaluation protocols: how predictions are aligned to ground truth before both are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from modality_forcing.errors import UserError
from modality_forcing.tree import JsonObject

Name = Literal["moge", "marigold", "metric"]
Align = Literal["affine", "scale", "disparity", "none"]

# The alignments that each protocol defines; the first one is its default.
ALIGNMENTS: dict[Name, tuple[Align, ...]] = {
    "moge": ("affine", "scale", "disparity", "none"),
    "marigold": ("affine", "disparity"),
    "metric": ("none",),
}


def _check_choice(what: str, value: str, known: Mapping[Name, object] | tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"unknown {what} {value!r}", hint=f"choose one of {', '.join(known)}")


@dataclass(frozen=True)
class Protocol:
    """One way to score depth. Two scores are comparable only under equal protocols.

    name:
      moge: as microsoft/MoGe evaluates (Wang et al. 2025). Affine and scale minimize
        sum |s p + t - g| / g over a 64 x 64 subsample; disparity is an unweighted least-squares
        alignment to 1 / g over all valid pixels. Nothing is clipped.
      marigold: as prs-eth/Marigold evaluates (Ke et al. 2024). Least squares over all valid pixels,
        in depth or in disparity, then clipped to the set's depth range.
      metric: no alignment: the prediction has the unit of the target. Clipped to the depth range.
    align: what is unknown of the prediction: "affine", "scale", "disparity" (it *is* disparity, up
      to scale and shift) or "none". Raises UserError for one that the protocol does not define.
    strict: an aligned depth of 0 or less never counts as an inlier. As published (False), its
      negative ratio passes every delta threshold; only MoGe's protocol allows such depths.
    depth_range: least and greatest depth, in the unit of the target. Target depth outside is not
      scored; marigold and metric clip the prediction to the range.
    masks_target: whether depth_range masks the target; otherwise it only clips predictions.
    align_max_side: marigold aligns on columns thinned by this over the longer side; None: on all
      pixels. Rows are not thinned, as in the public code.
    """

    name: Name = "moge"
    align: Align = "affine"
    strict: bool = False
    depth_range: tuple[float, float] | None = None
    masks_target: bool = True
    align_max_side: int | None = None

    def __post_init__(self):
        _check_choice("protocol", self.name, ALIGNMENTS)
        if self.align not in ALIGNMENTS[self.name]:
            raise UserError(
                f"protocol {self.name} has no alignment {self.align!r}",
                hint=f"choose one of {', '.join(ALIGNMENTS[self.name])}",
            )
        if self.depth_range is not None:
            low, high = self.depth_range
            if not (0 <= low < high):  # NaN fails
                raise UserError(
                    f"depth range {low:g}:{high:g} is empty or negative",
                    hint="give MIN:MAX, e.g. 0.001:10",
                )
        side = self.align_max_side
        if side is not None and (self.name != "marigold" or side < 1):
            raise ValueError(f"align_max_side {side} of protocol {self.name}")

    @property
    def clips(self) -> bool:
        """Whether predictions are clipped to the depth range."""
        return self.name != "moge"

    def __str__(self) -> str:
        text = f"{self.name}, {'not aligned' if self.align == 'none' else self.align}"
        if self.depth_range is not None:
            text += f", depth {self.depth_range[0]:g} to {self.depth_range[1]:g}"
            text += "" if self.masks_target else " (clipped only)"
        if self.align_max_side is not None:
            text += f", aligned on columns thinned to {self.align_max_side} px"
        return text + (", strict" if self.strict else "")

    def to_dict(self) -> JsonObject:
        """Returns its fields as JSON-able values, infinity as a string."""
        bounds = self.depth_range
        if bounds is not None:
            bounds = [x if math.isfinite(x) else str(x) for x in bounds]
        return {**vars(self), "depth_range": bounds}

    @classmethod
    def from_dict(cls, fields: JsonObject) -> Protocol:
        """Returns the protocol of `to_dict`."""
        bounds = fields["depth_range"]
        if bounds is not None:
            bounds = (float(bounds[0]), float(bounds[1]))
        return cls(**{**fields, "depth_range": bounds})


MOGE = Protocol()


def get_protocol(
    name: str = "moge",
    align: str | None = None,
    *,
    strict: bool = False,
    depth_range: tuple[float, float] | None = None,
) -> Protocol:
    """Returns a protocol by name, by default with its own alignment.

    Raises UserError for an unknown name, alignment or depth range.
    """
    _check_choice("protocol", name, ALIGNMENTS)
    if align is None:
        align = ALIGNMENTS[name][0]  # pyright: ignore[reportArgumentType]
    _check_choice("alignment", align, get_args(Align))
    return Protocol(name, align, strict, depth_range)  # pyright: ignore[reportArgumentType]

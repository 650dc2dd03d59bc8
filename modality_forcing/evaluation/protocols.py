"""Protocols: how a prediction is laid over the truth before the two are compared. A number without its protocol says nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from modality_forcing.errors import UserError

Name = Literal["moge", "marigold", "metric"]
Align = Literal["affine", "scale", "disparity", "none"]

# Which alignments a protocol knows; the first is what it is named for.
ALIGNMENTS: dict[Name, tuple[Align, ...]] = {
    "moge": ("affine", "scale", "disparity", "none"),
    "marigold": ("affine", "disparity"),
    "metric": ("none",),
}


@dataclass(frozen=True)
class Protocol:
    """One way to score depth; two scores may stand in one table only if theirs are equal.

    name:
      moge: as microsoft/MoGe evaluates (Wang et al. 2025). Affine and scale minimise sum |s p + t - g| / g over a 64 x 64
        subsample; disparity is an unweighted least-squares fit to 1 / g over all known pixels. Nothing is clipped.
      marigold: as prs-eth/Marigold evaluates (Ke et al. 2024). Least squares over all known pixels, in depth or in
        disparity, then clipped to the set's range of depth.
      metric: the prediction is in the unit of the truth and taken as it is, clipped to the set's range of depth.
    align: what the prediction is known up to: "affine", "scale", "disparity" (it *is* disparity, up to scale and shift) or
      "none". Raises UserError for one that the protocol does not define.
    strict: an aligned depth of 0 or less never counts as close. As published (False) its negative ratio passes for one
      under every bound; only MoGe's protocol lets such depths through.
    depth_range: least and most depth, in the unit of the truth. Truth that is not between them is not scored; with
      marigold and metric the prediction is clipped to it.
    masks_truth: whether depth_range decides what is scored; without it, it only clips predictions.
    fit_side: marigold fits on maps picked down to this longer side where they are larger; None: on all pixels.
    """

    name: Name = "moge"
    align: Align = "affine"
    strict: bool = False
    depth_range: tuple[float, float] | None = None
    masks_truth: bool = True
    fit_side: int | None = None

    def __post_init__(self):
        if self.name not in ALIGNMENTS:
            raise UserError(
                f"unknown protocol {self.name!r}", hint=f"choose one of {', '.join(ALIGNMENTS)}"
            )
        if self.align not in ALIGNMENTS[self.name]:
            known = ", ".join(ALIGNMENTS[self.name])
            raise UserError(
                f"protocol {self.name} has no alignment {self.align!r}",
                hint=f"choose one of {known}",
            )
        if self.depth_range is not None:
            least, most = self.depth_range
            if not (0 <= least < most):  # NaN fails
                raise UserError(
                    f"depth range {least:g}:{most:g} is empty or negative",
                    hint="give LEAST:MOST, e.g. 0.001:10",
                )
        if self.fit_side is not None and (self.name != "marigold" or self.fit_side < 1):
            raise ValueError(f"fit_side {self.fit_side} of protocol {self.name}")

    @property
    def clips(self) -> bool:
        """Whether predictions are brought into the range of depth."""
        return self.name != "moge"

    def __str__(self) -> str:
        told = f"{self.name}, {self.align}" if self.align != "none" else f"{self.name}, not aligned"
        if self.depth_range is not None:
            told += f", depth {self.depth_range[0]:g} to {self.depth_range[1]:g}" + (
                "" if self.masks_truth else " (clipped only)"
            )
        if self.fit_side is not None:
            told += f", fitted at {self.fit_side}"
        return told + (", strict" if self.strict else "")

    def to_dict(self) -> dict[str, Any]:
        """What identifies it, JSON-able: infinity as a string."""
        bounds = (
            None
            if self.depth_range is None
            else [x if math.isfinite(x) else str(x) for x in self.depth_range]
        )
        told = {
            "name": self.name,
            "align": self.align,
            "strict": self.strict,
            "depth_range": bounds,
        }
        return told | {"masks_truth": self.masks_truth, "fit_side": self.fit_side}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Protocol:
        """Returns the protocol that `to_dict` tells of."""
        bounds = told["depth_range"]
        return cls(
            **{
                **told,
                "depth_range": None if bounds is None else (float(bounds[0]), float(bounds[1])),
            }
        )


MOGE = Protocol()


def protocol(
    name: str = "moge",
    align: str | None = None,
    strict: bool = False,
    depth_range: tuple[float, float] | None = None,
) -> Protocol:
    """Returns a protocol by name, with its own alignment where none is named; raises UserError for an unknown one."""
    if name not in ALIGNMENTS:
        raise UserError(f"unknown protocol {name!r}", hint=f"choose one of {', '.join(ALIGNMENTS)}")
    if align is not None and align not in get_args(Align):
        raise UserError(
            f"unknown alignment {align!r}", hint=f"choose one of {', '.join(get_args(Align))}"
        )
    chosen = ALIGNMENTS[name][0] if align is None else align  # pyright: ignore[reportArgumentType]
    return Protocol(name, chosen, strict, depth_range)  # pyright: ignore[reportArgumentType]

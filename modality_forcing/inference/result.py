"""The result of one input, at its own size, and how it is made of what the network returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.evaluation.ensemble import ensemble
from modality_forcing.inference import fit as fits
from modality_forcing.inference.fit import Arrays, Fitted
from modality_forcing.modalities.base import Modality
from modality_forcing.viz import images as colors

# Names of color maps besides matplotlib's. Depth papers color near red, far blue.
COLORMAPS = {"spectral": "Spectral_r"}
_STRIP = 4_000_000  # pixels


@dataclass(frozen=True)
class Result:
    """What was made of one input, at the input's own size; of a caption, at the network's.

    image: u8 [h w 3]. depth: f32 [h w] up to scale, 0 where not valid. valid: bool [h w].
    uncertainty: f32 [h w] in the unit of depth, of ensembles. None where there is none.
    maps: what other modalities made, by name: f32 [h w c], such as normals, 0 where unknown.
    """

    image: np.ndarray | None = None
    depth: np.ndarray | None = None
    valid: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def normals(self) -> np.ndarray | None:
        """Unit vectors f32 [h w 3] in the camera's frame, 0 where unknown; None without them."""
        return self.maps.get("normals")

    def require_depth(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns depth and valid, all where there is no mask; raises UserError without depth."""
        if self.depth is None:
            raise UserError("this result has no depth", hint="use a checkpoint that makes depth")
        return self.depth, np.ones(self.depth.shape, bool) if self.valid is None else self.valid

    def colored(self, colormap: str = colors.COLORMAP) -> np.ndarray:
        """Returns the inverse of depth in colors, u8 [h w 3]; what is not valid is gray.

        colormap: "plasma", "spectral" (near is red), or another name of matplotlib.

        Raises UserError for an unknown one and for a result without depth.
        """
        depth, valid = self.require_depth()
        hint = "choose plasma, spectral or another color map of matplotlib"
        if not isinstance(colormap, str):
            raise UserError(f"no color map is named {colormap!r}", hint=hint)
        name = COLORMAPS.get(colormap.lower(), colormap)
        # Percentiles of a part of a large map, and a strip at a time: colors need 60 bytes a pixel.
        step = math.ceil(math.sqrt(depth.size / _STRIP))
        limits = colors.disparity_limits(depth[::step, ::step], valid[::step, ::step])
        rows = max(1, _STRIP // depth.shape[1])
        try:
            return np.concatenate(
                [
                    colors.colorize_disparity(
                        depth[i : i + rows], valid[i : i + rows], limits, colormap=name
                    )
                    for i in range(0, len(depth), rows)
                ]
            )
        except KeyError as error:
            raise UserError(f"no color map is named {colormap!r}", hint=hint) from error


def from_generated(made: Arrays) -> Result:
    """Returns the result of a caption: image f32 [H W 3] as u8, and depth, if there is any."""
    depth = made.get("depth")
    valid = None if depth is None else np.ones(depth.shape, bool)
    maps = {name: x for name, x in made.items() if name != "image" and x.ndim == 3}
    return Result(colors.to_u8(made["image"]), depth, valid, maps=maps)


def restore_maps(
    made: Sequence[Arrays], fitted: Fitted, asked: Sequence[Modality]
) -> dict[str, np.ndarray]:
    """Returns maps f32 [h w c] of modalities, at the original's size, by name; 0 where unknown.

    made: of each placement what `batches.predict` returns.
    """
    return {
        m.name: m.project(fits.restore_channels([x[m.name] for x in made], fitted)[0])
        for m in asked
    }


def restore(image: np.ndarray, fitted: Fitted, members: Sequence[Sequence[Arrays]]) -> Result:
    """Returns the result of an image u8 [h w 3] from the members of its ensemble.

    members: of each what `batches.predict` returns for this image.
    """
    if len(members) == 1:
        depth, valid = fits.restore_depth([x["depth"] for x in members[0]], fitted, image)
        return Result(image, depth, valid)
    merged = [
        _merge_members(np.stack([np.asarray(m[i]["depth"]) for m in members]), fitted, i)
        for i in range(len(fitted.inputs))
    ]
    depths, sigmas = zip(*merged, strict=True)
    return Result(image, *fits.restore_ensemble(depths, sigmas, fitted, image))


def _merge_members(maps: np.ndarray, fitted: Fitted, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth and uncertainty [H W] of members [e H W], without the padding's influence."""
    placement, canvas = fitted.placements[index], maps.shape[1:]
    inner = np.stack([placement.cut(x) for x in maps])
    # Always the canvas's shape, by repeated pixels: another aspect compiles nothing.
    merged = ensemble(np.stack([np.resize(x, canvas) for x in inner]), "scale")
    used = merged.scale[merged.used]
    unit = float(np.mean(used)) if used.size else 1.0  # back to the members' own unit
    made = []
    for values in (merged.depth, merged.uncertainty):
        plane = np.zeros(canvas, np.float32)
        placement.cut(plane)[...] = values.ravel()[: inner[0].size].reshape(inner[0].shape) / unit
        made.append(plane)
    return made[0], made[1]

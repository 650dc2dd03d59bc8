"""Surface normals of photographs and of depth maps, for networks that make normals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from modality_forcing.inference import batches
from modality_forcing.inference import fit as fits
from modality_forcing.inference.batches import Sampling
from modality_forcing.inference.fit import Fitted
from modality_forcing.inference.inputs import (
    DepthLike,
    ImageLike,
    as_captions,
    as_depth,
    as_image,
    as_list,
)
from modality_forcing.inference.network import LoadedNetwork
from modality_forcing.inference.result import Result, restore_maps
from modality_forcing.tasks import parse


class ToNormals(LoadedNetwork):
    """The tasks of `Pipeline` that make normals."""

    @overload
    def image_to_normals(
        self,
        images: ImageLike,
        *,
        captions: str | None = None,
        steps: int | None = None,
        seed: int = 0,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> Result: ...

    @overload
    def image_to_normals(
        self,
        images: Sequence[ImageLike],
        *,
        captions: Sequence[str] | str | None = None,
        steps: int | None = None,
        seed: int = 0,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> list[Result]: ...

    def image_to_normals(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        captions: Sequence[str] | str | None = None,
        steps: int | None = None,
        seed: int = 0,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> Result | list[Result]:
        """Estimates surface normals; arguments and errors are those of `image_to_depth`.

        The fit is letterbox by default: a distorted image has other normals.
        """
        chosen = fits.parse_fit(fit or self.fit or fits.DEPTH_FIT)
        sampling = self.sampling(
            "i2n", steps=steps, seed=seed, condition_guidance=condition_guidance
        )
        each, is_list = as_list(images)
        decoded = [as_image(x) for x in each]
        fitted = [fits.fit_image(x, self.size, chosen) for x in decoded]
        texts, batch = as_captions(captions, len(each)), self.batch if is_list else 1
        maps = self._maps("i2n", fitted, texts, sampling, batch=batch)
        results = [Result(x, maps=one) for x, one in zip(decoded, maps, strict=True)]
        return results if is_list else results[0]

    @overload
    def depth_to_normals(
        self,
        depths: DepthLike,
        captions: str | None = None,
        *,
        steps: int | None = None,
        seed: int = 0,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> Result: ...

    @overload
    def depth_to_normals(
        self,
        depths: Sequence[DepthLike],
        captions: Sequence[str] | str | None = None,
        *,
        steps: int | None = None,
        seed: int = 0,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> list[Result]: ...

    def depth_to_normals(
        self,
        depths: DepthLike | Sequence[DepthLike],
        captions: Sequence[str] | str | None = None,
        *,
        steps: int | None = None,
        seed: int = 0,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> Result | list[Result]:
        """Estimates surface normals of depth maps; arguments are those of `depth_to_image`.

        Returns the normals with the given depth. Raises UserError for a map that cannot be used and
        a network without normals.
        """
        chosen = fits.parse_fit(fit or self.fit or fits.DEPTH_FIT)
        sampling = self.sampling(
            "d2n", steps=steps, seed=seed, condition_guidance=condition_guidance
        )
        each, is_list = as_list(depths)
        given = [as_depth(x) for x in each]
        fitted = [fits.fit_depth(*x, self.size, chosen) for x in given]
        texts, batch = as_captions(captions, len(each)), self.batch if is_list else 1
        maps = self._maps("d2n", fitted, texts, sampling, batch=batch)
        results = [Result(None, *x, maps=one) for x, one in zip(given, maps, strict=True)]
        return results if is_list else results[0]

    def _maps(
        self,
        task: str,
        fitted: Sequence[Fitted],
        texts: Sequence[str],
        sampling: Sampling,
        *,
        batch: int,
    ) -> list[dict[str, np.ndarray]]:
        """Returns what a task asks for, by modality, at the size of each input."""
        modalities = self.generator.modalities
        asked = [modalities[n] for n in parse(task, list(modalities)).asked]
        made = batches.predict(self.generator, task, fitted, texts, sampling=sampling, batch=batch)
        return [restore_maps(parts, f, asked) for parts, f in zip(made, fitted, strict=True)]

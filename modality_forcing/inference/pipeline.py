"""A checkpoint in three lines of Python: photographs to depth, depth to images, captions to both.

    from modality_forcing import Pipeline

    pipeline = Pipeline.from_pretrained("runs/mf")
    result = pipeline.image_to_depth("photo.jpg")
    result.depth  # f32 [h w] at the photograph's own size, up to scale

Whatever the size of a photograph, it enters at the network's own (`inference.fit`), in batches of
one size: two programs are compiled for a task, one for a single input and one for lists. Noise is
a function of the seed, the repetition and the ensemble's member, and not of an example's place in a
list: a list gives bitwise what lists of its elements give. A single input, whose program is
another, differs by up to 1e-6 relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from modality_forcing.data.resize import Size
from modality_forcing.generator import Generator
from modality_forcing.inference import batches
from modality_forcing.inference import fit as fits
from modality_forcing.inference.inputs import (
    DepthLike,
    ImageLike,
    as_captions,
    as_depth,
    as_image,
    as_list,
    as_location,
    as_number,
    as_size,
    as_texts,
    as_whole,
)
from modality_forcing.inference.result import Result, from_generated, restore
from modality_forcing.inference.to_normals import ToNormals
from modality_forcing.train import sharding

MAX_ENSEMBLE = 64  # samples of an image, all of which are kept until they are merged
_LOOSEST = 8.0  # log2 alpha of strength 0: the depth is noise until the last step


class Pipeline(ToNormals):
    """A network ready for use.

    Args:
      generator: the network.
      fit: how inputs get its size: letterbox, crop, stretch or tiles (`inference.fit`); by default
        images are stretched and depth maps letterboxed.
      batch: examples of lists that are run together.
    """

    @classmethod
    def from_pretrained(
        cls,
        where: str | Path,
        *,
        adapter: str | Path | None = None,
        int8: bool = False,
        text_encoder: str = "",
        autoencoder: str = "",
        fit: str | None = None,
        batch: int = 8,
        size: Size | None = None,
    ) -> Pipeline:
        """Loads a network onto all devices of this process.

        Args:
          where: whatever `mforce sample --checkpoint` takes: a workdir, a step of it, an export,
            hf:OWNER/NAME, a release.
          adapter: a folder of `mforce export --adapter`, put on top.
          int8: keep the matrices of blocks in 8 bits.
          text_encoder, autoencoder: frozen encoders, if not where the config says.
          fit: how inputs get the network's size, if a call says nothing else.
          batch: examples of a list that are run together; memory grows with it.
          size: rows and columns of pixels of the network, by default the config's square.

        Raises UserError if there is no such network or it lacks its encoders.
        """
        if fit is not None:
            fits.parse_fit(fit)  # before the weights are read
        generator = Generator.from_checkpoint(
            as_location(where),
            adapter=None if adapter is None else as_location(adapter),
            int8=int8,
            text_encoder=text_encoder,
            autoencoder=autoencoder,
            size=None if size is None else as_size(size),
            mesh=sharding.local_mesh(),
        )
        return cls(generator, fit=fit, batch=batch)

    @overload
    def image_to_depth(
        self,
        images: ImageLike,
        *,
        captions: str | None = None,
        ensemble: int = 1,
        steps: int | None = None,
        seed: int = 0,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> Result: ...

    @overload
    def image_to_depth(
        self,
        images: Sequence[ImageLike],
        *,
        captions: Sequence[str] | str | None = None,
        ensemble: int = 1,
        steps: int | None = None,
        seed: int = 0,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> list[Result]: ...

    def image_to_depth(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        captions: Sequence[str] | str | None = None,
        ensemble: int = 1,
        steps: int | None = None,
        seed: int = 0,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> Result | list[Result]:
        """Estimates depth; one image gives one result, a list gives a list.

        Args:
          images: paths, PIL images or arrays u8 [h w 3], gray [h w] or with transparency [h w 4],
            each of any size; an array with one more axis is a list.
          captions: one for all, or one per image. None: no caption.
          ensemble: samples per image, at most 64, merged; from 2 on a result has its uncertainty.
          steps: of the sampler, at most 10,000, by default the config's.
          seed: of the noise.
          condition_guidance: weight of the input; above 1 it is followed more closely.
          fit: letterbox, crop, stretch or tiles, by default the pipeline's, else stretch.

        Raises UserError for an image that cannot be read and a network that cannot estimate depth.
        """
        chosen = fits.parse_fit(fit or self.fit or fits.IMAGE_FIT)
        ensemble = as_whole("ensemble", ensemble, 1, MAX_ENSEMBLE)
        how = {"steps": steps, "seed": seed, "condition_guidance": condition_guidance}
        sampling = self.sampling("i2d", **how)
        each, is_list = as_list(images)
        decoded = [as_image(x) for x in each]
        fitted = [fits.fit_image(x, self.size, chosen) for x in decoded]
        texts = as_captions(captions, len(each))
        batch = self.batch if is_list else 1
        network = self.generator
        members = [
            batches.predict(network, "i2d", fitted, texts, sampling=sampling, member=i, batch=batch)
            for i in range(ensemble)
        ]
        pairs = zip(decoded, fitted, *members, strict=True)
        results = [restore(image, f, maps) for image, f, *maps in pairs]
        return results if is_list else results[0]

    @overload
    def depth_to_image(
        self,
        depths: DepthLike,
        captions: str | None = None,
        *,
        strength: float = 1.0,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> Result: ...

    @overload
    def depth_to_image(
        self,
        depths: Sequence[DepthLike],
        captions: Sequence[str] | str | None = None,
        *,
        strength: float = 1.0,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> list[Result]: ...

    def depth_to_image(
        self,
        depths: DepthLike | Sequence[DepthLike],
        captions: Sequence[str] | str | None = None,
        *,
        strength: float = 1.0,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
        condition_guidance: float | None = None,
        fit: str | None = None,
    ) -> Result | list[Result]:
        """Generates images for depth maps; one map gives one result, a list gives a list.

        Args:
          depths: f32 [h w] in any unit, where 0, NaN and inf are unknown; or paths of maps.
          captions: one for all, or one per map. None: no caption.
          strength: 1 follows the depth exactly, 0.5 loosely, 0 takes it as a hint.
          steps, seed, condition_guidance: as for `image_to_depth`.
          guidance: scale of the caption's influence, by default the config's.
          fit: as for `image_to_depth`, else letterbox.

        Returns the image with the given depth. Raises UserError for a map that cannot be used.
        """
        strength = as_number("strength", strength, 0, 1)
        chosen = fits.parse_fit(fit or self.fit or fits.DEPTH_FIT)
        task, alpha = _looseness(strength)
        sampling = self.sampling(
            task,
            steps=steps,
            seed=seed,
            guidance=guidance,
            condition_guidance=condition_guidance,
            log2_alpha=alpha,
        )
        each, is_list = as_list(depths)
        maps = [as_depth(x) for x in each]
        fitted = [fits.fit_depth(*x, self.size, chosen) for x in maps]
        texts, batch = as_captions(captions, len(each)), self.batch if is_list else 1
        made = batches.predict(self.generator, task, fitted, texts, sampling=sampling, batch=batch)
        results = [
            Result(fits.restore_image([x["image"] for x in parts], f), *depth)
            for parts, f, depth in zip(made, fitted, maps, strict=True)
        ]
        return results if is_list else results[0]

    @overload
    def generate(
        self,
        captions: str,
        *,
        log2_alpha: float | None = None,
        refine: bool = False,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
    ) -> Result: ...

    @overload
    def generate(
        self,
        captions: Sequence[str],
        *,
        log2_alpha: float | None = None,
        refine: bool = False,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
    ) -> list[Result]: ...

    def generate(
        self,
        captions: Sequence[str] | str,
        *,
        log2_alpha: float | None = None,
        refine: bool = False,
        steps: int | None = None,
        seed: int = 0,
        guidance: float | None = None,
    ) -> Result | list[Result]:
        """Generates images from captions, with their depth if the network makes depth.

        Args:
          captions: one gives one result, a list gives a list. Equal captions give different images.
          log2_alpha: above 0 the image is made first, below 0 the depth; by default the config's.
          refine: estimate depth again from the finished image.
          steps, seed, guidance: as for `depth_to_image`.
        """
        task = "joint" if len(self.generator.modalities) > 1 else "t2i"
        alpha = log2_alpha if task == "joint" else None
        sampling = self.sampling(task, steps=steps, seed=seed, guidance=guidance, log2_alpha=alpha)
        texts, is_list = as_texts(captions)
        made = batches.generate(
            self.generator,
            task,
            texts,
            sampling=sampling,
            batch=self.batch if is_list else 1,
            refine=refine and task == "joint",
        )
        results = [from_generated(x) for x in made]
        return results if is_list else results[0]


def _looseness(strength: float) -> tuple[str, float | None]:
    """Returns the task and log2 alpha of a strength; alpha is the odds of not following."""
    if strength == 1:
        return "d2i", None
    odds = _LOOSEST if strength == 0 else 2 * float(np.log2((1 - strength) / strength))
    return "partial", min(max(odds, -_LOOSEST), _LOOSEST)

"""FLUX.2 networks for tests: sizes, the shapes of their weights, and files in published layouts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from modality_forcing.models.flux2_layouts import Layout
from modality_forcing.tree import unflatten

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """A network by its numbers; mixing: modalities are conditioned on each other's noise level."""

    width: int
    head_dim: int
    text: int  # channels of a text state
    double: int
    single: int
    image: int = 128  # channels of a token
    depth: int = 0  # the same; 0: no such modality
    decoder: int = 0  # blocks of the depth head
    mixing: bool = False
    guidance: bool = False

    def shapes(self) -> dict[str, Shape]:
        """Returns the shape of each of our arrays, by path."""
        d, k, f = self.width, self.head_dim, 3 * self.width
        channels = {"image": self.image} | ({"depth": self.depth} if self.depth else {})
        found: dict[str, Shape] = {"text_in/w": (self.text, d)}

        def embedder(path: str) -> None:
            found.update({f"{path}/inner/w": (256, d), f"{path}/outer/w": (d, d)})

        def block(path: str, layers: int) -> None:
            for name in "qkv":
                found[f"{path}/{name}"] = (layers, d, d)
            found[f"{path}/q_scale"] = found[f"{path}/k_scale"] = (layers, k)
            found[f"{path}/gate"] = found[f"{path}/up"] = (layers, d, f)
            found[f"{path}/out"], found[f"{path}/down"] = (layers, d, d), (layers, f, d)

        for name, count in channels.items():
            found[f"tokenizer/{name}/w"] = (count, d)
            embedder(f"level_embedder/{name}")
            found[f"single_modulation/{name}/w"] = (d, 3 * d)
            found[f"head/{name}/modulation/w"] = (d, 2 * d)
            found[f"head/{name}/linear/w"] = (d, count)
        if self.guidance:
            embedder("guidance_embedder")
        if self.mixing:
            for pair in ("image_from_depth", "depth_from_image"):
                embedder(f"level_embedder_cross/{pair}")
                found[f"level_gate_cross/{pair}"] = ()
        for name in ("text", *channels):
            found[f"modulation/{name}/w"] = (d, 6 * d)
            block(f"double/layers/{name}", self.double)
        block("single/layers", self.single)
        if self.decoder:
            block("head/depth/blocks/layers", self.decoder)
            found["head/depth/block_modulation/w"] = (d, 3 * d)
        return found

    def tree(self) -> dict[str, Any]:
        """Returns the shapes as the network's abstract weights."""
        shapes = self.shapes().items()
        return unflatten({p: jax.ShapeDtypeStruct(s, np.float32) for p, s in shapes})

    def parameters(self) -> int:
        """Returns the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def file(self, layout: Layout, prefix: str = "", seed: int = 0) -> dict[str, np.ndarray]:
        """Returns random bfloat16 tensors in a layout, by name."""
        rng = np.random.default_rng(seed)
        return {
            prefix + name: rng.normal(size=shape).astype(ml_dtypes.bfloat16)
            for name, shape in layout.shapes(self.shapes()).items()
        }


KLEIN_4B = Sizes(3072, 128, 7680, 5, 20)
KLEIN_9B = Sizes(4096, 128, 12288, 8, 24)
DEV = Sizes(6144, 128, 15360, 8, 48, guidance=True)
FORCING_V1 = Sizes(4096, 128, 12288, 8, 24, depth=256, decoder=4)
FORCING_V2 = Sizes(4096, 128, 12288, 8, 24, depth=256, decoder=4, mixing=True)
# Of these proportions; the file of one is a second long to write.
TINY = Sizes(16, 8, 12, 2, 3, image=8)
TINY_GUIDED = Sizes(16, 8, 12, 1, 2, image=8, guidance=True)
TINY_FORCING = Sizes(16, 8, 12, 2, 3, image=8, depth=4, decoder=2, mixing=True)
TINY_FORCING_V1 = Sizes(16, 8, 12, 2, 3, image=8, depth=4, decoder=2)

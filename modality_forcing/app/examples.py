"""Examples of the page: rendered scenes of the built-in world, with their depth and captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modality_forcing import numpy_io, paths
from modality_forcing.synthetic.source import Scenes
from modality_forcing.viz import images

# By world, scenes whose captions say most of what is seen.
SCENES = {"varied": (15, 2, 16, 21), "plain": (5, 10, 13, 20)}
RESOLUTION = 192


@dataclass(frozen=True)
class Example:
    """Files of one scene: an image as PNG, its depth as .npy of meters, and its caption."""

    image: Path
    depth: Path
    caption: str


def write(folder: Path, world: str, resolution: int = RESOLUTION) -> list[Example]:
    """Renders held-out scenes of a world (`data.world`) into a folder."""
    scenes = Scenes(resolution=resolution, split="eval", world=world)
    made = []
    for i in SCENES[world]:
        record = scenes[i]
        image, depth = folder / f"{i}/scene.png", folder / f"{i}/depth.npy"
        paths.write_file(image, images.png_bytes(record.image))
        values = np.where(record.valid, record.depth, np.float32(0)).astype(np.float32)
        paths.write_file(depth, numpy_io.npy_bytes(values))
        made.append(Example(image, depth, record.caption))
    return made

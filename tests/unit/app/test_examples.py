"""Examples of the page."""

from __future__ import annotations

import numpy as np

from modality_forcing.app import examples
from modality_forcing.data.files import read_image


def test_examples_are_scenes_with_their_depth_and_caption(tmp_path):
    made = examples.write(tmp_path, resolution=16)
    assert len(made) == len(examples.SCENES)
    for one in made:
        assert read_image(one.image).shape == (16, 16, 3)
        depth = np.load(one.depth)
        assert depth.shape == (16, 16) and depth.dtype == np.float32 and (depth > 0).any()
        assert one.caption

"""Examples of the page."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.app import examples
from modality_forcing.data.files import read_image
from modality_forcing.synthetic.world import WORLDS


@pytest.mark.parametrize("world", WORLDS)
def test_examples_are_scenes_of_a_world_with_their_depth_and_caption(tmp_path, world):
    made = examples.write(tmp_path, world, resolution=16)
    assert len(made) == len(examples.SCENES[world]) == 4
    for one in made:
        assert read_image(one.image).shape == (16, 16, 3)
        depth = np.load(one.depth)
        assert depth.shape == (16, 16) and depth.dtype == np.float32 and (depth > 0).any()
        assert one.caption

"""Worlds: the plain one has few, large, bare objects; the varied one is what it was."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.synthetic.captions import find_visible
from modality_forcing.synthetic.source import Scenes, sample_scene
from modality_forcing.synthetic.world import PLAIN, VARIED, WORLDS, World


def test_plain_scenes_are_few_bare_objects():
    for index in range(40):
        scene = sample_scene(0, "train", index, PLAIN)
        kinds = [obj.kind for obj in scene.objects]
        assert len(kinds) <= PLAIN.objects[1] and "wall" not in kinds and not scene.room.panels
        assert scene.camera.fov == 65 and not scene.room.fence
        surfaces = (scene.room.floor, scene.room.walls, scene.room.ceiling)
        assert all(material.contrast == 0 for material in surfaces)
        assert all(obj.material.cells[:2] == (0, 0) for obj in scene.objects)


def test_plain_objects_are_larger():
    def area(world: World) -> float:
        """The mean area of a visible object, in pixels of the small view."""
        views = [find_visible(sample_scene(0, "train", index, world)) for index in range(60)]
        return float(np.mean([one.area for view in views for one in view.clear]))

    assert area(PLAIN) > 1.5 * area(VARIED)


def test_default_is_the_varied_world():
    assert sample_scene(0, "train", 3) == sample_scene(0, "train", 3, VARIED)
    assert sample_scene(0, "train", 3) != sample_scene(0, "train", 3, PLAIN)


@pytest.mark.parametrize("world", WORLDS)
def test_content_does_not_depend_on_the_resolution(world: str):
    small, large = (Scenes(resolution=n, world=world)[5] for n in (16, 48))
    assert small.caption == large.caption and large.depth.shape == (48, 48)
    np.testing.assert_allclose(np.median(small.depth), np.median(large.depth), rtol=0.15)

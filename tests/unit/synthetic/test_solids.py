"""Solids of many scenes: each ray meets the solids of its own scene, in slots of their own."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.synthetic.scene import Material, SceneObject
from modality_forcing.synthetic.solids import Solids
from modality_forcing.synthetic.source import sample_scene

LEVEL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
RAYS = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=5))
def test_entries_do_not_depend_on_the_other_scenes(indices: list[int]):
    scenes = [sample_scene(0, "solids", index) for index in indices]
    together = Solids(scenes)
    origins = np.array([scene.camera.position for scene in scenes])
    rays = np.repeat(RAYS[:, None], len(scenes), axis=1)
    entries = together.entries(origins, rays)
    for number, scene in enumerate(scenes):
        alone, count = Solids((scene,)), len(scene.objects)
        np.testing.assert_array_equal(together.index[:count, number], alone.index[:, 0])
        assert sorted(alone.index[:, 0]) == list(range(count))
        assert (together.index[count:, number] == -1).all()
        one = alone.entries(origins[number : number + 1], RAYS[:, None])
        np.testing.assert_array_equal(entries[:count, number], one[:, 0])
        assert np.isinf(entries[count:, number]).all()


def test_entry_is_the_near_side_and_ahead_of_the_origin():
    half, gray = (0.5, 0.5, 0.5), Material((0.5, 0.5, 0.5))
    ahead, behind = (
        SceneObject("box", "red", (x, 0.0, 0.0), half, LEVEL, gray) for x in (3.0, -3.0)
    )
    empty = sample_scene(0, "solids", 0)
    scenes = [type(empty)(empty.camera, (ahead, behind), empty.room, empty.light, "room")]
    rays = np.array([[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]], np.float32)
    entries = Solids(scenes).entries(np.zeros((1, 3)), rays)
    np.testing.assert_allclose(entries[:, 0], [[1.25, np.inf], [np.inf, np.inf]])

"""Objects are on the ground, in the air or on one another, inside the room, without overlap."""

from __future__ import annotations

import math

import numpy as np

from modality_forcing.synthetic.objects import clearance, place_objects
from modality_forcing.synthetic.scene import Material, Room
from modality_forcing.synthetic.scene_rng import SceneRng
from modality_forcing.synthetic.source import sample_scene


def test_objects_are_inside_the_room():
    for index in range(150):
        one = sample_scene(3, "ground", index)
        for obj in one.objects:
            corners = (
                np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
                * obj.half
                @ np.array(obj.axes)
            )
            lowest = corners[:, 2].min() + obj.position[2]
            # A box around it may dip where a round obj does not.
            assert lowest > -0.5 * max(obj.half)
            assert one.room.low[0] < obj.position[0] < one.room.high[0]
            assert one.room.low[1] < obj.position[1] < one.room.high[1]


def test_stacked_objects_touch():
    carried = 0
    for index in range(150):
        objects = sample_scene(4, "stacks", index).objects
        for obj in objects:
            if obj.support < 0:
                continue
            below = objects[obj.support]
            corners = (
                np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
                * obj.half
                @ np.array(obj.axes)
            )
            lowest = corners[:, 2].min() + obj.position[2]
            assert below.kind in ("box", "cylinder") and below.support < 0
            assert -0.5 * max(obj.half) < lowest - (below.position[2] + below.half[2]) < 1e-6
            assert math.dist(obj.position[:2], below.position[:2]) < 0.36 * min(below.half[:2])
            carried += 1
    assert carried > 20


def test_objects_are_apart_from_camera_and_each_other():
    for index in range(150):
        one = sample_scene(5, "apart", index)
        standing = [obj for obj in one.objects if obj.nameable and obj.support < 0]
        for i, obj in enumerate(standing):
            assert math.dist(obj.position, one.camera.position) > max(obj.half)
            for other in standing[:i]:
                assert math.dist(obj.position, other.position) >= 0.75 * (
                    max(obj.half) + max(other.half)
                )


def test_place_objects_adds_at_most_count():
    one = sample_scene(0, "train", 7)
    for wanted in (0, 1, 4):
        objects = list(one.objects)
        rng = SceneRng(1, "more", wanted)
        place_objects(rng, one.camera, one.room, objects=objects, count=wanted)
        assert (
            objects[: len(one.objects)] == list(one.objects)
            and len(objects) <= len(one.objects) + wanted
        )


def test_clearance():
    plain = Material((0.5, 0.5, 0.5))
    room = Room((-1.0, -2.0, 0.0), (3.0, 4.0, 2.5), plain, plain, plain, ())
    for degrees, meters in ((0, 3.0), (90, 4.0), (180, 1.0), (270, 2.0), (45, 3 * math.sqrt(2))):
        assert math.isclose(
            clearance(room, (0.0, 0.0), math.radians(degrees)), meters, rel_tol=1e-9
        )

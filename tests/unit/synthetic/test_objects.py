"""Things have room: on the ground, in the air or on one another, inside the shell and in no one's way."""

from __future__ import annotations

import math

import numpy as np

from modality_forcing.synthetic.objects import clearance, furnish
from modality_forcing.synthetic.raycast import Paint, Shell
from modality_forcing.synthetic.scene_rng import Draw
from modality_forcing.synthetic.source import scene


def test_things_stand_on_the_ground_or_above_it_and_in_no_wall():
    for index in range(150):
        one = scene(3, "ground", index)
        for thing in one.things:
            corners = (
                np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
                * thing.half
                @ np.array(thing.axes)
            )
            lowest = corners[:, 2].min() + thing.position[2]
            assert lowest > -0.5 * max(
                thing.half
            )  # a box around it may dip where a round thing does not
            assert one.shell.low[0] < thing.position[0] < one.shell.high[0]
            assert one.shell.low[1] < thing.position[1] < one.shell.high[1]


def test_what_lies_on_another_touches_its_top():
    carried = 0
    for index in range(150):
        things = scene(4, "stacks", index).things
        for thing in things:
            if thing.on < 0:
                continue
            below = things[thing.on]
            corners = (
                np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
                * thing.half
                @ np.array(thing.axes)
            )
            lowest = corners[:, 2].min() + thing.position[2]
            assert below.kind in ("box", "cylinder") and below.on < 0
            assert -0.5 * max(thing.half) < lowest - (below.position[2] + below.half[2]) < 1e-6
            assert math.dist(thing.position[:2], below.position[:2]) < 0.36 * min(below.half[:2])
            carried += 1
    assert carried > 20


def test_things_keep_their_distance_from_the_camera_and_from_each_other():
    for index in range(150):
        one = scene(5, "apart", index)
        standing = [thing for thing in one.things if thing.named and thing.on < 0]
        for i, thing in enumerate(standing):
            assert math.dist(thing.position, one.camera.position) > max(thing.half)
            for other in standing[:i]:
                assert math.dist(thing.position, other.position) >= 0.75 * (
                    max(thing.half) + max(other.half)
                )


def test_no_more_things_than_wanted_and_what_was_there_stays():
    one = scene(0, "train", 7)
    for wanted in (0, 1, 4):
        things = list(one.things)
        furnish(Draw(1, "more", wanted), one.camera, one.shell, things, wanted)
        assert (
            things[: len(one.things)] == list(one.things)
            and len(things) <= len(one.things) + wanted
        )


def test_the_way_to_a_wall():
    plain = Paint((0.5, 0.5, 0.5))
    shell = Shell((-1.0, -2.0, 0.0), (3.0, 4.0, 2.5), plain, plain, plain, ())
    for degrees, metres in ((0, 3.0), (90, 4.0), (180, 1.0), (270, 2.0), (45, 3 * math.sqrt(2))):
        assert math.isclose(
            clearance(shell, (0.0, 0.0), math.radians(degrees)), metres, rel_tol=1e-9
        )

"""The ray caster against a search along each ray for the solid's implicit function, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.synthetic.objects import KINDS
from modality_forcing.synthetic.raycast import trace
from modality_forcing.synthetic.scene import (
    Camera,
    Light,
    Material,
    Panel,
    Room,
    Scene,
    SceneObject,
    Triple,
)
from modality_forcing.synthetic.shading import render
from modality_forcing.synthetic.source import camera_axes, sample_scene

SIZE = 24
GRAY = Material((0.6, 0.6, 0.6))
CLOSED = Room((-6, -5, 0), (7, 8, 4), GRAY, GRAY, GRAY)
LAMP = Light((0.5, 0.3, 3.9), 0.8, 0.4, 10)


def signed(kind: str, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Negative inside the solid in the cube [-1, 1]^3, by the definition of its shape."""
    r, lid = np.hypot(x, y), np.abs(z) - 1
    match kind:
        case "sphere" | "egg":
            return np.sqrt(x * x + y * y + z * z) - 1
        case (
            "dome"
        ):  # half an ellipsoid whose equator is the base, at z = -1, and whose pole is at z = 1
            return np.maximum(np.hypot(r, (z + 1) / 2) - 1, -1 - z)
        case "cylinder" | "disc":
            return np.maximum(r - 1, lid)
        case "cone":
            return np.maximum(r - (1 - z) / 2, lid)
        case "box" | "wall":
            return np.maximum(np.maximum(np.abs(x), np.abs(y)) - 1, lid)
        case "pyramid":
            return np.maximum(np.maximum(np.abs(x), np.abs(y)) - (1 - z) / 2, lid)
        case "prism":
            return np.maximum(np.maximum(np.abs(x) - (1 - z) / 2, np.abs(y) - 1), lid)
    raise AssertionError(kind)


def one_thing(
    kind: str, turn: tuple[float, float, float], half: Triple = (0.7, 0.55, 0.8)
) -> Scene:
    """An object in any attitude, before a camera that looks down on it."""
    obj = SceneObject(kind, "red", (2.5, 0.4, 1.4), half, camera_axes(*turn), GRAY)
    camera = Camera((-0.8, 0.1, 1.9), camera_axes(0.05, -0.1, 0.2), 55.0)
    return Scene(camera, (obj,), CLOSED, LAMP, "room")


def trace_one(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray]:
    depth, visible = trace((scene,), size)
    return depth[0], visible[0]


def unproject(drawn: Scene, depth: np.ndarray) -> np.ndarray:
    """World points f64 [h w 3] by the image's intrinsics alone."""
    size = len(depth)
    columns, rows = np.meshgrid(np.arange(size), np.arange(size))
    pixels = np.stack((columns, rows, np.ones_like(rows)), axis=-1).astype(np.float64)
    seen = (
        pixels
        @ np.linalg.inv(drawn.camera.intrinsics(size).astype(np.float64)).T
        * depth[..., None]
    )
    return seen @ np.array(drawn.camera.axes) + np.array(drawn.camera.position)


def in_own_axes(obj: SceneObject, points: np.ndarray) -> np.ndarray:
    return (points - np.array(obj.position)) @ np.array(obj.axes).T / np.array(obj.half)


def searched_depth(drawn: Scene) -> np.ndarray:
    """First depth of each ray inside the only object, or inf: 2000 steps, then bisection."""
    obj = drawn.objects[0]

    def value(depth: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(in_own_axes(obj, unproject(drawn, depth)), -1, 0)
        return signed(obj.kind, x, y, z)

    outside = np.full((SIZE, SIZE), 0.5)
    inside = np.full((SIZE, SIZE), np.inf)
    for step in np.linspace(1.0, 6.0, 2000):
        here = np.full((SIZE, SIZE), step)
        entered = (value(here) < 0) & np.isinf(inside)
        inside[entered] = step
        outside[np.isinf(inside)] = step
    low, high = outside, np.where(np.isinf(inside), outside, inside)
    for _ in range(40):
        middle = (low + high) / 2
        within = value(middle) < 0
        low, high = np.where(within, low, middle), np.where(within, middle, high)
    return np.where(np.isinf(inside), np.inf, high)


@pytest.mark.parametrize("kind", [*KINDS, "wall"])
@pytest.mark.parametrize("turn", [(0.4, 0.3, -0.5), (2.0, -1.1, 0.9), (3.1, 0.2, 0.2)])
def test_depth_of_solids_equals_a_search(kind: str, turn: tuple[float, float, float]):
    drawn = one_thing(kind, turn)
    depth, visible = trace_one(drawn, SIZE)
    wanted = searched_depth(drawn)
    shown = visible == 0
    assert shown.sum() > 20
    # Only rays that graze the outline for less than a step of the search may differ.
    assert np.count_nonzero(shown != np.isfinite(wanted)) <= 2
    both = shown & np.isfinite(wanted)
    np.testing.assert_allclose(depth[both], wanted[both], rtol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_solid_seen_along_its_axes_has_no_holes(kind: str):
    level = Camera((0, 0, 1.0), ((0, -1, 0), (0, 0, -1), (1, 0, 0)), 60.0)
    obj = SceneObject(
        kind, "red", (3.0, 0, 1.0), (0.8, 0.8, 0.8), ((1, 0, 0), (0, 1, 0), (0, 0, 1)), GRAY
    )
    drawn = Scene(level, (obj,), CLOSED, LAMP, "room")
    depth, visible = trace_one(drawn, 33)  # the middle pixel looks exactly along the x axis
    assert np.isfinite(depth).all()
    half_way = {"cone": 0.4, "pyramid": 0.4, "prism": 0.4, "dome": 0.8 * math.sqrt(0.75)}
    assert visible[16, 16] == 0
    assert depth[16, 16] == pytest.approx(3.0 - half_way.get(kind, 0.8), rel=1e-4)


def test_room_is_at_its_planes():
    drawn = Scene(Camera((1, 2, 1.5), camera_axes(0.7, -0.2, 0.1), 80.0), (), CLOSED, LAMP, "room")
    depth, visible = trace_one(drawn, SIZE)
    points = unproject(drawn, depth.astype(np.float64))
    low, high = np.array(CLOSED.low), np.array(CLOSED.high)
    gap = np.minimum(np.abs(points - low), np.abs(points - high)).min(axis=-1)
    assert gap.max() < 1e-4
    assert ((points > low - 1e-4) & (points < high + 1e-4)).all()
    assert (visible == -1).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100_000))
def test_depth_reprojects_onto_surfaces(index: int):
    drawn = sample_scene(7, "points", index)
    depth, visible = trace_one(drawn, SIZE)
    points = unproject(drawn, depth.astype(np.float64))
    for number, obj in enumerate(drawn.objects):
        x, y, z = in_own_axes(obj, points[visible == number]).T
        assert np.all(np.abs(signed(obj.kind, x, y, z)) * min(obj.half) < 5e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 100_000))
def test_nearest_surface_is_found(index: int):
    drawn = sample_scene(8, "points", index)
    depth, _ = trace_one(drawn, SIZE)
    for part in (0.35, 0.6, 0.85, 0.97):
        points = unproject(drawn, part * depth.astype(np.float64))
        for obj in drawn.objects:
            x, y, z = np.moveaxis(in_own_axes(obj, points), -1, 0)
            assert not np.any(signed(obj.kind, x, y, z) < -1e-2)


def test_depth_is_along_the_optical_axis():
    wall = Room((-9, -9, 0), (4, 9, 6), GRAY, GRAY, GRAY)
    level = Camera((0, 0, 3.0), ((0, -1, 0), (0, 0, -1), (1, 0, 0)), 60.0)
    depth, _ = trace_one(Scene(level, (), wall, LAMP, "room"), 16)
    np.testing.assert_allclose(depth, 4.0, rtol=1e-5)


def test_sky_is_above_the_fence():
    yard = Room((-9, -9, 0), (10, 9, 200), GRAY, GRAY, GRAY, fence=2.0)
    level = Camera((0, 0, 1.0), ((0, -1, 0), (0, 0, -1), (1, 0, 0)), 60.0)
    shown = render((Scene(level, (), yard, LAMP, "outdoors"),), 64)
    depth, valid, intrinsics = shown.depth[0], shown.valid[0], shown.intrinsics[0]
    rows = np.arange(64)
    # Height at which a row meets the fence.
    rise = 1.0 - 10 * (rows - intrinsics[1, 2]) / intrinsics[1, 1]
    np.testing.assert_array_equal(valid[:, 32], rise < 2.0)
    assert (depth[~valid] == 0).all()


def test_panel_changes_color_but_not_depth():
    level = Camera((0, 0, 1.0), ((0, -1, 0), (0, 0, -1), (1, 0, 0)), 60.0)
    bare = Scene(level, (), CLOSED, LAMP, "room")
    door = Panel(3, (-0.5, 0.6), (0.0, 2.0), Material((0.9, 0.1, 0.1)))
    hung = Scene(level, (), Room(CLOSED.low, CLOSED.high, GRAY, GRAY, GRAY, (door,)), LAMP, "room")
    shown = render((bare, hung), 48)
    np.testing.assert_array_equal(*shown.depth)
    changed = (shown.image[0] != shown.image[1]).any(axis=2)
    points = unproject(hung, shown.depth[1].astype(np.float64))
    within = (
        (points[..., 0] > 6.99)
        & (points[..., 1] > -0.5)
        & (points[..., 1] < 0.6)
        & (points[..., 2] < 2.0)
    )
    np.testing.assert_array_equal(changed, within)

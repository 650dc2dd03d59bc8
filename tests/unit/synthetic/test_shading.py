"""Shading: shadows exactly where light is blocked, and patterns that do not alias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.synthetic import shading
from modality_forcing.synthetic.objects import COLORS
from modality_forcing.synthetic.scene import Camera, Light, Material, Room, Scene, SceneObject
from modality_forcing.synthetic.shading import Renderings, render
from modality_forcing.synthetic.source import camera_axes, sample_scene

GRAY = Material((0.6, 0.6, 0.6))
CLOSED = Room((-6, -6, 0), (6, 6, 4), GRAY, GRAY, GRAY)
LAMP = Light((2.5, 0.0, 3.5), 0.8, 0.4, 10)
LEVEL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
BALL = SceneObject(
    "sphere", "red", (2.5, 0.0, 1.5), (0.5, 0.5, 0.5), LEVEL, Material((0.9, 0.1, 0.1))
)
CAMERA = Camera((-0.5, 0.2, 2.6), camera_axes(0.0, -0.6, 0.0), 70.0)


def render_one(scene: Scene, size: int, *, normals: bool = False) -> Renderings:
    image, depth, valid, intrinsics, visible, seen = render((scene,), size, normals=normals)
    seen = None if seen is None else seen[0]
    return Renderings(image[0], depth[0], valid[0], intrinsics[0], visible[0], seen)


def test_shadow_is_where_the_ball_hides_the_lamp():
    without = render_one(Scene(CAMERA, (), CLOSED, LAMP, "room"), 64)
    both = render_one(Scene(CAMERA, (BALL,), CLOSED, LAMP, "room"), 64)
    image, depth, _, intrinsics, visible, _ = both
    darker = image.astype(int).sum(axis=2) < without[0].astype(int).sum(axis=2) - 20
    columns, rows = np.meshgrid(np.arange(64), np.arange(64))
    rays = (
        np.stack((columns, rows, np.ones_like(rows)), axis=-1)
        @ np.linalg.inv(intrinsics.astype(np.float64)).T
    )
    points = (rays * depth[..., None]) @ np.array(CAMERA.axes) + CAMERA.position
    way = points - LAMP.position
    along = np.einsum("hwi,i->hw", way, np.array(BALL.position) - LAMP.position) / np.einsum(
        "hwi,hwi->hw", way, way
    )
    nearest = LAMP.position + way * np.clip(along, 0, 1)[..., None]
    hidden = np.linalg.norm(nearest - BALL.position, axis=-1) < 0.5
    ground = visible == -1
    assert np.count_nonzero(hidden & ground) > 30
    assert np.count_nonzero((darker != hidden) & ground) <= 3  # the outline, to within rounding
    np.testing.assert_array_equal(
        image[ground & ~hidden & ~darker], without[0][ground & ~hidden & ~darker]
    )


def test_lit_side_is_brighter():
    side = Light((2.5, 3.0, 1.5), 0.8, 0.4, 10)
    image, _, _, _, visible, _ = render_one(Scene(CAMERA, (BALL,), CLOSED, side, "room"), 64)
    columns = np.nonzero(visible == 0)[1]
    middle = (columns.min() + columns.max()) // 2
    red = np.where(visible == 0, image[..., 0], 0).astype(int)
    # The camera looks along x, so +y, where the light is, is on the left.
    assert red[:, : middle - 2].max() > red[:, middle + 3 :].max() + 20


def test_no_object_shades_its_own_lit_side():
    """The sun is far away, where rounding is worst, and the ball is small and close."""
    sun = Light((-30.0, 20.0, 70.0), 0.8, 0.4, 1e4)
    small = replace(BALL, position=(0.3, 0.2, 2.0), half=(0.1, 0.1, 0.1))
    image, depth, _, intrinsics, visible, _ = render_one(
        Scene(CAMERA, (small,), CLOSED, sun, "room"), 96
    )
    columns, rows = np.meshgrid(np.arange(96), np.arange(96))
    rays = (
        np.stack((columns, rows, np.ones_like(rows)), axis=-1)
        @ np.linalg.inv(intrinsics.astype(np.float64)).T
    )
    points = (rays * depth[..., None]) @ np.array(CAMERA.axes) + CAMERA.position
    outward = (points - small.position) / 0.1
    way = np.subtract(sun.position, points)
    facing = np.einsum("hwi,hwi->hw", outward, way / np.linalg.norm(way, axis=-1, keepdims=True))
    on_ball = visible == 0
    assert on_ball.sum() > 100
    wanted = 255 * 0.9 * (0.4 + 0.1 * outward[..., 2] + 0.8 * np.maximum(facing, 0))
    np.testing.assert_allclose(image[on_ball][:, 0], np.minimum(wanted[on_ball], 255), atol=4)


def test_each_color_word_is_visible_in_the_image():
    for name, rgb in COLORS.items():
        ball = replace(BALL, color=name, material=Material(rgb))
        image, _, _, _, visible, _ = render_one(Scene(CAMERA, (ball,), CLOSED, LAMP, "room"), 32)
        seen = np.median(image[visible == 0].astype(float), axis=0) / 255
        nearest = min(COLORS, key=lambda other: _apart(np.array(COLORS[other]), seen))
        assert nearest == name


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Distance of colors that brightness hardly enters."""
    chroma = [(c - c.mean()) / (np.linalg.norm(c) + 0.15) for c in (one, other)]
    return float(np.linalg.norm(chroma[0] - chroma[1]) + 0.1 * abs(one.mean() - other.mean()))


def test_fine_pattern_fades_instead_of_aliasing():
    fine = Material((0.8, 0.8, 0.8), 0.5, 5.0, (600.0, 600.0, 1.0), cells_per_meter=100.0)
    coarse = Material((0.8, 0.8, 0.8), 0.5, 5.0, (6.0, 6.0, 1.0), cells_per_meter=1.0)
    spreads = []
    for material in (fine, coarse):
        room = Room(CLOSED.low, CLOSED.high, material, GRAY, GRAY)
        image = render_one(Scene(CAMERA, (), room, replace(LAMP, strength=0.0), "room"), 32)[0]
        spreads.append(np.ptp(image[20:].astype(int)))
    assert spreads[0] <= 2
    assert spreads[1] > 20


def test_haze_turns_far_ground_to_the_color_of_the_horizon():
    yard = Room((-9, -9, 0), (45, 9, 200), GRAY, GRAY, GRAY, fence=0.0)
    camera = Camera((0, 0, 1.5), camera_axes(0.0, 0.0, 0.0), 60.0)
    sun = Light((0, 0, 80.0), 0.0, 0.4, 1e4)
    hazy = Scene(camera, (), yard, sun, "outdoors", ((0.2, 0.3, 0.9), (0.9, 0.9, 0.9)), haze=20.0)
    image, _, valid, _, _, _ = render_one(hazy, 64)
    far, near = image[34, 32].astype(int), image[63, 32].astype(int)
    assert valid[34, 32] and valid[63, 32]
    assert far.min() > near.max() + 50


def test_normals_of_a_ball_and_a_room():
    scene = Scene(CAMERA, (BALL,), CLOSED, LAMP, "room")
    rendering = render_one(scene, 48, normals=True)
    for one, other in zip(rendering[:-1], render_one(scene, 48)[:-1], strict=True):
        np.testing.assert_array_equal(one, other)
    _, depth, _, intrinsics, visible, normals = rendering
    assert normals is not None
    columns, rows = np.meshgrid(np.arange(48), np.arange(48))
    pixels = np.stack((columns, rows, np.ones_like(rows)), -1)
    rays = pixels @ np.linalg.inv(intrinsics.astype(np.float64)).T
    assert (np.einsum("hwi,hwi->hw", rays, normals) < 0).all()  # towards the camera
    axes = np.array(CAMERA.axes)
    points = (rays * depth[..., None]) @ axes + CAMERA.position
    outward = (points - BALL.position) / 0.5
    ball = visible == 0
    assert ball.sum() > 50
    np.testing.assert_allclose((normals @ axes)[ball], outward[ball], atol=1e-3)
    floor = ~ball & (points[..., 2] < 1e-3)
    assert floor.sum() > 500
    np.testing.assert_allclose((normals @ axes)[floor], [[0, 0, 1]] * floor.sum(), atol=1e-6)


def test_images_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch):
    scenes = (Scene(CAMERA, (BALL,), CLOSED, LAMP, "room"), sample_scene(0, "train", 3))
    whole = render(scenes, 20, normals=True)
    monkeypatch.setattr(shading, "PIXELS_AT_ONCE", 64)
    for one, other in zip(whole, render(scenes, 20, normals=True), strict=True):
        np.testing.assert_array_equal(one, other)

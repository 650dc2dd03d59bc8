"""The image of a scene: patterns that fade before aliasing, a light with shadows, outdoor haze."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modality_forcing.synthetic.raycast import (
    FLAT,
    PANELS,
    ROUND,
    SKY,
    Material,
    Scene,
    Solids,
    cast,
    visible,
)

# Columns of the table of surfaces, one row per surface number.
_LOCAL, _RGB, _CELLS, _NORMAL = slice(0, 12), slice(12, 15), slice(15, 18), slice(18, 21)
_CONTRAST, _SHARPNESS, _PHASE, _WARP, _CELLS_PER_METER = 21, 22, 23, 24, 25
_NORMALS = ((0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 0))
_SKIN = 2e-4  # fraction of the way to the light by which an occluder must clear the surface


class Hits(NamedTuple):
    """What the rays of the camera hit."""

    rays: np.ndarray  # f32 [3 n], of unit depth
    depth: np.ndarray  # f32 [n]
    surface: np.ndarray  # [n], its number
    focal: float  # length in pixels


# Image, depth, valid, intrinsics and visible objects.
Rendering = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def render(scene: Scene, resolution: int) -> Rendering:
    """Renders a square image of the scene.

    Returns image u8 [h w 3]; depth f32 [h w] along the optical axis in meters, 0 at the sky; valid
    bool [h w], False at the sky; intrinsics f32 [3 3]; visible i16 [h w], the index into
    scene.objects or -1 for the setting.
    """
    return _render(scene, resolution)[0]


def render_with_normals(scene: Scene, resolution: int) -> tuple[Rendering, np.ndarray]:
    """Returns `render`, and the normals f32 [h w 3] of what is seen, as in `data/normals.py`.

    They are exact, and 0 at the sky.
    """
    rendering, normal = _render(scene, resolution)
    camera = np.array(scene.camera.axes, np.float32) @ normal  # rows: right, down and forward
    return rendering, camera.T.reshape(resolution, resolution, 3) * rendering[2][..., None]


def _render(scene: Scene, resolution: int) -> tuple[Rendering, np.ndarray]:
    """Returns `render`, and the normals [3 n] in the world."""
    solids = Solids(scene)
    rays, depth, surface = cast(scene, solids, resolution)
    hits = Hits(rays, depth, surface, scene.camera.focal(resolution))
    image, normal = shade(scene, solids, hits)
    valid = surface != SKY
    size = (resolution, resolution)
    rendering = (
        image.reshape(*size, 3),
        (depth * valid).reshape(size),
        valid.reshape(size),
        scene.camera.intrinsics(resolution),
        visible(scene, surface).reshape(size),
    )
    return rendering, normal


def shade(scene: Scene, solids: Solids, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """Returns the colors u8 [n 3] of what rays hit, and its normals f32 [3 n] in the world."""
    rays, depth, surface, focal = hits
    table = _table(scene)
    look = table.take(surface, axis=1)
    points = rays * depth
    points += np.array(scene.camera.position, np.float32)[:, None]
    local = _to_local(look[_LOCAL].reshape(3, 4, -1), points)
    normal = look[_NORMAL]
    _object_normals(scene, surface, local, look, normal)

    color = look[_RGB]
    pattern = _pattern(local, look)
    # A pattern finer than a pixel shows as its mean: contrast fades with the pixel's footprint.
    slant = np.einsum("in,in->n", normal, rays)
    np.abs(slant, out=slant)
    slant += 0.05
    blur = depth * look[_CELLS_PER_METER]
    blur *= 1.6 / focal
    blur /= slant
    fade = np.clip(1.6 - blur, 0, 1, out=blur)
    fade *= look[_CONTRAST]
    fade *= pattern
    color *= np.subtract(1, fade, out=fade)
    color *= _brightness(scene, solids, points, normal, surface)
    if scene.room.fence is not None:
        _add_haze(scene, hits, color)
    color *= 255
    color += 0.5
    np.clip(color, 0, 255, out=color)
    image = np.empty((color.shape[1], 3), np.uint8)
    image[:] = color.T
    return image, normal


def _table(scene: Scene) -> np.ndarray:
    """Returns what shading needs of each surface, f32 [columns surfaces]."""
    room = scene.room
    center = [(h + l) / 2 for l, h in zip(room.low, room.high, strict=True)]
    half = [(h - l) / 2 for l, h in zip(room.low, room.high, strict=True)]
    level = _affine(((1, 0, 0), (0, 1, 0), (0, 0, 1)), half, center)
    sky = Material(scene.sky[1])
    materials = (room.floor, room.ceiling, *(room.walls,) * 4, sky)
    rows = [_row(level, one, normal) for one, normal in zip(materials, _NORMALS, strict=True)]
    for panel in room.panels:
        rows.append(_row(level, panel.material, _NORMALS[panel.wall]))
    for obj in scene.objects:
        affine = _affine(obj.axes, obj.half, obj.position)
        rows.append(_row(affine, obj.material, (0, 0, 0)))
    return np.array(rows, np.float32).T.copy()


def _affine(
    axes: Sequence[Sequence[float]], half: Sequence[float], center: Sequence[float]
) -> list[float]:
    rows = []
    for axis, extent in zip(axes, half, strict=True):
        x, y, z = axis[0] / extent, axis[1] / extent, axis[2] / extent
        rows += [x, y, z, -(x * center[0] + y * center[1] + z * center[2])]
    return rows


def _row(affine: list[float], material: Material, normal: tuple[int, int, int]) -> list[float]:
    m = material
    cells = [math.pi * count for count in m.cells]
    look = [m.contrast, m.sharpness, m.phase, m.warp, m.cells_per_meter]
    return [*affine, *m.rgb, *cells, *normal, *look]


def _to_local(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    local = affine[:, 0] * points[0]
    local += affine[:, 1] * points[1]
    local += affine[:, 2] * points[2]
    local += affine[:, 3]
    return local


def _pattern(local: np.ndarray, look: np.ndarray) -> np.ndarray:
    """Returns the darkness of patterns, 0 to 1, f32 [n]: waves, sharpened to cells or distorted."""
    wave = local * look[_CELLS]
    warp = look[_WARP]
    if warp.any():
        bend = np.sin(wave[[1, 2, 0]] * 1.3 + 1.0)
        bend *= warp
        wave += bend
    wave[2] += look[_PHASE]
    np.cos(wave, out=wave)
    pattern = wave[0] * wave[1]
    pattern *= wave[2]
    pattern *= look[_SHARPNESS]
    pattern += 0.5
    return np.clip(pattern, 0, 1, out=pattern)


def _object_normals(
    scene: Scene, surface: np.ndarray, local: np.ndarray, look: np.ndarray, normal: np.ndarray
) -> None:
    """Writes the outward unit normals of pixels that show an object into normal [3 n]."""
    first = PANELS + len(scene.room.panels)
    pixels = np.flatnonzero(surface >= first)
    if not len(pixels):
        return
    which = surface[pixels] - first
    is_round = np.array([obj.kind in ROUND for obj in scene.objects])
    form = np.array([ROUND.get(obj.kind) or FLAT[obj.kind] for obj in scene.objects], np.float32).T
    inside = local[:, pixels]
    bent = is_round[which]
    outward = np.empty_like(inside)
    for choose, gradient in ((bent, _round_gradient), (~bent, _flat_gradient)):
        part = np.flatnonzero(choose)
        if len(part):
            outward[:, part] = gradient(inside[:, part], form[:, which[part]])
    turn = look[_LOCAL].reshape(3, 4, -1)[:, :3, pixels]
    world = np.einsum("ijn,in->jn", turn, outward)
    world /= np.sqrt(np.einsum("in,in->n", world, world))
    normal[:, pixels] = world


def _round_gradient(local: np.ndarray, form: np.ndarray) -> np.ndarray:
    _, b, c, low, high = form
    x, y, z = local
    side = np.stack((x, y, -b / 2 - c * z))
    cap = (z > high - 1e-3).astype(np.float32) - (z < low + 1e-3)
    on_cap = cap != 0
    side[:, on_cap] = 0
    side[2, on_cap] = cap[on_cap]
    # The tip of a cone has no gradient: use up.
    side[2] += 1e-6
    return side


def _flat_gradient(local: np.ndarray, form: np.ndarray) -> np.ndarray:
    kx, ax, ky, ay, top = form
    x, y, z = local
    excess = np.stack(
        (np.abs(x) + kx * z - ax, np.abs(y) + ky * z - ay, np.maximum(z - top, -1 - z))
    )
    face = excess.argmax(axis=0)
    on_x, on_y, on_z = face == 0, face == 1, face == 2
    return np.stack(
        (on_x * np.sign(x), on_y * np.sign(y), on_x * kx + on_y * ky + on_z * np.sign(z))
    )


def _brightness(
    scene: Scene, solids: Solids, points: np.ndarray, normal: np.ndarray, surface: np.ndarray
) -> np.ndarray:
    light = scene.light
    to_light = np.array(light.position, np.float32)[:, None] - points
    squared = np.einsum("in,in->n", to_light, to_light)
    facing = np.einsum("in,in->n", normal, to_light)
    facing /= np.sqrt(squared)
    facing *= light.strength
    squared *= 1 / light.reach**2
    squared += 1
    facing /= squared
    lit = np.flatnonzero(facing > 0)
    shadowed = _shadowed(scene, solids, to_light[:, lit], surface[lit])
    facing[lit[shadowed]] = 0
    np.maximum(facing, 0, out=facing)
    # The sky and the walls give slightly more light from above than from below.
    facing += light.ambient + 0.25 * light.ambient * normal[2]
    return facing


def _shadowed(
    scene: Scene, solids: Solids, to_light: np.ndarray, surface: np.ndarray
) -> np.ndarray:
    """Returns the indices of points in shadow, by rays from the light: one origin serves all."""
    if not solids.n or not to_light.shape[1]:
        return np.empty(0, np.int64)
    blocked = solids.entries(scene.light.position, np.negative(to_light, out=to_light)) < 1 - _SKIN
    first = PANELS + len(scene.room.panels)
    for row, index in zip(blocked, solids.order, strict=True):
        # Solids are convex: none shades its own lit side.
        row &= surface != first + index
    return np.flatnonzero(blocked.any(axis=0))


def _add_haze(scene: Scene, hits: Hits, color: np.ndarray) -> None:
    zenith, horizon = (np.array(rgb, np.float32)[:, None] for rgb in scene.sky)
    if math.isfinite(scene.haze):
        clear = np.exp(hits.depth * (-1 / scene.haze))
        color -= horizon
        color *= clear
        color += horizon
    pixels = np.flatnonzero(hits.surface == SKY)
    if len(pixels):
        rays = hits.rays[:, pixels]
        height = np.clip(2 * rays[2] / np.sqrt(np.einsum("in,in->n", rays, rays)), 0, 1)
        color[:, pixels] = horizon + (zenith - horizon) * height

"""The image of a scene: patterns that fade before aliasing, a light with shadows, outdoor haze."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from modality_forcing.synthetic.raycast import cast, first_objects, visible
from modality_forcing.synthetic.scene import (
    FLAT,
    ROUND,
    SKY,
    Material,
    Room,
    Scene,
    SceneObject,
    Triple,
)
from modality_forcing.synthetic.solids import Solids

# Columns of the table of surfaces, one row per surface number.
_LOCAL, _RGB, _CELLS, _NORMAL = slice(0, 12), slice(12, 15), slice(15, 18), slice(18, 21)
_CONTRAST, _SHARPNESS, _PHASE, _WARP, _CELLS_PER_METER = 21, 22, 23, 24, 25
_NORMALS = ((0, 0, 1), (0, 0, -1), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 0))
PIXELS_AT_ONCE = 16_384  # of one image or many, so that what is computed stays in the cache
_SKIN = 2e-4  # fraction of the way to the light by which an occluder must clear the surface


class Renderings(NamedTuple):
    """Square images of s scenes and what is known of each pixel."""

    image: np.ndarray  # u8 [s h w 3]
    depth: np.ndarray  # f32 [s h w], along the optical axis, meters; 0 at the sky
    valid: np.ndarray  # bool [s h w]; False at the sky
    intrinsics: np.ndarray  # f32 [s 3 3]
    visible: np.ndarray  # i16 [s h w]: the index into scene.objects, -1 for the setting
    normals: np.ndarray | None = None  # f32 [s h w 3], as in `data/normals.py`; 0 at the sky


def render(scenes: Sequence[Scene], resolution: int, *, normals: bool = False) -> Renderings:
    """Renders square images of scenes; each is the same to the bit whatever the others are.

    normals: whether to return the exact normals of what is seen, too.
    """
    solids, table = Solids(scenes), _Table(scenes, resolution)
    parts = []
    for start in range(0, resolution**2, PIXELS_AT_ONCE):
        pixels = slice(start, start + PIXELS_AT_ONCE)
        hits = Hits(*cast(scenes, solids, resolution, pixels))
        valid = hits.surface != SKY
        image, normal = _shade(table, solids, hits)
        part = [image, hits.depth * valid, valid, visible(scenes, hits.surface)]
        parts.append(part + [_in_camera(scenes, normal, valid)] * normals)
    size = (len(scenes), resolution, resolution)
    image, depth, valid, shown, *seen = (_join(part, size) for part in zip(*parts, strict=True))
    intrinsics = np.array([scene.camera.intrinsics(resolution) for scene in scenes])
    return Renderings(image, depth, valid, intrinsics, shown, *seen)


def _join(parts: Sequence[np.ndarray], size: tuple[int, int, int]) -> np.ndarray:
    """Returns parts [s n ...] of images as images [s h w ...]."""
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    return whole.reshape(*size, *whole.shape[2:])


def _in_camera(scenes: Sequence[Scene], normal: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns normals f32 [s n 3] along the axes of the camera, 0 at the sky."""
    axes = np.array([scene.camera.axes for scene in scenes], np.float32)
    seen = np.matmul(axes, normal.transpose(1, 0, 2))  # rows: right, down and forward
    return seen.transpose(0, 2, 1) * valid[..., None]


class Hits(NamedTuple):
    """What the rays of the cameras hit."""

    rays: np.ndarray  # f32 [3 s n], of unit depth
    depth: np.ndarray  # f32 [s n]
    surface: np.ndarray  # i64 [s n], its number in its scene


def _shade(table: _Table, solids: Solids, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    """Returns the colors u8 [s n 3] of what rays hit, and its normals f32 [3 s n] in the world."""
    scenes, (rays, depth, surface) = table.scenes, hits
    entry = surface + table.first[:, None]
    look = table.values.take(entry, axis=1)
    points = rays * depth
    points += _per_scene([scene.camera.position for scene in scenes])
    local = _to_local(look[_LOCAL].reshape(3, 4, *depth.shape), points)
    normal = look[_NORMAL]
    _object_normals(table, entry.ravel(), local, look, normal)

    color = look[_RGB]
    pattern = _pattern(local, look)
    # A pattern finer than a pixel shows as its mean: contrast fades with the pixel's footprint.
    slant = np.einsum("isn,isn->sn", normal, rays)
    np.abs(slant, out=slant)
    slant += 0.05
    blur = depth * look[_CELLS_PER_METER]
    blur *= table.footprint
    blur /= slant
    fade = np.clip(1.6 - blur, 0, 1, out=blur)
    fade *= look[_CONTRAST]
    fade *= pattern
    color *= np.subtract(1, fade, out=fade)
    color *= _brightness(scenes, solids, points, normal, surface)
    _add_haze(scenes, hits, color)
    color *= 255
    color += 0.5
    np.clip(color, 0, 255, out=color)
    image = np.empty((*depth.shape, 3), np.uint8)
    image[:] = color.transpose(1, 2, 0)
    return image, normal


def _per_scene(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Returns the columns of values, one row per scene, to broadcast over pixels: f32 [c s 1]."""
    return np.array(rows, np.float32).T[:, :, None]


class _Table:
    """What shading needs of each surface of all scenes.

    Attributes:
      scenes: whose surfaces these are.
      footprint: of a pixel at a depth of 1 m, 1.6 times, f32 [scenes 1].
      values: f32 [columns surfaces].
      first: the entry of each scene's surface 0.
      form: f32 [5 surfaces], of solids.
      kind: of each surface: 0 not an object, 1 round, 2 flat.
    """

    def __init__(self, scenes: Sequence[Scene], resolution: int):
        self.scenes = scenes
        self.footprint = _per_scene([(1.6 / s.camera.focal(resolution),) for s in scenes])[0]
        rows: list[list[float]] = []
        forms: list[tuple[float, ...]] = []
        kinds, first = [], []
        for scene in scenes:
            first.append(len(rows))
            setting = _setting_rows(scene.room, scene.sky[1])
            rows += setting
            rows += [_object_row(obj) for obj in scene.objects]
            forms += [(0.0,) * 5] * len(setting)
            forms += [ROUND.get(obj.kind) or FLAT[obj.kind] for obj in scene.objects]
            kinds += [0] * len(setting) + [1 if o.kind in ROUND else 2 for o in scene.objects]
        self.values = np.array(rows, np.float32).T.copy()
        self.form = np.array(forms, np.float32).T
        self.kind, self.first = np.array(kinds), np.array(first)


def _setting_rows(room: Room, horizon: Triple) -> list[list[float]]:
    center = [(h + l) / 2 for l, h in zip(room.low, room.high, strict=True)]
    half = [(h - l) / 2 for l, h in zip(room.low, room.high, strict=True)]
    level = _affine(((1, 0, 0), (0, 1, 0), (0, 0, 1)), half, center)
    materials = (room.floor, room.ceiling, *(room.walls,) * 4, Material(horizon))
    rows = [_row(level, one, normal) for one, normal in zip(materials, _NORMALS, strict=True)]
    return rows + [_row(level, panel.material, _NORMALS[panel.wall]) for panel in room.panels]


def _object_row(obj: SceneObject) -> list[float]:
    return _row(_affine(obj.axes, obj.half, obj.position), obj.material, (0, 0, 0))


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
    table: _Table, entry: np.ndarray, local: np.ndarray, look: np.ndarray, normal: np.ndarray
) -> None:
    """Writes the outward unit normals of pixels that show an object into normal [3 s n]."""
    kind = table.kind.take(entry)
    pixels = np.flatnonzero(kind)
    if not len(pixels):
        return
    which, bent = entry[pixels], kind[pixels] == 1
    inside = local.reshape(3, -1).take(pixels, axis=1)
    outward = np.empty_like(inside)
    for choose, gradient in ((bent, _round_gradient), (~bent, _flat_gradient)):
        part = np.flatnonzero(choose)
        if len(part):
            outward[:, part] = gradient(inside[:, part], table.form[:, which[part]])
    turn = look[_LOCAL].reshape(3, 4, -1)[:, :3].take(pixels, axis=2)
    world = np.einsum("ijn,in->jn", turn, outward)
    world /= np.sqrt(np.einsum("in,in->n", world, world))
    normal.reshape(3, -1)[:, pixels] = world


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
    scenes: Sequence[Scene],
    solids: Solids,
    points: np.ndarray,
    normal: np.ndarray,
    surface: np.ndarray,
) -> np.ndarray:
    lights = [scene.light for scene in scenes]
    to_light = _per_scene([light.position for light in lights]) - points
    squared = np.einsum("isn,isn->sn", to_light, to_light)
    strength, falloff, ambient, from_above = _per_scene(
        [(one.strength, 1 / one.reach**2, one.ambient, 0.25 * one.ambient) for one in lights]
    )
    facing = np.einsum("isn,isn->sn", normal, to_light)
    facing /= np.sqrt(squared)
    facing *= strength
    squared *= falloff
    squared += 1
    facing /= squared
    np.copyto(facing, 0, where=_shadowed(scenes, solids, to_light, surface))
    np.maximum(facing, 0, out=facing)
    # The sky and the walls give slightly more light from above than from below.
    facing += ambient + from_above * normal[2]
    return facing


def _shadowed(
    scenes: Sequence[Scene], solids: Solids, to_light: np.ndarray, surface: np.ndarray
) -> np.ndarray:
    """Returns which points are in shadow, by rays from the light: one origin serves all."""
    shadowed = np.zeros(surface.shape, np.bool_)
    origins = np.array([scene.light.position for scene in scenes])
    entries = solids.entries(origins, np.negative(to_light, out=to_light))
    numbers = first_objects(scenes) + solids.index
    for t, number in zip(entries, numbers, strict=True):
        blocked = t < 1 - _SKIN
        # Solids are convex: none shades its own lit side.
        blocked &= surface != number[:, None]
        shadowed |= blocked
    return shadowed


def _add_haze(scenes: Sequence[Scene], hits: Hits, color: np.ndarray) -> None:
    outdoors = [i for i, scene in enumerate(scenes) if scene.room.fence is not None]
    hazy = [i for i in outdoors if math.isfinite(scenes[i].haze)]
    zenith, horizon = (_per_scene([scene.sky[part] for scene in scenes]) for part in (0, 1))
    if hazy:
        clear = np.exp(hits.depth[hazy] * _per_scene([(-1 / scenes[i].haze,) for i in hazy])[0])
        color[:, hazy] = (color[:, hazy] - horizon[:, hazy]) * clear + horizon[:, hazy]
    which, pixels = np.nonzero(hits.surface == SKY)
    if len(pixels):
        rays = hits.rays[:, which, pixels]
        height = np.clip(2 * rays[2] / np.sqrt(np.einsum("in,in->n", rays, rays)), 0, 1)
        low, high = horizon[:, which, 0], zenith[:, which, 0]
        color[:, which, pixels] = low + (high - low) * height

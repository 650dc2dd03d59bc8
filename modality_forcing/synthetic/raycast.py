"""An exact ray caster in NumPy for many scenes at once: closed-form depth and surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from modality_forcing.synthetic.scene import FAR, FLOOR, PANELS, SKY, TINY, Scene
from modality_forcing.synthetic.solids import Solids


def trace(scenes: Sequence[Scene], resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 [s h w] (FAR at the sky) and visible i16 [s h w] as in `render`."""
    _, depth, surface = cast(scenes, Solids(scenes), resolution)
    size = (len(scenes), resolution, resolution)
    return depth.reshape(size), visible(scenes, surface).reshape(size)


def visible(scenes: Sequence[Scene], surface: np.ndarray) -> np.ndarray:
    """Returns the indices of surface numbers [s n] into objects, i16, -1 for the setting."""
    return np.maximum(surface - first_objects(scenes)[:, None], -1).astype(np.int16)


def first_objects(scenes: Sequence[Scene]) -> np.ndarray:
    """Returns the surface number of each scene's first object."""
    return np.array([PANELS + len(scene.room.panels) for scene in scenes])


@lru_cache(maxsize=8)
def _grid(resolution: int) -> np.ndarray:
    steps = np.arange(resolution, dtype=np.float32) - np.float32((resolution - 1) / 2)
    grid = np.ones((3, resolution, resolution), np.float32)
    grid[0], grid[1] = steps, steps[:, None]
    grid.setflags(write=False)
    return grid.reshape(3, -1)


def cast(
    scenes: Sequence[Scene], solids: Solids, resolution: int, pixels: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rays f32 [3 s n] of unit depth, depth f32 [s n] and surface numbers i64 [s n].

    pixels: which of the image's, row by row.
    """
    cameras = [scene.camera for scene in scenes]
    scale = np.array([(c.focal(resolution), c.focal(resolution), 1.0) for c in cameras])
    axes = np.array([camera.axes for camera in cameras]).transpose(0, 2, 1)
    grid = _grid(resolution)[:, pixels]
    rays = np.empty((3, len(scenes), grid.shape[1]), np.float32)
    to_rays = (axes / scale[:, None]).astype(np.float32, order="C")
    np.matmul(to_rays, grid, out=rays.transpose(1, 0, 2))
    origins = np.array([camera.position for camera in cameras])
    depth, surface = _trace_rooms(scenes, origins, rays)
    numbers = first_objects(scenes) + solids.index
    for t, number in zip(solids.entries(origins, rays), numbers, strict=True):
        nearer = t < depth
        np.copyto(depth, t, where=nearer)
        np.copyto(surface, number[:, None], where=nearer)
    return rays, depth, surface


def _trace_rooms(
    scenes: Sequence[Scene], origins: np.ndarray, rays: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    low = np.array([scene.room.low for scene in scenes])
    high = np.array([scene.room.high for scene in scenes])
    middle = ((high + low) / 2 - origins).astype(np.float32).T[:, :, None]
    reach = ((high - low) / 2).astype(np.float32).T[:, :, None]
    inverse = np.reciprocal(rays + TINY)
    exits = inverse * middle
    exits += np.multiply(np.abs(inverse, out=inverse), reach, out=inverse)
    tx, ty, tz = exits
    forward = rays > 0
    side = np.where(tx < ty, np.int64(2) + forward[0], np.int64(4) + forward[1])
    walls = np.minimum(tx, ty)
    surface = np.where(tz < walls, forward[2], side)
    depth = np.minimum(walls, tz)
    height = rays[2] * depth
    height += origins[:, 2:].astype(np.float32)
    _hang_panels(scenes, (rays, depth, height), origins, surface)
    fences = [np.inf if scene.room.fence is None else scene.room.fence for scene in scenes]
    # Outdoors the box is high; above the fence is the sky, which has no depth.
    above = height > np.array(fences, np.float32)[:, None]
    above &= surface != FLOOR
    np.copyto(surface, SKY, where=above)
    np.copyto(depth, FAR, where=above)
    return depth, surface


def _hang_panels(
    scenes: Sequence[Scene],
    hits: tuple[np.ndarray, np.ndarray, np.ndarray],
    origins: np.ndarray,
    surface: np.ndarray,
) -> None:
    """Writes the panels' numbers into the surfaces. hits: rays, depth and height above ground."""
    rays, depth, height = hits
    for number in range(max(len(scene.room.panels) for scene in scenes)):
        which = [i for i, scene in enumerate(scenes) if len(scene.room.panels) > number]
        panels = [scenes[i].room.panels[number] for i in which]
        walls = np.array([panel.wall for panel in panels])
        axis = np.where(walls < 4, 1, 0)
        limits = np.array([(*p.along, *p.height) for p in panels], np.float32)
        left, right, bottom, top = limits.T[:, :, None]
        at, part = height[which], surface[which]
        along = rays[axis, which] * depth[which]
        along += origins[which, axis].astype(np.float32)[:, None]
        inside = part == walls[:, None]
        inside &= (along > left) & (along < right)
        inside &= (at > bottom) & (at < top)
        np.copyto(part, PANELS + number, where=inside)
        surface[which] = part

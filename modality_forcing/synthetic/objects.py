"""The objects of a procedural scene: kind, color, and position on the ground, in air, stacked."""

from __future__ import annotations

import math
from typing import NamedTuple

from modality_forcing.synthetic.scene import Axes, Camera, Room, SceneObject, Triple
from modality_forcing.synthetic.scene_rng import SceneRng, patterned_material, surface_material
from modality_forcing.synthetic.world import VARIED, World

COLORS: dict[str, Triple] = {
    "red": (0.92, 0.10, 0.10),
    "orange": (1.00, 0.52, 0.04),
    "yellow": (0.98, 0.90, 0.10),
    "green": (0.10, 0.72, 0.16),
    "cyan": (0.10, 0.85, 0.88),
    "blue": (0.12, 0.22, 0.95),
    "purple": (0.60, 0.12, 0.85),
    "white": (0.97, 0.97, 0.97),
    "black": (0.07, 0.07, 0.08),
}
KINDS = ("sphere", "egg", "dome", "cylinder", "disc", "cone", "box", "pyramid", "prism")
_UP = (0.0, 0.0, 1.0)
_COLOR_NAMES = tuple(COLORS)
_FLAT_TOPPED = ("box", "cylinder")


def sample_partitions(rng: SceneRng, camera: Camera, room: Room) -> list[SceneObject]:
    """Returns at most one free-standing wall or pillar, which breaks up the view."""
    partitions: list[SceneObject] = []
    for _ in range(int(rng.uniform(0, 1.5))):
        z, across = rng.log_uniform(1.6, 12), rng.uniform(-1.2, 1.2)
        x, y = _ahead(camera, z, across * math.tan(math.radians(camera.fov) / 2) * z)
        wide, high = rng.log_uniform(0.25, 2.4), rng.log_uniform(0.7, 4.5) / 2
        half = (wide, rng.uniform(0.08, 0.3), min(high, room.high[2] / 2))
        pattern = rng.choice(("plain", "checks", "stripes", "blots"))
        material = surface_material(rng, half, pattern, VARIED.wall.tones)
        distance = math.hypot(x - camera.position[0], y - camera.position[1])
        is_inside = room.low[0] < x < room.high[0] and room.low[1] < y < room.high[1]
        if is_inside and distance > math.hypot(*half[:2]) + 0.6:
            axes = _yaw_axes(rng.uniform(0, math.pi))
            partitions.append(SceneObject("wall", "", (x, y, half[2]), half, axes, material))
    return partitions


def place_objects(
    rng: SceneRng,
    camera: Camera,
    room: Room,
    *,
    objects: list[SceneObject],
    count: int,
    world: World = VARIED,
) -> None:
    """Adds up to `count` objects in view, as room permits: on the ground, floating or stacked."""
    start, view = len(objects), _ground_in_view(camera, room, world.far)
    for _ in range(6 * count):
        if len(objects) - start == count:
            return
        supports = [i for i in range(start, len(objects)) if _can_support(objects[i])]
        if supports and rng.bernoulli(0.4):
            _try_stacking(rng, world, objects, rng.choice(supports))
        else:
            _try_placing(rng, world, (camera, room, view), objects)


def _can_support(obj: SceneObject) -> bool:
    is_level = obj.kind in _FLAT_TOPPED and obj.axes[2] == _UP
    return is_level and obj.support < 0 and min(obj.half[:2]) > 0.12


def _sample_object(rng: SceneRng, world: World, size: float, *, tumble: bool) -> SceneObject:
    """Returns an object at the origin, `size` meters across; `tumble` turns one that floats."""
    kind, color = rng.choice(KINDS), rng.choice(_COLOR_NAMES)
    r, tall = size / 2, rng.uniform(0.7, 1.5)
    axes = _yaw_axes(rng.uniform(0, 2 * math.pi))
    half = (r, r, r * tall)
    if kind == "sphere":
        half = (r, r, r)
    elif kind == "egg":
        half = (r * 0.65, r * 0.65, r)
    elif kind == "dome":
        half = (r, r, r * rng.uniform(0.35, 0.5))
    elif kind == "disc":
        half = (r, r, r * rng.uniform(0.08, 0.2))
    elif kind in ("box", "prism"):
        half = (r * rng.uniform(0.55, 1), r * rng.uniform(0.55, 1), r * rng.uniform(0.5, 1.3))
    if tumble or (kind in ("egg", "disc", "cylinder") and rng.bernoulli(0.5)):
        axes = _lean(axes, rng.uniform(-1.2, 1.2) if tumble or kind == "egg" else math.pi / 2)
    red, green, blue = (channel * rng.uniform(0.93, 1) for channel in COLORS[color])
    pattern = rng.choice(world.object_patterns)
    material = patterned_material(
        rng,
        rgb=(red, green, blue),
        half=half,
        pattern=pattern,
        cells_per_meter=rng.uniform(1.5, 4) / size,
    )
    return SceneObject(kind, color, (0.0, 0.0, 0.0), half, axes, material)


def _lean(axes: Axes, angle: float) -> Axes:
    """Rotates about the first axis."""
    (x, y, z), s, c = axes, math.sin(angle), math.cos(angle)
    new_y = (c * y[0] + s * z[0], c * y[1] + s * z[1], c * y[2] + s * z[2])
    new_z = (c * z[0] - s * y[0], c * z[1] - s * y[1], c * z[2] - s * y[2])
    return x, new_y, new_z


def _rest_height(obj: SceneObject) -> float:
    """Returns the height of the center above the ground the object rests on."""
    parts = [extent * abs(axis[2]) for extent, axis in zip(obj.half, obj.axes, strict=True)]
    if obj.kind in ("sphere", "egg"):
        return math.hypot(*parts)
    if obj.kind in ("cylinder", "disc"):
        return math.hypot(parts[0], parts[1]) + parts[2]
    return sum(parts)


def _try_placing(
    rng: SceneRng,
    world: World,
    surroundings: tuple[Camera, Room, _GroundInView],
    objects: list[SceneObject],
) -> None:
    """Adds an object on the ground or in the air where the camera sees it, if there is room."""
    camera, room, (near, far, slope, spread) = surroundings
    floats = near >= far or rng.bernoulli(world.floating)
    z = rng.log_uniform(1.2, max(2.0, far)) if floats else rng.log_uniform(near, far)
    size = min(max(z * rng.log_uniform(*world.size), 0.2), 2.0)
    obj = _sample_object(rng, world, size, tumble=floats)
    across, upward = rng.uniform(-0.85, 0.85), rng.uniform(-0.7, 0.6)
    x, y = _ahead(camera, z, across * spread * z)
    reach, height = math.hypot(*obj.half[:2]), _rest_height(obj)
    if floats:
        aim = camera.position[2] + z * (slope + upward * spread)
        height = max(height, min(aim, room.high[2] - height - 0.05))
    for axis, at in enumerate((x, y)):
        if not room.low[axis] + reach < at < room.high[axis] - reach:
            return
    position = (x, y, height)
    if math.dist(position, camera.position) < max(obj.half) * 1.75 + 0.5:
        return
    for other in objects:
        if math.dist(position, other.position) < 0.75 * (max(obj.half) + max(other.half)):
            return
    objects.append(_at(obj, position))


class _GroundInView(NamedTuple):
    """The distances, in meters, at which a camera sees the ground, and its slope and spread."""

    near: float
    far: float
    slope: float  # of the optical axis
    spread: float  # tangent of half the field of view


def _ground_in_view(camera: Camera, room: Room, limit: float) -> _GroundInView:
    """Returns what the middle column sees, from 1.2 m to the wall or the limit."""
    spread = math.tan(math.radians(camera.fov) / 2)
    forward = camera.axes[2]
    slope = forward[2] / math.hypot(*forward[:2])
    height, margin = camera.position[2] - 0.3, 0.85 * spread
    lower, upper = margin - slope, -slope - margin
    near = height / lower if lower > 0 else math.inf
    far = height / upper if upper > 0 else math.inf
    wall = clearance(room, camera.position[:2], math.atan2(forward[1], forward[0]))
    return _GroundInView(max(near, 1.2), min(max(far, 0.0), limit, max(1.5, wall)), slope, spread)


def _at(obj: SceneObject, position: Triple, support: int = -1) -> SceneObject:
    # dataclasses.replace takes three times as long.
    return SceneObject(obj.kind, obj.color, position, obj.half, obj.axes, obj.material, support)


def _try_stacking(rng: SceneRng, world: World, objects: list[SceneObject], support: int) -> None:
    """Adds an object on another, unless that already has one."""
    below = objects[support]
    if any(obj.support == support for obj in objects):
        return
    extent = min(below.half[:2])
    obj = _sample_object(rng, world, extent * rng.uniform(0.9, 1.6), tumble=False)
    x, y = (at + extent * rng.uniform(-0.25, 0.25) for at in below.position[:2])
    z = below.position[2] + below.half[2] + _rest_height(obj)
    objects.append(_at(obj, (x, y, z), support))


def _ahead(camera: Camera, z: float, aside: float) -> tuple[float, float]:
    """Returns the (x, y) z meters ahead of a level camera and `aside` to its right."""
    forward = camera.axes[2]
    level = math.hypot(forward[0], forward[1])
    fx, fy = forward[0] / level, forward[1] / level
    return camera.position[0] + fx * z + fy * aside, camera.position[1] + fy * z - fx * aside


def clearance(room: Room, at: tuple[float, float], yaw: float) -> float:
    """Returns the horizontal distance to the room's wall, meters; yaw in radians from x to y."""
    distances = []
    for axis, step in enumerate((math.cos(yaw), math.sin(yaw))):
        if abs(step) > 1e-6:
            wall = room.high[axis] if step > 0 else room.low[axis]
            distances.append((wall - at[axis]) / step)
    return min(distances)


def _yaw_axes(yaw: float) -> Axes:
    s, c = math.sin(yaw), math.cos(yaw)
    return (c, s, 0.0), (-s, c, 0.0), _UP

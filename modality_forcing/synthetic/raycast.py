"""The parts of a scene, and an exact ray caster in NumPy: closed-form depth and surfaces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Triple = tuple[float, float, float]
Axes = tuple[Triple, Triple, Triple]

# Surface numbers: 2 to 5 are the walls -x, +x, -y, +y; panels begin at 7, and objects follow them.
FLOOR, CEILING, SKY, PANELS = 0, 1, 6, 7

# Every solid is convex, within the cube [-1, 1]^3 of its own axes, z up.
# Round: x^2 + y^2 <= a + b z + c z^2, z in [low, high]: (a, b, c, low, high). Limits past 1 cut off
# nothing.
ROUND = {
    "sphere": (1.0, 0.0, -1.0, -2.0, 2.0),
    "egg": (1.0, 0.0, -1.0, -2.0, 2.0),
    "dome": (0.75, -0.5, -0.25, -1.0, 2.0),
    "cylinder": (1.0, 0.0, 0.0, -1.0, 1.0),
    "disc": (1.0, 0.0, 0.0, -1.0, 1.0),
    "cone": (0.25, -0.5, 0.25, -1.0, 1.0),
}
# Flat: |x| + kx z <= ax, |y| + ky z <= ay, -1 <= z <= top: (kx, ax, ky, ay, top).
FLAT = {
    "box": (0.0, 1.0, 0.0, 1.0, 1.0),
    "wall": (0.0, 1.0, 0.0, 1.0, 1.0),
    "pyramid": (0.5, 0.5, 0.5, 0.5, 2.0),
    "prism": (0.5, 0.5, 0.0, 1.0, 2.0),
}
_RANK = {
    kind: rank for rank, kind in enumerate((*(k for k in ROUND if k != "cone"), "cone", *FLAT))
}
FAR = np.float32(1e5)  # depth of the sky during computation: finite, to avoid warnings
_TINY = 1e-20


@dataclass(frozen=True)
class Camera:
    """A pinhole camera in the world: x, y level, z up, meters."""

    position: Triple
    axes: Axes  # right, down and forward unit vectors
    fov: float  # horizontal, degrees

    def focal(self, resolution: int) -> float:
        """Returns the focal length in pixels of a square image."""
        return 0.5 * resolution / math.tan(math.radians(self.fov) / 2)

    def intrinsics(self, resolution: int) -> np.ndarray:
        """Returns f32 [3 3] in pixels; (j, i) is the center of pixel (row i, column j)."""
        focal, center = self.focal(resolution), (resolution - 1) / 2
        return np.array([[focal, 0, center], [0, focal, center], [0, 0, 1]], np.float32)


@dataclass(frozen=True)
class Material:
    """A color and its pattern, darker by `contrast`, distorted into blots by `warp`."""

    rgb: Triple
    contrast: float = 0.0
    sharpness: float = 1.0
    cells: Triple = (0.0, 0.0, 0.0)  # along each axis' half extent
    phase: float = 0.0
    warp: float = 0.0
    cells_per_meter: float = 0.0  # by which the pattern fades before it aliases


@dataclass(frozen=True)
class SceneObject:
    """A solid."""

    kind: str
    color: str
    position: Triple  # of its center
    half: Triple  # extents, meters
    axes: Axes  # its own x, y, z in the world
    material: Material
    support: int = -1  # index of the object it stands on

    @property
    def nameable(self) -> bool:
        """Whether captions may name it; partition walls belong to the setting."""
        return self.kind != "wall"


@dataclass(frozen=True)
class Panel:
    """A rectangle (door, window) on wall 2 to 5: ranges along the wall and of height, meters."""

    wall: int
    along: tuple[float, float]
    height: tuple[float, float]
    material: Material


@dataclass(frozen=True)
class Room:
    """The box around a scene: a room, or open ground with a fence and the sky above it."""

    low: Triple
    high: Triple
    floor: Material
    walls: Material
    ceiling: Material
    panels: tuple[Panel, ...] = ()
    fence: float | None = None  # height, meters; None: a closed room


@dataclass(frozen=True)
class Light:
    """A point light: `strength / (1 + (distance / reach)^2)` over `ambient`; the sun is far."""

    position: Triple
    strength: float
    ambient: float
    reach: float


@dataclass(frozen=True)
class Scene:
    """All that an image depends on, apart from its resolution."""

    camera: Camera
    objects: tuple[SceneObject, ...]
    room: Room
    light: Light
    setting: str  # "room" | "outdoors"
    sky: tuple[Triple, Triple] = ((0.5, 0.65, 0.9), (0.8, 0.87, 0.95))  # zenith, horizon
    haze: float = math.inf  # meters over which 63% of a color fades to the horizon's
    wording: float = 0.0  # in [0, 1): chooses among the true captions


def trace(scene: Scene, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 [h w] (FAR at the sky) and visible i16 [h w] as in `render`."""
    _, depth, surface = cast(scene, Solids(scene), resolution)
    size = (resolution, resolution)
    return depth.reshape(size), visible(scene, surface).reshape(size)


def visible(scene: Scene, surface: np.ndarray) -> np.ndarray:
    """Returns the indices of surface numbers into scene.objects, i16, -1 for the setting."""
    return np.maximum(surface - (PANELS + len(scene.room.panels)), -1).astype(np.int16)


@lru_cache(maxsize=8)
def _grid(resolution: int) -> np.ndarray:
    steps = np.arange(resolution, dtype=np.float32) - np.float32((resolution - 1) / 2)
    grid = np.ones((3, resolution, resolution), np.float32)
    grid[0], grid[1] = steps, steps[:, None]
    grid.setflags(write=False)
    return grid.reshape(3, -1)


class Solids:
    """The objects of a scene as arrays, sorted by the three intersection routines."""

    def __init__(self, scene: Scene):
        objects = scene.objects
        self.order = sorted(range(len(objects)), key=lambda i: _RANK[objects[i].kind])
        kinds = [objects[i].kind for i in self.order]
        num_round = sum(kind in ROUND for kind in kinds)
        num_boxes = sum(kind in ("box", "wall") for kind in kinds)
        self.n = len(kinds)
        self.groups = (
            (num_round, _intersect_round),
            (num_boxes, _intersect_boxes),
            (self.n - num_round - num_boxes, _intersect_tents),
        )
        ordered = [objects[i] for i in self.order]
        flat = [[*obj.position, *obj.half, *sum(obj.axes, ())] for obj in ordered]
        rows = np.array(flat, np.float64).reshape(-1, 15)
        self.center = rows[:, :3]
        # World to canonical: the rows are an object's own axes over its half extents.
        self.to_local = rows[:, 6:].reshape(-1, 3, 3) / rows[:, 3:6, None]
        forms = [ROUND.get(kind) or FLAT[kind] for kind in kinds]
        self.form = np.array(forms, np.float32).reshape(-1, 5)

    def entries(self, origin: Triple, rays: np.ndarray) -> np.ndarray:
        """Returns t > 0 at which rays origin + t·ray enter each solid, f32 [k n], or inf."""
        out = np.full((self.n, rays.shape[1]), np.inf, np.float32)
        local = np.einsum("kij,kj->ki", self.to_local, np.asarray(origin) - self.center)
        start = 0
        for count, intersect in self.groups:
            if count:
                group = slice(start, start + count)
                near, far = intersect(self.to_local[group], local[group], self.form[group], rays)
                hit = near < far
                hit &= near > 0
                np.copyto(out[group], near, where=hit)
            start += count
        return out


# Each takes matrix [k 3 3], origin [k 3], form [k 5] and rays [3 n] to the t f32 [k n] at which
# rays enter and leave.
_Interval = tuple[np.ndarray, np.ndarray]


def _intersect_round(
    matrix: np.ndarray, origin: np.ndarray, form: np.ndarray, rays: np.ndarray
) -> _Interval:
    a, b, c, low, high = form.astype(np.float64).T
    x, y, z = origin.T
    slope = c * z + b / 2
    # The half-linear term of the quadratic is linear in the ray: one product gives it and the rays.
    half = x[:, None] * matrix[:, 0] + y[:, None] * matrix[:, 1] - slope[:, None] * matrix[:, 2]
    stack = np.concatenate((matrix[:, 0], matrix[:, 1], matrix[:, 2], half)).astype(np.float32)
    dx, dy, dz, linear = (stack @ rays).reshape(4, len(form), -1)
    constant = (x * x + y * y - a - b * z - c * z * z).astype(np.float32)[:, None]
    dz += _TINY
    inverse = np.reciprocal(dz)
    dz *= dz
    dz *= form[:, 2:3]
    dx *= dx
    dy *= dy
    square = dx
    square += dy
    square -= dz
    square += _TINY
    root = np.multiply(linear, linear, out=dy)
    root -= np.multiply(square, constant, out=dz)
    miss = root <= 0
    np.sqrt(np.maximum(root, 0, out=root), out=root)
    scale = np.reciprocal(square)
    near = np.negative(linear, out=linear)
    far = near + root
    near -= root
    near *= scale
    far *= scale
    if (is_cone := c > 0).any():
        # A ray steeper than the cone meets both nappes: inside is beyond the roots, towards the
        # lower.
        cone = slice(int(is_cone.argmax()), None)  # they are last
        steep, down = square[cone] < 0, inverse[cone] < 0
        first, last = np.minimum(near[cone], far[cone]), np.maximum(near[cone], far[cone])
        near[cone] = np.where(steep, np.where(down, last, -np.inf), first)
        far[cone] = np.where(steep, np.where(down, np.inf, first), last)
    to_low = inverse * (low - z).astype(np.float32)[:, None]
    to_high = np.multiply(inverse, (high - z).astype(np.float32)[:, None], out=inverse)
    np.maximum(near, np.minimum(to_low, to_high, out=dy), out=near)
    np.minimum(far, np.maximum(to_low, to_high, out=dz), out=far)
    np.copyto(far, -np.inf, where=miss)
    return near, far


def _intersect_boxes(
    matrix: np.ndarray, origin: np.ndarray, form: np.ndarray, rays: np.ndarray
) -> _Interval:
    rows = matrix.transpose(1, 0, 2).reshape(-1, 3).astype(np.float32)
    inverse = (rows @ rays).reshape(3, len(origin), -1)
    inverse += _TINY
    np.reciprocal(inverse, out=inverse)
    middle = inverse * -origin.T.astype(np.float32)[:, :, None]
    reach = np.abs(inverse, out=inverse)
    near = np.maximum.reduce(middle - reach, axis=0)
    middle += reach
    return near, np.minimum.reduce(middle, axis=0)


def _intersect_tents(
    matrix: np.ndarray, origin: np.ndarray, form: np.ndarray, rays: np.ndarray
) -> _Interval:
    planes, limits = _tent_planes(form)
    normal = np.einsum("kpi,kij->pkj", planes, matrix).reshape(-1, 3).astype(np.float32)
    slack = (limits - np.einsum("kpi,ki->kp", planes, origin)).T.astype(np.float32)[:, :, None]
    speed = (normal @ rays).reshape(5, len(form), -1)
    speed += _TINY
    t = slack / speed
    enters = speed < 0
    near = np.maximum.reduce(np.where(enters, t, -np.inf), axis=0)
    return near, np.minimum.reduce(np.where(enters, np.inf, t), axis=0)


def _tent_planes(form: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns normals [k 5 3] and limits [k 5] of the planes around pyramids and prisms."""
    kx, ax, ky, ay, _ = form.astype(np.float64).T
    one, nil = np.ones_like(kx), np.zeros_like(kx)
    planes = np.array(
        [[one, nil, kx], [-one, nil, kx], [nil, one, ky], [nil, -one, ky], [nil, nil, -one]]
    )
    return planes.transpose(2, 0, 1), np.array([ax, ax, ay, ay, one]).T


def cast(
    scene: Scene, solids: Solids, resolution: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rays f32 [3 n] of unit depth, depth f32 [n] and surface numbers [n]."""
    axes = np.array(scene.camera.axes)
    focal = scene.camera.focal(resolution)
    rays = (axes.T / (focal, focal, 1.0)).astype(np.float32) @ _grid(resolution)
    depth, surface = _trace_room(scene, rays)
    if solids.n:
        first = PANELS + len(scene.room.panels)
        entries = solids.entries(scene.camera.position, rays)
        for t, index in zip(entries, solids.order, strict=True):
            nearer = t < depth
            np.copyto(depth, t, where=nearer)
            np.copyto(surface, first + index, where=nearer)
    return rays, depth, surface


def _trace_room(scene: Scene, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    room, origin = scene.room, scene.camera.position
    middle = [(h + l) / 2 - o for l, h, o in zip(room.low, room.high, origin, strict=True)]
    reach = [(h - l) / 2 for l, h in zip(room.low, room.high, strict=True)]
    inverse = np.reciprocal(rays + _TINY)
    exits = inverse * np.array(middle, np.float32)[:, None]
    exits += np.abs(inverse, out=inverse) * np.array(reach, np.float32)[:, None]
    tx, ty, tz = exits
    forward = rays > 0
    side = np.where(tx < ty, np.int64(2) + forward[0], np.int64(4) + forward[1])
    walls = np.minimum(tx, ty)
    surface = np.where(tz < walls, forward[2], side)
    depth = np.minimum(walls, tz)
    height = rays[2] * depth
    height += origin[2]
    for number, panel in enumerate(room.panels):
        on_wall = np.flatnonzero(surface == panel.wall)
        axis = 1 if panel.wall < 4 else 0
        along = rays[axis, on_wall] * depth[on_wall] + origin[axis]
        inside = (along > panel.along[0]) & (along < panel.along[1])
        inside &= (height[on_wall] > panel.height[0]) & (height[on_wall] < panel.height[1])
        surface[on_wall[inside]] = PANELS + number
    if room.fence is not None:
        # Outdoors the box is high; above the fence is the sky, which has no depth.
        above = height > room.fence
        above &= surface != FLOOR
        np.copyto(surface, SKY, where=above)
        np.copyto(depth, FAR, where=above)
    return depth, surface

"""What a scene is made of, and an exact ray caster for it: closed-form depth and surfaces, in plain NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Triple = tuple[float, float, float]
FLOOR, CEILING, SKY, PANELS = (
    0,
    1,
    6,
    7,
)  # surface numbers; 2..5 are the walls -x, +x, -y, +y; things follow the panels

# Every solid is convex and lives in the cube [-1, 1]^3 of its own axes, z up.
# Round ones: x^2 + y^2 <= a + b z + c z^2 with z in [low, high]: (a, b, c, low, high). Limits past 1 cut nothing.
ROUND = {
    "sphere": (1.0, 0.0, -1.0, -2.0, 2.0),
    "egg": (1.0, 0.0, -1.0, -2.0, 2.0),
    "dome": (0.75, -0.5, -0.25, -1.0, 2.0),
    "cylinder": (1.0, 0.0, 0.0, -1.0, 1.0),
    "disc": (1.0, 0.0, 0.0, -1.0, 1.0),
    "cone": (0.25, -0.5, 0.25, -1.0, 1.0),
}
# Flat ones: |x| + kx z <= ax, |y| + ky z <= ay, -1 <= z <= top: (kx, ax, ky, ay, top).
FLAT = {
    "box": (0.0, 1.0, 0.0, 1.0, 1.0),
    "wall": (0.0, 1.0, 0.0, 1.0, 1.0),
    "pyramid": (0.5, 0.5, 0.5, 0.5, 2.0),
    "prism": (0.5, 0.5, 0.0, 1.0, 2.0),
}
_RANK = {
    kind: rank for rank, kind in enumerate((*(k for k in ROUND if k != "cone"), "cone", *FLAT))
}
FAR = np.float32(
    1e5
)  # the depth of the sky while computing: finite, so that arithmetic on it stays quiet
_TINY = 1e-20


@dataclass(frozen=True)
class Camera:
    """A pinhole: `axes` are its right, down and forward unit vectors in the world (x, y level, z up, metres)."""

    position: Triple
    axes: tuple[Triple, Triple, Triple]
    fov: float  # horizontal, degrees

    def focal(self, resolution: int) -> float:
        """Focal length in pixels of a square picture."""
        return 0.5 * resolution / math.tan(math.radians(self.fov) / 2)

    def intrinsics(self, resolution: int) -> np.ndarray:
        """Pinhole matrix in pixels, f32 [3 3]; the centre of pixel (row i, column j) is the point (j, i)."""
        focal, centre = self.focal(resolution), (resolution - 1) / 2
        return np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]], np.float32)


@dataclass(frozen=True)
class Paint:
    """A colour and its pattern: cells along each axis' half extent, darkened by `contrast`, bent to blots by `warp`."""

    rgb: Triple
    contrast: float = 0.0
    sharpness: float = 1.0
    cells: Triple = (0.0, 0.0, 0.0)
    phase: float = 0.0
    warp: float = 0.0
    per_metre: float = 0.0  # cells per metre, by which the pattern fades before it would alias


@dataclass(frozen=True)
class Thing:
    """A solid: centre and half extents in metres, `axes` its own x, y, z in the world; `on`, what bears it or -1."""

    kind: str
    colour: str
    position: Triple
    half: Triple
    axes: tuple[Triple, Triple, Triple]
    paint: Paint
    on: int = -1

    @property
    def named(self) -> bool:
        """Whether captions may speak of it; partition walls belong to the setting."""
        return self.kind != "wall"


@dataclass(frozen=True)
class Panel:
    """A painted rectangle (door, window) on wall 2..5: span along the wall and span of height, metres."""

    wall: int
    along: tuple[float, float]
    height: tuple[float, float]
    paint: Paint


@dataclass(frozen=True)
class Shell:
    """The box that holds everything: a room, or open ground ending in a fence of `fence` metres with sky above it."""

    low: Triple
    high: Triple
    floor: Paint
    walls: Paint
    ceiling: Paint
    panels: tuple[Panel, ...] = ()
    fence: float | None = None  # None: a closed room


@dataclass(frozen=True)
class Light:
    """A point light (the sun is one far away): brightness `strength / (1 + (distance / reach)^2)` over `ambient`."""

    position: Triple
    strength: float
    ambient: float
    reach: float


@dataclass(frozen=True)
class Scene:
    """Everything a picture is made from, free of any resolution."""

    camera: Camera
    things: tuple[Thing, ...]
    shell: Shell
    light: Light
    setting: str  # "room" | "outdoors"
    sky: tuple[Triple, Triple] = ((0.5, 0.65, 0.9), (0.8, 0.87, 0.95))  # zenith, horizon
    haze: float = math.inf  # metres over which 63% of the colour turns to that of the horizon
    wording: float = 0.0  # in [0, 1): chooses among the true captions


def trace(scene: Scene, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Only the geometry: depth f32 [h w] (FAR at the sky) and visible i16 [h w] as in `render`."""
    _, depth, surface = cast(scene, Solids(scene), resolution)
    return depth.reshape(resolution, resolution), visible(scene, surface).reshape(
        resolution, resolution
    )


def visible(scene: Scene, surface: np.ndarray) -> np.ndarray:
    """From surface numbers to indices into scene.things, i16, -1 for the setting."""
    return np.maximum(surface - (PANELS + len(scene.shell.panels)), -1).astype(np.int16)


@lru_cache(maxsize=8)
def _grid(resolution: int) -> np.ndarray:
    steps = np.arange(resolution, dtype=np.float32) - np.float32((resolution - 1) / 2)
    grid = np.ones((3, resolution, resolution), np.float32)
    grid[0], grid[1] = steps, steps[:, None]
    grid.setflags(write=False)
    return grid.reshape(3, -1)


class Solids:
    """The things of a scene as arrays, sorted into the three families that share an intersection routine."""

    def __init__(self, scene: Scene):
        things = scene.things
        self.order = sorted(range(len(things)), key=lambda i: _RANK[things[i].kind])
        kinds = [things[i].kind for i in self.order]
        self.n_round = sum(kind in ROUND for kind in kinds)
        self.n_smooth = sum(kind in ROUND and kind != "cone" for kind in kinds)
        self.n_box = sum(kind in ("box", "wall") for kind in kinds)
        self.n = len(kinds)
        flat = [
            [*t.position, *t.half, *t.axes[0], *t.axes[1], *t.axes[2]]
            for t in (things[i] for i in self.order)
        ]
        rows = np.array(flat, np.float64).reshape(-1, 15)
        self.centre = rows[:, :3]
        # World to canonical: the rows are the thing's own axes over its half extents.
        self.to_local = rows[:, 6:].reshape(-1, 3, 3) / rows[:, 3:6, None]
        self.form = np.array([ROUND.get(kind) or FLAT[kind] for kind in kinds], np.float32).reshape(
            -1, 5
        )

    def entries(self, origin: Triple, rays: np.ndarray) -> np.ndarray:
        """Where each ray origin + t·ray, t > 0, first enters each solid: t f32 [k n], inf where it misses."""
        out = np.empty((self.n, rays.shape[1]), np.float32)
        local = np.einsum("kij,kj->ki", self.to_local, np.asarray(origin) - self.centre)
        first, second = self.n_round, self.n_round + self.n_box
        if first:
            _enter_round(
                self.to_local[:first],
                local[:first],
                self.form[:first],
                self.n_smooth,
                rays,
                out[:first],
            )
        if self.n_box:
            _enter_boxes(self.to_local[first:second], local[first:second], rays, out[first:second])
        if second < self.n:
            _enter_tents(
                self.to_local[second:], local[second:], self.form[second:], rays, out[second:]
            )
        return out


def _enter_round(
    matrix: np.ndarray,
    origin: np.ndarray,
    form: np.ndarray,
    n_smooth: int,
    rays: np.ndarray,
    out: np.ndarray,
) -> None:
    """From matrix [k 3 3], origin [k 3], form [k 5] and rays [3 n] into out f32 [k n]; cones from n_smooth on."""
    a, b, c, low, high = form.astype(np.float64).T
    x, y, z = origin.T
    slope = c * z + b / 2
    # The half-linear term of the quadratic is linear in the ray, so it comes out of the same product as the local ray.
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
    hit = root > 0
    np.sqrt(np.maximum(root, 0, out=root), out=root)
    scale = np.reciprocal(square)
    near = np.negative(linear, out=linear)
    far = near + root
    near -= root
    near *= scale
    far *= scale
    if n_smooth < len(form):
        # A ray steeper than the cone meets both nappes: inside is beyond the roots, towards the lower nappe.
        cone = slice(n_smooth, None)
        steep, down = square[cone] < 0, inverse[cone] < 0
        first, last = np.minimum(near[cone], far[cone]), np.maximum(near[cone], far[cone])
        near[cone] = np.where(steep, np.where(down, last, -np.inf), first)
        far[cone] = np.where(steep, np.where(down, np.inf, first), last)
    to_low = inverse * (low - z).astype(np.float32)[:, None]
    to_high = np.multiply(inverse, (high - z).astype(np.float32)[:, None], out=inverse)
    np.maximum(near, np.minimum(to_low, to_high, out=dy), out=near)
    np.minimum(far, np.maximum(to_low, to_high, out=dz), out=far)
    hit &= near < far
    hit &= near > 0
    out.fill(np.inf)
    np.copyto(out, near, where=hit)


def _enter_boxes(matrix: np.ndarray, origin: np.ndarray, rays: np.ndarray, out: np.ndarray) -> None:
    inverse = (matrix.transpose(1, 0, 2).reshape(-1, 3).astype(np.float32) @ rays).reshape(
        3, len(origin), -1
    )
    inverse += _TINY
    np.reciprocal(inverse, out=inverse)
    middle = inverse * -origin.T.astype(np.float32)[:, :, None]
    reach = np.abs(inverse, out=inverse)
    near = np.maximum.reduce(middle - reach, axis=0)
    middle += reach
    far = np.minimum.reduce(middle, axis=0)
    hit = near < far
    hit &= near > 0
    out.fill(np.inf)
    np.copyto(out, near, where=hit)


def _enter_tents(
    matrix: np.ndarray, origin: np.ndarray, form: np.ndarray, rays: np.ndarray, out: np.ndarray
) -> None:
    planes, limits = _tent_planes(form)
    normal = np.einsum("kpi,kij->pkj", planes, matrix)
    room = (limits - np.einsum("kpi,ki->kp", planes, origin)).T.astype(np.float32)[:, :, None]
    speed = (normal.reshape(-1, 3).astype(np.float32) @ rays).reshape(5, len(form), -1)
    speed += _TINY
    t = room / speed
    entering = speed < 0
    near = np.maximum.reduce(np.where(entering, t, -np.inf), axis=0)
    far = np.minimum.reduce(np.where(entering, np.inf, t), axis=0)
    hit = near < far
    hit &= near > 0
    out.fill(np.inf)
    np.copyto(out, near, where=hit)


def _tent_planes(form: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kx, ax, ky, ay, _ = form.astype(np.float64).T
    one, nil = np.ones_like(kx), np.zeros_like(kx)
    planes = np.array(
        [[one, nil, kx], [-one, nil, kx], [nil, one, ky], [nil, -one, ky], [nil, nil, -one]]
    )
    return planes.transpose(2, 0, 1), np.array([ax, ax, ay, ay, one]).T


def cast(
    scene: Scene, solids: Solids, resolution: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rays f32 [3 n] of unit length along the optical axis (so that they count depth), depth f32 [n], surface [n]."""
    axes = np.array(scene.camera.axes)
    focal = scene.camera.focal(resolution)
    rays = (axes.T / (focal, focal, 1.0)).astype(np.float32) @ _grid(resolution)
    depth, surface = _trace_shell(scene, rays)
    if solids.n:
        first = PANELS + len(scene.shell.panels)
        for row, index in zip(
            solids.entries(scene.camera.position, rays), solids.order, strict=True
        ):
            nearer = row < depth
            np.copyto(depth, row, where=nearer)
            np.copyto(surface, first + index, where=nearer)
    return rays, depth, surface


def _trace_shell(scene: Scene, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shell, origin = scene.shell, scene.camera.position
    middle = [(h + l) / 2 - o for l, h, o in zip(shell.low, shell.high, origin, strict=True)]
    reach = [(h - l) / 2 for l, h in zip(shell.low, shell.high, strict=True)]
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
    for number, panel in enumerate(shell.panels):
        on_wall = np.flatnonzero(surface == panel.wall)
        axis = 1 if panel.wall < 4 else 0
        along = rays[axis, on_wall] * depth[on_wall] + origin[axis]
        inside = (along > panel.along[0]) & (along < panel.along[1])
        inside &= (height[on_wall] > panel.height[0]) & (height[on_wall] < panel.height[1])
        surface[on_wall[inside]] = PANELS + number
    if shell.fence is not None:
        # The box is as high as it is wide out of doors; what shows above the fence is sky, and has no depth.
        above = height > shell.fence
        above &= surface != FLOOR
        np.copyto(surface, SKY, where=above)
        np.copyto(depth, FAR, where=above)
    return depth, surface

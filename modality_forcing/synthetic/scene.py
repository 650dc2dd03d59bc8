"""The parts of a scene: camera, room, solids, materials and light."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
FAR = np.float32(1e5)  # depth of the sky during computation: finite, to avoid warnings
TINY = 1e-20  # keeps reciprocals finite


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

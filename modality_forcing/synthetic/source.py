"""The built-in data set: procedural rooms and open ground, each scene a function of its index."""

from __future__ import annotations

import colorsys
import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import SupportsIndex

from modality_forcing.data.records import Record
from modality_forcing.errors import UserError
from modality_forcing.synthetic.captions import VIEW, caption
from modality_forcing.synthetic.objects import clearance, place_objects, sample_partitions
from modality_forcing.synthetic.raycast import trace
from modality_forcing.synthetic.scene import (
    Axes,
    Camera,
    Light,
    Material,
    Panel,
    Room,
    Scene,
    Triple,
)
from modality_forcing.synthetic.scene_rng import SceneRng, surface_material
from modality_forcing.synthetic.shading import PIXELS_AT_ONCE, render
from modality_forcing.synthetic.world import VARIED, WORLDS, Surface, World


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes; record i is a function of (world, seed, split, i) and the resolution alone.

    Records are square, `resolution` pixels a side, with metric z-depth at pixel centers; the sky is
    not valid. The content of a scene and its caption do not depend on the resolution. Raises
    UserError for an impossible count, resolution or seed, IndexError outside [0, count).

    world: a name of `world.WORLDS`.
    fields: optional fields of a record to fill; of these, "normals" are rendered.
    """

    seed: int = 0
    count: int = 1_000_000
    resolution: int = 64
    split: str = "train"
    fields: frozenset[str] = frozenset()
    world: str = "varied"

    def __post_init__(self) -> None:
        if self.count < 1 or self.resolution < 8 or self.seed < 0:
            what = f"scenes of count {self.count}, resolution {self.resolution}, seed {self.seed}"
            raise UserError(what, hint="need count >= 1, resolution >= 8, seed >= 0")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: SupportsIndex) -> Record:
        return self.records((index,))[0]

    def records(self, indices: Iterable[SupportsIndex]) -> list[Record]:
        """Returns many records, the same to the bit as one by one, in a fraction of the time."""
        numbers = [operator.index(index) for index in indices]
        for index in numbers:
            if not 0 <= index < self.count:
                raise IndexError(f"scene {index} of {self.count}")
        at_once = max(1, PIXELS_AT_ONCE // self.resolution**2)
        parts = (numbers[at : at + at_once] for at in range(0, len(numbers), at_once))
        return [record for part in parts for record in self._render(part)]

    def _render(self, indices: list[int]) -> Iterator[Record]:
        scenes = [
            sample_scene(self.seed, self.split, index, WORLDS[self.world]) for index in indices
        ]
        shown = render(scenes, self.resolution, normals="normals" in self.fields)
        small = shown.visible if self.resolution == VIEW else trace(scenes, VIEW)[1]
        for i, (index, scene) in enumerate(zip(indices, scenes, strict=True)):
            yield Record(
                image=shown.image[i],
                depth=shown.depth[i],
                valid=shown.valid[i],
                intrinsics=shown.intrinsics[i],
                unit="metric",
                caption=caption(scene, small[i]),
                source="scenes",
                id=f"{self.split}-{self.seed}-{index}",
                normals=None if shown.normals is None else shown.normals[i],
            )


def sample_scene(seed: int, split: str, index: int, world: World = VARIED) -> Scene:
    """Samples setting, camera, objects and light of scene (seed, split, index); meters, z up."""
    rng = SceneRng(seed, split, index)
    is_room = rng.bernoulli(0.55)
    camera_height = rng.uniform(0.4, 3.0)
    room = _sample_room(rng, world, camera_height) if is_room else _sample_ground(rng, world)
    camera = _sample_camera(rng, world, room, camera_height)
    objects = sample_partitions(rng, camera, room) if world.partitions else []
    fewest, most = world.objects
    count = fewest + int(rng.uniform(0, most - fewest + 0.99))
    place_objects(rng, camera, room, objects=objects, count=count, world=world)
    light = _sample_lamp(rng, camera, room) if is_room else _sample_sun(rng, camera)
    if is_room:
        return Scene(camera, tuple(objects), room, light, "room", wording=rng.uniform(0, 1))
    zenith = colorsys.hsv_to_rgb(
        rng.uniform(0.55, 0.62), rng.uniform(0.15, 0.5), rng.uniform(0.75, 0.95)
    )
    horizon = colorsys.hsv_to_rgb(
        rng.uniform(0.5, 0.62), rng.uniform(0.03, 0.12), rng.uniform(0.85, 0.97)
    )
    haze, wording = rng.log_uniform(10, 50), rng.uniform(0, 1)
    return Scene(camera, tuple(objects), room, light, "outdoors", (zenith, horizon), haze, wording)


def _sample_room(rng: SceneRng, world: World, camera_height: float) -> Room:
    width, length = rng.log_uniform(*world.width), rng.log_uniform(*world.length)
    height = max(rng.uniform(*world.height), camera_height + 0.25)
    low, high = (-width / 2, -length / 2, 0.0), (width / 2, length / 2, height)
    half = (width / 2, length / 2, height / 2)
    floor = _sample_surface(rng, half, world.floor)
    walls = _sample_surface(rng, half, world.wall)
    ceiling = _sample_surface(rng, half, world.ceiling)
    room = Room(low, high, floor, walls, ceiling)
    panels = tuple(
        _sample_panel(rng, room) for _ in range(int(rng.uniform(0, world.max_panels + 0.99)))
    )
    return Room(low, high, floor, walls, ceiling, panels)


def _sample_surface(rng: SceneRng, half: Triple, surface: Surface) -> Material:
    return surface_material(rng, half, rng.choice(surface.patterns), surface.tones)


def _sample_panel(rng: SceneRng, room: Room) -> Panel:
    """Samples a door or a window."""
    wall = 2 + int(rng.uniform(0, 3.99))
    axis = 1 if wall < 4 else 0
    is_door = rng.bernoulli(0.5)
    width = rng.uniform(0.8, 1.1) if is_door else rng.uniform(0.7, 2.0)
    low, high = room.low[axis], room.high[axis]
    start = rng.uniform(low, max(low, high - width))
    height = (0.0, 2.0) if is_door else (rng.uniform(0.7, 1.1), rng.uniform(1.5, 2.1))
    if is_door:
        rgb = colorsys.hsv_to_rgb(0.08, 0.35, rng.uniform(0.25, 0.5))
    else:
        rgb = colorsys.hsv_to_rgb(0.57, 0.15, rng.uniform(0.8, 1.0))
    return Panel(wall, (start, start + width), height, Material(rgb))


def _sample_ground(rng: SceneRng, world: World) -> Room:
    west, south, east, north = (rng.log_uniform(*world.extent) for _ in range(4))
    fence = rng.log_uniform(0.7, 9) if rng.bernoulli(world.fenced) else 0.0
    half = ((west + east) / 2, (south + north) / 2, 100.0)
    ground = _sample_surface(rng, half, world.ground)
    walls = _sample_surface(rng, half, world.fence)
    return Room((-west, -south, 0.0), (east, north, 200.0), ground, walls, ground, (), fence)


def _sample_camera(rng: SceneRng, world: World, room: Room, height: float) -> Camera:
    fov = rng.uniform(*world.fov)
    pitch, roll = math.radians(rng.uniform(*world.pitch)), math.radians(rng.uniform(*world.roll))
    x = y = 0.0
    if room.fence is None:
        x = rng.uniform(room.low[0] + 0.4, room.high[0] - 0.4)
        y = rng.uniform(room.low[1] + 0.4, room.high[1] - 0.4)
    best_yaw, best_distance = 0.0, -1.0
    for _ in range(world.directions):
        yaw = rng.uniform(0, 2 * math.pi)
        distance = min(clearance(room, (x, y), yaw + turn) for turn in (-0.3, 0, 0.3))
        if distance > best_distance:
            best_yaw, best_distance = yaw, distance
        if best_distance > world.view:
            break
    return Camera((x, y, height), camera_axes(best_yaw, pitch, roll), fov)


def camera_axes(yaw: float, pitch: float, roll: float) -> Axes:
    """Returns right, down and forward for yaw (from x to y), upward pitch and roll, in radians."""
    sy, cy, sp, cp, sr, cr = (f(a) for a in (yaw, pitch, roll) for f in (math.sin, math.cos))
    right, down, forward = (sy, -cy, 0.0), (cy * sp, sy * sp, -cp), (cy * cp, sy * cp, sp)
    (rx, ry, rz), (dx, dy, dz) = right, down
    rolled_right = (cr * rx + sr * dx, cr * ry + sr * dy, cr * rz + sr * dz)
    rolled_down = (cr * dx - sr * rx, cr * dy - sr * ry, cr * dz - sr * rz)
    return rolled_right, rolled_down, forward


def _sample_lamp(rng: SceneRng, camera: Camera, room: Room) -> Light:
    """Samples a lamp to one side of the camera and above it, so that its shadows are in view."""
    right, down, _ = camera.axes
    aside, up = rng.choice((-1, 1)) * rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.6)
    x, y, z = (
        min(max(camera.position[i] + aside * right[i] - up * down[i], room.low[i] + 0.1), limit)
        for i, limit in enumerate(high - 0.1 for high in room.high)
    )
    strength, ambient = rng.uniform(0.95, 1.1), rng.uniform(0.22, 0.3)
    return Light((x, y, z), strength, ambient, reach=rng.log_uniform(3.0, 5.0))


def _sample_sun(rng: SceneRng, camera: Camera) -> Light:
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(25, 70))
    level = 80 * math.cos(elevation)
    x = camera.position[0] + level * math.cos(azimuth)
    y = camera.position[1] + level * math.sin(azimuth)
    strength, ambient = rng.uniform(0.6, 0.8), rng.uniform(0.4, 0.52)
    return Light((x, y, 80 * math.sin(elevation)), strength, ambient, reach=1e4)

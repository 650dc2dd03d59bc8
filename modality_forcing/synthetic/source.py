"""The embedded default data: a procedural world of rooms and open ground, each scene drawn from its index."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

from modality_forcing.data.records import Record
from modality_forcing.errors import UserError
from modality_forcing.synthetic.captions import caption
from modality_forcing.synthetic.objects import clearance, furnish, partitions
from modality_forcing.synthetic.raycast import Camera, Light, Paint, Panel, Scene, Shell, Triple
from modality_forcing.synthetic.scene_rng import (
    CEILING,
    FENCE,
    FLOOR,
    GROUND,
    WALL,
    Draw,
    surface_paint,
)
from modality_forcing.synthetic.shading import render


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes as a random-access source: record i is a pure function of (seed, split, i) and the resolution.

    Records are square, `resolution` pixels a side, with metric z-depth at pixel centres; the sky is not valid. What is
    in a scene and its caption do not depend on the resolution. Raises UserError for a count or resolution that is no
    size, IndexError outside [0, count).
    """

    seed: int = 0
    count: int = 1_000_000
    resolution: int = 64
    split: str = "train"

    def __post_init__(self) -> None:
        if self.count < 1 or self.resolution < 8 or self.seed < 0:
            what = f"scenes of count {self.count}, resolution {self.resolution}, seed {self.seed}"
            raise UserError(what, hint="need count >= 1, resolution >= 8, seed >= 0")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        drawn = scene(self.seed, self.split, int(index))
        image, depth, valid, intrinsics, visible = render(drawn, self.resolution)
        return Record(
            image=image,
            depth=depth,
            valid=valid,
            intrinsics=intrinsics,
            unit="metric",
            caption=caption(drawn, visible),
            source="scenes",
            id=f"{self.split}-{self.seed}-{int(index)}",
        )


def scene(seed: int, split: str, index: int) -> Scene:
    """Draws the scene (seed, split, index): setting, camera, things and light, in metres, z up."""
    draw = Draw(seed, split, index)
    indoors = draw.chance(0.55)
    camera_height = draw.between(0.4, 3.0)
    shell = _room(draw, camera_height) if indoors else _grounds(draw)
    camera = _camera(draw, shell, camera_height)
    things = partitions(draw, camera, shell)
    furnish(draw, camera, shell, things, 2 + int(draw.between(0, 5.99)))
    light = _lamp(draw, camera, shell) if indoors else _sun(draw, camera)
    if indoors:
        return Scene(camera, tuple(things), shell, light, "room", wording=draw.between(0, 1))
    zenith = colorsys.hsv_to_rgb(
        draw.between(0.55, 0.62), draw.between(0.15, 0.5), draw.between(0.75, 0.95)
    )
    horizon = colorsys.hsv_to_rgb(
        draw.between(0.5, 0.62), draw.between(0.03, 0.12), draw.between(0.85, 0.97)
    )
    sky, haze = (zenith, horizon), draw.spread(10, 50)
    return Scene(camera, tuple(things), shell, light, "outdoors", sky, haze, draw.between(0, 1))


def _room(draw: Draw, camera_height: float) -> Shell:
    width, length = draw.spread(2.8, 10), draw.spread(3.2, 14)
    height = max(draw.between(2.2, 4.2), camera_height + 0.25)
    low, high = (-width / 2, -length / 2, 0.0), (width / 2, length / 2, height)
    half = (width / 2, length / 2, height / 2)
    floor = surface_paint(
        draw, half, draw.pick(("checks", "checks", "stripes", "blots", "plain")), FLOOR
    )
    walls = surface_paint(
        draw, half, draw.pick(("plain", "plain", "stripes", "blots", "shade")), WALL
    )
    ceiling = surface_paint(draw, half, draw.pick(("plain", "plain", "checks")), CEILING)
    panels = tuple(_panel(draw, low, high) for _ in range(int(draw.between(0, 3.99))))
    return Shell(low, high, floor, walls, ceiling, panels)


def _panel(draw: Draw, low: Triple, high: Triple) -> Panel:
    wall = 2 + int(draw.between(0, 3.99))
    axis = 1 if wall < 4 else 0
    door = draw.chance(0.5)
    width = draw.between(0.8, 1.1) if door else draw.between(0.7, 2.0)
    start = draw.between(low[axis], max(low[axis], high[axis] - width))
    span = (0.0, 2.0) if door else (draw.between(0.7, 1.1), draw.between(1.5, 2.1))
    tone = draw.between(0.25, 0.5) if door else draw.between(0.8, 1.0)
    paint = Paint(colorsys.hsv_to_rgb(0.08 if door else 0.57, 0.35 if door else 0.15, tone))
    return Panel(wall, (start, start + width), span, paint)


def _grounds(draw: Draw) -> Shell:
    reach = [draw.spread(5, 45) for _ in range(4)]
    fence = draw.spread(0.7, 9) if draw.chance(0.75) else 0.0
    low, high = (-reach[0], -reach[1], 0.0), (reach[2], reach[3], 200.0)
    half = ((reach[0] + reach[2]) / 2, (reach[1] + reach[3]) / 2, 100.0)
    ground = surface_paint(
        draw, half, draw.pick(("checks", "blots", "blots", "stripes", "plain")), GROUND
    )
    walls = surface_paint(draw, half, draw.pick(("plain", "blots", "stripes", "checks")), FENCE)
    return Shell(low, high, ground, walls, ground, (), fence)


def _camera(draw: Draw, shell: Shell, height: float) -> Camera:
    fov = draw.between(50, 80)
    pitch, roll = math.radians(draw.between(-32, 10)), math.radians(draw.between(-8, 8))
    if shell.fence is None:
        x, y = (
            draw.between(low + 0.4, high - 0.4)
            for low, high in zip(shell.low[:2], shell.high[:2], strict=True)
        )
    else:
        x = y = 0.0
    yaw, clear = 0.0, -1.0
    for _ in range(4):
        guess = draw.between(0, 2 * math.pi)
        ahead = min(clearance(shell, (x, y), guess + turn) for turn in (-0.3, 0, 0.3))
        if ahead > clear:
            yaw, clear = guess, ahead
        if clear > 2.5:
            break
    return Camera((x, y, height), camera_axes(yaw, pitch, roll), fov)


def camera_axes(yaw: float, pitch: float, roll: float) -> tuple[Triple, Triple, Triple]:
    """Right, down and forward of a camera that looks along yaw (from x towards y) and up by pitch; radians."""
    sy, cy, sp, cp, sr, cr = (f(a) for a in (yaw, pitch, roll) for f in (math.sin, math.cos))
    right, down, forward = (sy, -cy, 0.0), (cy * sp, sy * sp, -cp), (cy * cp, sy * cp, sp)
    turned = tuple(cr * r + sr * d for r, d in zip(right, down, strict=True))
    lowered = tuple(cr * d - sr * r for r, d in zip(right, down, strict=True))
    return turned, lowered, forward  # pyright: ignore[reportReturnType] - zip forgets the length


def _lamp(draw: Draw, camera: Camera, shell: Shell) -> Light:
    """A lamp carried beside and above the camera: its light falls off with distance, its shadows stay in view."""
    right, down, _ = camera.axes
    aside, up = draw.pick((-1, 1)) * draw.between(0.3, 0.7), draw.between(0.2, 0.6)
    aim = [p + aside * r - up * d for p, r, d in zip(camera.position, right, down, strict=True)]
    x, y, z = (
        min(max(a, low + 0.1), high - 0.1)
        for a, low, high in zip(aim, shell.low, shell.high, strict=True)
    )
    return Light((x, y, z), draw.between(0.95, 1.1), draw.between(0.22, 0.3), draw.spread(3.0, 5.0))


def _sun(draw: Draw, camera: Camera) -> Light:
    azimuth, elevation = draw.between(0, 2 * math.pi), math.radians(draw.between(25, 70))
    level = 80 * math.cos(elevation)
    x, y = (
        camera.position[0] + level * math.cos(azimuth),
        camera.position[1] + level * math.sin(azimuth),
    )
    return Light(
        (x, y, 80 * math.sin(elevation)), draw.between(0.6, 0.8), draw.between(0.4, 0.52), 1e4
    )

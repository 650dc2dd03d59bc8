"""The embedded default data: a procedural world of rooms and open ground, each scene drawn from its index."""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from modality_forcing.data.captions import caption
from modality_forcing.data.raycast import Camera, Light, Paint, Panel, Scene, Shell, Thing, Triple
from modality_forcing.data.records import Record
from modality_forcing.data.shading import render
from modality_forcing.errors import UserError

__all__ = ["COLOURS", "KINDS", "Scene", "Scenes", "render", "scene"]

COLOURS: dict[str, Triple] = {
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
_LEVEL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_FLAT_TOPPED = ("box", "cylinder")
_T = TypeVar("_T")

Tones = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # ranges of hue, saturation, value

# As in most places, floors are warm and dark, ceilings pale, grounds green to brown. All are muted, so that a strong
# colour always belongs to a thing that the caption may name.
FLOOR: Tones = ((0.02, 0.12), (0.2, 0.3), (0.4, 0.65))
WALL: Tones = ((0.45, 0.8), (0.0, 0.2), (0.6, 0.85))
CEILING: Tones = ((0.1, 0.2), (0.0, 0.08), (0.88, 0.98))
GROUND: Tones = ((0.1, 0.32), (0.15, 0.3), (0.4, 0.65))
FENCE: Tones = ((0.45, 0.8), (0.0, 0.2), (0.5, 0.75))


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
            raise UserError(what, mend="need count >= 1, resolution >= 8, seed >= 0")

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
    draw = _Draw(seed, split, index)
    indoors = draw.chance(0.55)
    camera_height = draw.between(0.4, 3.0)
    shell = _room(draw, camera_height) if indoors else _grounds(draw)
    camera = _camera(draw, shell, camera_height)
    things = _walls(draw, camera, shell)
    _furnish(draw, camera, shell, things, 2 + int(draw.between(0, 5.99)))
    light = _lamp(draw, camera, shell) if indoors else _sun(draw, camera)
    if indoors:
        return Scene(camera, tuple(things), shell, light, "room", wording=draw.between(0, 1))
    zenith = colorsys.hsv_to_rgb(draw.between(0.55, 0.62), draw.between(0.15, 0.5), draw.between(0.75, 0.95))
    horizon = colorsys.hsv_to_rgb(draw.between(0.5, 0.62), draw.between(0.03, 0.12), draw.between(0.85, 0.97))
    sky, haze = (zenith, horizon), draw.spread(10, 50)
    return Scene(camera, tuple(things), shell, light, "outdoors", sky, haze, draw.between(0, 1))


class _Draw:
    """Uniform numbers for one scene, drawn in one call, with the few distributions the world needs."""

    def __init__(self, seed: int, split: str, index: int):
        entropy = np.random.SeedSequence((seed, zlib.crc32(split.encode()), index))
        self._rng = np.random.Generator(np.random.PCG64(entropy))
        self._numbers: Iterator[float] = iter(())

    def _next(self) -> float:
        for number in self._numbers:
            return number
        self._numbers = iter(self._rng.random(512).tolist())
        return next(self._numbers)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._next()

    def spread(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return low * (high / low) ** self._next()

    def chance(self, probability: float) -> bool:
        return self._next() < probability

    def pick(self, options: Sequence[_T]) -> _T:
        return options[int(self._next() * len(options))]


def _room(draw: _Draw, camera_height: float) -> Shell:
    width, length = draw.spread(2.8, 10), draw.spread(3.2, 14)
    height = max(draw.between(2.2, 4.2), camera_height + 0.25)
    low, high = (-width / 2, -length / 2, 0.0), (width / 2, length / 2, height)
    half = (width / 2, length / 2, height / 2)
    floor = _surface_paint(draw, half, draw.pick(("checks", "checks", "stripes", "blots", "plain")), FLOOR)
    walls = _surface_paint(draw, half, draw.pick(("plain", "plain", "stripes", "blots", "shade")), WALL)
    ceiling = _surface_paint(draw, half, draw.pick(("plain", "plain", "checks")), CEILING)
    panels = tuple(_panel(draw, low, high) for _ in range(int(draw.between(0, 3.99))))
    return Shell(low, high, floor, walls, ceiling, panels)


def _panel(draw: _Draw, low: Triple, high: Triple) -> Panel:
    wall = 2 + int(draw.between(0, 3.99))
    axis = 1 if wall < 4 else 0
    door = draw.chance(0.5)
    width = draw.between(0.8, 1.1) if door else draw.between(0.7, 2.0)
    start = draw.between(low[axis], max(low[axis], high[axis] - width))
    span = (0.0, 2.0) if door else (draw.between(0.7, 1.1), draw.between(1.5, 2.1))
    tone = draw.between(0.25, 0.5) if door else draw.between(0.8, 1.0)
    paint = Paint(colorsys.hsv_to_rgb(0.08 if door else 0.57, 0.35 if door else 0.15, tone))
    return Panel(wall, (start, start + width), span, paint)


def _grounds(draw: _Draw) -> Shell:
    reach = [draw.spread(5, 45) for _ in range(4)]
    fence = draw.spread(0.7, 9) if draw.chance(0.75) else 0.0
    low, high = (-reach[0], -reach[1], 0.0), (reach[2], reach[3], 200.0)
    half = ((reach[0] + reach[2]) / 2, (reach[1] + reach[3]) / 2, 100.0)
    ground = _surface_paint(draw, half, draw.pick(("checks", "blots", "blots", "stripes", "plain")), GROUND)
    walls = _surface_paint(draw, half, draw.pick(("plain", "blots", "stripes", "checks")), FENCE)
    return Shell(low, high, ground, walls, ground, (), fence)


def _surface_paint(draw: _Draw, half: Triple, pattern: str, tones: Tones) -> Paint:
    hue, saturation, value = (draw.between(*span) for span in tones)
    tone = colorsys.hsv_to_rgb(hue, saturation, value)
    return _paint(draw, tone, half, pattern, draw.spread(0.6, 2.5))


def _paint(draw: _Draw, rgb: Triple, half: Triple, pattern: str, per_metre: float) -> Paint:
    contrast = draw.between(0.2, 0.45)
    x, y, z = (max(1.0, round(extent * per_metre)) for extent in half)
    if pattern == "checks":
        return Paint(rgb, contrast, 5.0, (x, y, z), per_metre=per_metre)
    if pattern == "stripes":
        cells = ((x, 0.0, 0.0), (0.0, y, 0.0), (0.0, 0.0, z))[int(draw.between(0, 2.99))]
        return Paint(rgb, contrast, 4.0, cells, per_metre=per_metre)
    if pattern == "blots":
        cells = (0.7 * half[0] * per_metre, 0.7 * half[1] * per_metre, 0.7 * half[2] * per_metre)
        return Paint(rgb, 0.7 * contrast, 0.6, cells, draw.between(0, 6), draw.between(0.8, 2.0), per_metre)
    if pattern == "shade":
        return Paint(rgb, contrast, 0.5, (0.0, 0.0, 0.5), -math.pi / 2)
    return Paint(rgb)


def _camera(draw: _Draw, shell: Shell, height: float) -> Camera:
    fov = draw.between(50, 80)
    pitch, roll = math.radians(draw.between(-32, 10)), math.radians(draw.between(-8, 8))
    if shell.fence is None:
        x, y = (draw.between(low + 0.4, high - 0.4) for low, high in zip(shell.low[:2], shell.high[:2], strict=True))
    else:
        x = y = 0.0
    yaw, clear = 0.0, -1.0
    for _ in range(4):
        guess = draw.between(0, 2 * math.pi)
        ahead = min(_clearance(shell, (x, y), guess + turn) for turn in (-0.3, 0, 0.3))
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


def _clearance(shell: Shell, at: tuple[float, float], yaw: float) -> float:
    """Level distance to the shell's wall in a direction."""
    heading = (math.cos(yaw), math.sin(yaw))
    ways = [
        ((shell.high[axis] if step > 0 else shell.low[axis]) - at[axis]) / step
        for axis, step in enumerate(heading)
        if abs(step) > 1e-6
    ]
    return min(ways)


def _yaw_axes(yaw: float) -> tuple[Triple, Triple, Triple]:
    s, c = math.sin(yaw), math.cos(yaw)
    return (c, s, 0.0), (-s, c, 0.0), (0.0, 0.0, 1.0)


def _walls(draw: _Draw, camera: Camera, shell: Shell) -> list[Thing]:
    """At most one free-standing partition or pillar, part of the setting, to break up the view."""
    things: list[Thing] = []
    for _ in range(int(draw.between(0, 1.5))):
        z, across = draw.spread(1.6, 12), draw.between(-1.2, 1.2)
        x, y = _ahead(camera, z, across * math.tan(math.radians(camera.fov) / 2) * z)
        wide, high = draw.spread(0.25, 2.4), draw.spread(0.7, 4.5) / 2
        half = (wide, draw.between(0.08, 0.3), min(high, shell.high[2] / 2))
        paint = _surface_paint(draw, half, draw.pick(("plain", "checks", "stripes", "blots")), WALL)
        away = math.hypot(x - camera.position[0], y - camera.position[1])
        inside = all(low < at < high for at, low, high in zip((x, y), shell.low, shell.high, strict=False))
        if inside and away > math.hypot(*half[:2]) + 0.6:
            things.append(Thing("wall", "", (x, y, half[2]), half, _yaw_axes(draw.between(0, math.pi)), paint))
    return things


def _ahead(camera: Camera, z: float, aside: float) -> tuple[float, float]:
    """The level position z metres ahead of the camera and `aside` to its right, as if it stood upright."""
    forward = camera.axes[2]
    level = math.hypot(forward[0], forward[1])
    fx, fy = forward[0] / level, forward[1] / level
    return camera.position[0] + fx * z + fy * aside, camera.position[1] + fy * z - fx * aside


def _furnish(draw: _Draw, camera: Camera, shell: Shell, things: list[Thing], wanted: int) -> None:
    start = len(things)
    for _ in range(6 * wanted):
        if len(things) - start == wanted:
            return
        bearers = [i for i in range(start, len(things)) if things[i].kind in _FLAT_TOPPED and things[i].on < 0]
        bearers = [i for i in bearers if things[i].axes[2] == _LEVEL[2] and min(things[i].half[:2]) > 0.12]
        if bearers and draw.chance(0.4):
            _stack(draw, things, draw.pick(bearers))
        else:
            _stand(draw, camera, shell, things)


def _thing(draw: _Draw, size: float, tumble: bool) -> Thing:
    """A thing of a diameter in metres, centred at the origin; only one that floats may be tumbled."""
    kind, colour = draw.pick(KINDS), draw.pick(tuple(COLOURS))
    r, tall = size / 2, draw.between(0.7, 1.5)
    turn = _yaw_axes(draw.between(0, 2 * math.pi))
    half = (r, r, r * tall)
    if kind == "sphere":
        half = (r, r, r)
    elif kind == "egg":
        half = (r * 0.65, r * 0.65, r)
    elif kind == "dome":
        half = (r, r, r * draw.between(0.35, 0.5))
    elif kind == "disc":
        half = (r, r, r * draw.between(0.08, 0.2))
    elif kind in ("box", "prism"):
        half = (r * draw.between(0.55, 1), r * draw.between(0.55, 1), r * draw.between(0.5, 1.3))
    if tumble or (kind in ("egg", "disc", "cylinder") and draw.chance(0.5)):
        lean = draw.between(-1.2, 1.2) if tumble or kind == "egg" else math.pi / 2
        (x, y, z), s, c = turn, math.sin(lean), math.cos(lean)
        turn = (
            x,
            tuple(c * a + s * b for a, b in zip(y, z, strict=True)),
            tuple(c * b - s * a for a, b in zip(y, z, strict=True)),
        )
    rgb = tuple(channel * draw.between(0.93, 1) for channel in COLOURS[colour])
    pattern = draw.pick(("plain", "plain", "checks", "stripes", "blots", "shade"))
    paint = _paint(draw, rgb, half, pattern, draw.between(1.5, 4) / size)  # pyright: ignore[reportArgumentType]
    return Thing(kind, colour, (0.0, 0.0, 0.0), half, turn, paint)  # pyright: ignore[reportArgumentType]


def _rise(thing: Thing) -> float:
    """Height of the centre above the ground it rests on."""
    parts = [extent * abs(axis[2]) for extent, axis in zip(thing.half, thing.axes, strict=True)]
    if thing.kind in ("sphere", "egg"):
        return math.hypot(*parts)
    if thing.kind in ("cylinder", "disc"):
        return math.hypot(parts[0], parts[1]) + parts[2]
    return sum(parts)


def _moved(thing: Thing, position: Triple, on: int = -1) -> Thing:
    return Thing(thing.kind, thing.colour, position, thing.half, thing.axes, thing.paint, on)


def _stand(draw: _Draw, camera: Camera, shell: Shell, things: list[Thing]) -> None:
    """Puts one more thing on the ground, or in the air, where the camera sees it; gives up where there is no room."""
    spread = math.tan(math.radians(camera.fov) / 2)
    slope = camera.axes[2][2] / math.hypot(*camera.axes[2][:2])
    near, far = _ground_in_view(camera.position[2] - 0.3, slope, 0.85 * spread)
    heading = math.atan2(camera.axes[2][1], camera.axes[2][0])
    near, far = max(near, 1.2), min(far, 9.0, max(1.5, _clearance(shell, camera.position[:2], heading)))
    floats = near >= far or draw.chance(0.12)
    z = draw.spread(1.2, max(2.0, far)) if floats else draw.spread(near, far)
    thing = _thing(draw, min(max(z * draw.spread(0.15, 0.7), 0.2), 2.0), tumble=floats)
    across, upward = draw.between(-0.85, 0.85), draw.between(-0.7, 0.6)
    x, y = _ahead(camera, z, across * spread * z)
    reach, height = math.hypot(*thing.half[:2]), _rise(thing)
    if floats:
        aim = camera.position[2] + z * (slope + upward * spread)
        height = max(height, min(aim, shell.high[2] - height - 0.05))
    for axis, at in enumerate((x, y)):
        if not shell.low[axis] + reach < at < shell.high[axis] - reach:
            return
    if math.dist((x, y, height), camera.position) < max(thing.half) * 1.75 + 0.5:
        return
    for other in things:
        gap = math.dist((x, y, height), other.position)
        if gap < 0.75 * (max(thing.half) + max(other.half)):
            return
    things.append(_moved(thing, (x, y, height)))


def _ground_in_view(height: float, slope: float, spread: float) -> tuple[float, float]:
    """Nearest and farthest distance at which the middle column sees what lies `height` below the camera."""
    lower, upper = spread - slope, -slope - spread
    near = height / lower if lower > 0 else math.inf
    far = height / upper if upper > 0 else math.inf
    return max(near, 0.0), max(far, 0.0)


def _stack(draw: _Draw, things: list[Thing], bearer: int) -> None:
    below = things[bearer]
    if any(thing.on == bearer for thing in things):
        return
    room = min(below.half[:2])
    thing = _thing(draw, room * draw.between(0.9, 1.6), tumble=False)
    x, y = (at + room * draw.between(-0.25, 0.25) for at in below.position[:2])
    top = below.position[2] + below.half[2]
    things.append(_moved(thing, (x, y, top + _rise(thing)), on=bearer))


def _lamp(draw: _Draw, camera: Camera, shell: Shell) -> Light:
    """A lamp carried beside and above the camera: its light falls off with distance, its shadows stay in view."""
    right, down, _ = camera.axes
    aside, up = draw.pick((-1, 1)) * draw.between(0.3, 0.7), draw.between(0.2, 0.6)
    aim = [p + aside * r - up * d for p, r, d in zip(camera.position, right, down, strict=True)]
    x, y, z = (min(max(a, low + 0.1), high - 0.1) for a, low, high in zip(aim, shell.low, shell.high, strict=True))
    return Light((x, y, z), draw.between(0.95, 1.1), draw.between(0.22, 0.3), draw.spread(3.0, 5.0))


def _sun(draw: _Draw, camera: Camera) -> Light:
    azimuth, elevation = draw.between(0, 2 * math.pi), math.radians(draw.between(25, 70))
    level = 80 * math.cos(elevation)
    x, y = camera.position[0] + level * math.cos(azimuth), camera.position[1] + level * math.sin(azimuth)
    return Light((x, y, 80 * math.sin(elevation)), draw.between(0.6, 0.8), draw.between(0.4, 0.52), 1e4)

"""The things of a procedural scene: of which kind and colour, and where each stands, floats or lies on another."""

from __future__ import annotations

import math

from modality_forcing.synthetic.raycast import Camera, Shell, Thing, Triple
from modality_forcing.synthetic.scene_rng import WALL, Draw, patterned, surface_paint

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


def partitions(draw: Draw, camera: Camera, shell: Shell) -> list[Thing]:
    """Returns at most one free-standing partition or pillar, part of the setting, to break up the view."""
    things: list[Thing] = []
    for _ in range(int(draw.between(0, 1.5))):
        z, across = draw.spread(1.6, 12), draw.between(-1.2, 1.2)
        x, y = _ahead(camera, z, across * math.tan(math.radians(camera.fov) / 2) * z)
        wide, high = draw.spread(0.25, 2.4), draw.spread(0.7, 4.5) / 2
        half = (wide, draw.between(0.08, 0.3), min(high, shell.high[2] / 2))
        paint = surface_paint(draw, half, draw.pick(("plain", "checks", "stripes", "blots")), WALL)
        away = math.hypot(x - camera.position[0], y - camera.position[1])
        inside = all(
            low < at < high for at, low, high in zip((x, y), shell.low, shell.high, strict=False)
        )
        if inside and away > math.hypot(*half[:2]) + 0.6:
            things.append(
                Thing("wall", "", (x, y, half[2]), half, _yaw_axes(draw.between(0, math.pi)), paint)
            )
    return things


def furnish(draw: Draw, camera: Camera, shell: Shell, things: list[Thing], wanted: int) -> None:
    """Adds up to so many things, as far as there is room for them in view: on the ground, in the air, or on another."""
    start = len(things)
    for _ in range(6 * wanted):
        if len(things) - start == wanted:
            return
        bearers = [
            i
            for i in range(start, len(things))
            if things[i].kind in _FLAT_TOPPED and things[i].on < 0
        ]
        bearers = [
            i for i in bearers if things[i].axes[2] == _LEVEL[2] and min(things[i].half[:2]) > 0.12
        ]
        if bearers and draw.chance(0.4):
            _stack(draw, things, draw.pick(bearers))
        else:
            _stand(draw, camera, shell, things)


def _thing(draw: Draw, size: float, tumble: bool) -> Thing:
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
    paint = patterned(draw, rgb, half, pattern, draw.between(1.5, 4) / size)  # pyright: ignore[reportArgumentType]
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


def _stand(draw: Draw, camera: Camera, shell: Shell, things: list[Thing]) -> None:
    """Puts one more thing on the ground, or in the air, where the camera sees it; gives up where there is no room."""
    spread = math.tan(math.radians(camera.fov) / 2)
    slope = camera.axes[2][2] / math.hypot(*camera.axes[2][:2])
    near, far = _ground_in_view(camera.position[2] - 0.3, slope, 0.85 * spread)
    heading = math.atan2(camera.axes[2][1], camera.axes[2][0])
    near, far = (
        max(near, 1.2),
        min(far, 9.0, max(1.5, clearance(shell, camera.position[:2], heading))),
    )
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


def _stack(draw: Draw, things: list[Thing], bearer: int) -> None:
    below = things[bearer]
    if any(thing.on == bearer for thing in things):
        return
    room = min(below.half[:2])
    thing = _thing(draw, room * draw.between(0.9, 1.6), tumble=False)
    x, y = (at + room * draw.between(-0.25, 0.25) for at in below.position[:2])
    top = below.position[2] + below.half[2]
    things.append(_moved(thing, (x, y, top + _rise(thing)), on=bearer))


def _ahead(camera: Camera, z: float, aside: float) -> tuple[float, float]:
    """The level position z metres ahead of the camera and `aside` to its right, as if it stood upright."""
    forward = camera.axes[2]
    level = math.hypot(forward[0], forward[1])
    fx, fy = forward[0] / level, forward[1] / level
    return camera.position[0] + fx * z + fy * aside, camera.position[1] + fy * z - fx * aside


def clearance(shell: Shell, at: tuple[float, float], yaw: float) -> float:
    """Returns the level distance to the shell's wall in a direction, metres; yaw in radians from x towards y."""
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

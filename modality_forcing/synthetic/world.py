"""The distributions that scenes are sampled from: a varied world, and a plain one."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]
Tones = tuple[Range, Range, Range]  # of hue, saturation, value

PATTERNS = ("plain", "plain", "checks", "stripes", "blots", "shade")  # of an object, equally likely


@dataclass(frozen=True)
class Surface:
    """The patterns of a kind of surface, equally likely, and its colors."""

    patterns: tuple[str, ...]
    tones: Tones


@dataclass(frozen=True)
class World:
    """The distribution of scenes. Ranges are in meters and degrees.

    Colors of surfaces are muted, so that a strong color always belongs to an object that the
    caption may name: floors warm and dark, ceilings pale, grounds green to brown.
    """

    objects: tuple[int, int] = (2, 7)
    object_patterns: tuple[str, ...] = PATTERNS
    size: Range = (0.15, 0.7)  # of an object, over its distance
    far: float = 9.0  # largest distance of an object
    floating: float = 0.12  # share of objects in the air
    partitions: bool = True  # a free-standing wall in some scenes
    max_panels: int = 3  # doors and windows of a room

    fov: Range = (50, 80)
    pitch: Range = (-32, 10)
    roll: Range = (-8, 8)
    view: float = 2.5  # distance of the wall ahead at which no further direction is tried
    directions: int = 4  # tried at most

    width: Range = (2.8, 10)
    length: Range = (3.2, 14)
    height: Range = (2.2, 4.2)
    extent: Range = (5, 45)  # of open ground, to each side
    fenced: float = 0.75  # share of open grounds

    floor: Surface = Surface(
        ("checks", "checks", "stripes", "blots", "plain"), ((0.02, 0.12), (0.2, 0.3), (0.4, 0.65))
    )
    wall: Surface = Surface(
        ("plain", "plain", "stripes", "blots", "shade"), ((0.45, 0.8), (0.0, 0.2), (0.6, 0.85))
    )
    ceiling: Surface = Surface(
        ("plain", "plain", "checks"), ((0.1, 0.2), (0.0, 0.08), (0.88, 0.98))
    )
    ground: Surface = Surface(
        ("checks", "blots", "blots", "stripes", "plain"), ((0.1, 0.32), (0.15, 0.3), (0.4, 0.65))
    )
    fence: Surface = Surface(
        ("plain", "blots", "stripes", "checks"), ((0.45, 0.8), (0.0, 0.2), (0.5, 0.75))
    )


VARIED = World()
_BARE = ("plain",)
PLAIN = World(
    objects=(1, 3),
    object_patterns=("plain", "plain", "plain", "plain", "plain", "shade"),
    size=(0.3, 0.7),
    far=5.0,
    floating=0.0,
    partitions=False,
    max_panels=0,
    fov=(65, 65),
    pitch=(-24, -6),
    roll=(0, 0),
    view=3.5,
    directions=8,
    width=(4, 8),
    length=(5, 10),
    height=(2.4, 3.2),
    extent=(12, 45),
    fenced=0.0,
    floor=Surface(_BARE, ((0.06, 0.09), (0.25, 0.35), (0.45, 0.6))),
    wall=Surface(_BARE, ((0.55, 0.65), (0.05, 0.15), (0.65, 0.8))),
    ceiling=Surface(_BARE, ((0.1, 0.2), (0.0, 0.05), (0.9, 0.97))),
    ground=Surface(_BARE, ((0.22, 0.3), (0.25, 0.35), (0.45, 0.6))),
    fence=Surface(_BARE, ((0.5, 0.6), (0.05, 0.15), (0.55, 0.65))),
)
"""Few, large objects of one color, on bare surfaces: what a short run can learn to generate."""

WORLDS = {"varied": VARIED, "plain": PLAIN}
"""By name, as in `data.world`."""

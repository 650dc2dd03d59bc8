"""Short captions of a scene, of which the picture is true: what is not clearly seen is not claimed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from modality_forcing.synthetic.raycast import Scene, Thing, trace

VIEW = 32  # pixels a side of the small view on which is decided what can be seen
CLEAR = 10  # pixels of that view which a thing needs before a caption may name it
ASIDE = (
    6  # pixels of that view between the middles of two things, one of which is left of the other
)
BEHIND = 1.3  # ratio of the depths of two things, one of which is behind the other
BIG, SMALL = 1.2, 0.4  # metres across
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLURALS = {"box": "boxes"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sight:
    """A thing as seen: its pixels in the small view, their mean column, the columns' span, its centre's depth."""

    thing: Thing
    index: int
    area: int
    column: float
    span: tuple[int, int]
    depth: float


@dataclass(frozen=True)
class View:
    """What can be seen: the clearly visible things, largest first, and those of which too little shows to speak of."""

    clear: tuple[Sight, ...]
    doubtful: tuple[Thing, ...]


def look(scene: Scene, visible: np.ndarray | None = None) -> View:
    """Measures the things in the small view; visible i16 [h w], as rendered at that size, saves casting it again."""
    if visible is None or visible.shape != (VIEW, VIEW):
        visible = trace(scene, VIEW)[1]
    count = len(scene.things)
    if not count:
        return View((), ())
    columns = np.bincount(
        (visible.astype(np.int64) + 1 + (count + 1) * np.arange(VIEW)).ravel(),
        minlength=VIEW * (count + 1),
    ).reshape(VIEW, count + 1)[:, 1:]
    areas, middles = columns.sum(axis=0).tolist(), (np.arange(VIEW) @ columns).tolist()
    clear, doubtful = [], []
    for index, (thing, area) in enumerate(zip(scene.things, areas, strict=True)):
        if not thing.named or not area:
            continue
        if area < CLEAR:
            doubtful.append(thing)
            continue
        seen = columns[:, index].nonzero()[0]
        span = (int(seen[0]), int(seen[-1]))
        clear.append(Sight(thing, index, area, middles[index] / area, span, depth_of(scene, thing)))
    return View(tuple(sorted(clear, key=lambda sight: -sight.area)), tuple(doubtful))


def depth_of(scene: Scene, thing: Thing) -> float:
    """Depth of a thing's centre along the optical axis, metres."""
    steps = zip(thing.position, scene.camera.position, scene.camera.axes[2], strict=True)
    return sum((at - eye) * axis for at, eye, axis in steps)


def caption(scene: Scene, visible: np.ndarray | None = None) -> str:
    """Says in a few words, the most telling first, what the picture of a scene shows.

    Names counts, colours, shapes, sizes and relations of clearly visible things, and the setting. scene.wording chooses
    the wording; nothing depends on the resolution of the picture.
    """
    view, choice = look(scene, visible), _Choice(scene.wording)
    place = choice.pick(
        ("in a room", "indoors") if scene.setting == "room" else ("outdoors", "outside")
    )
    if not view.clear:
        return _UNNAMED[scene.setting] if view.doubtful else f"nothing {place}"
    first = choice.pick(_ORDERS)
    for way in (*first, _one):
        said = way(view, choice)
        if said:
            return f"{said} {place}"
    raise AssertionError("one clear thing can always be named")


class _Choice:
    """Successive picks out of one number in [0, 1)."""

    def __init__(self, wording: float):
        self._rest = wording

    def pick(self, options: Sequence[_T]) -> _T:
        scaled = self._rest * len(options)
        number = min(int(scaled), len(options) - 1)
        self._rest = scaled - number
        return options[number]


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.kind}"


def _sized(thing: Thing) -> str:
    across = 2 * max(thing.half)
    size = "big " if across >= BIG else "small " if across <= SMALL else ""
    return _a(size + _name(thing))


def _one(view: View, choice: _Choice) -> str | None:
    return _sized(view.clear[0].thing)


def _list(view: View, choice: _Choice) -> str | None:
    names = [_a(_name(sight.thing)) for sight in view.clear[:3]]
    if len(set(names)) < len(names) or len(names) < 2:
        return None
    if len(names) == 3 and choice.pick((True, False)):
        return f"{names[0]}, {names[1]} and {names[2]}"
    return f"{names[0]} and {names[1]}"


def _count(view: View, choice: _Choice) -> str | None:
    """Equal things, counted: only where nothing half seen could be one more."""
    options = []
    for describe in (_name, lambda thing: thing.kind, lambda thing: f"{thing.colour} thing"):
        unsure = {describe(thing) for thing in view.doubtful}
        counts = Counter(describe(sight.thing) for sight in view.clear)
        options += [(words, n) for words, n in counts.items() if n > 1 and words not in unsure]
    if not options:
        return None
    words, n = choice.pick(options)
    before, _, noun = words.rpartition(" ")
    return " ".join(f"{NUMBERS[n]} {before} {PLURALS.get(noun, noun + 's')}".split())


def _total(view: View, choice: _Choice) -> str | None:
    if view.doubtful or len(view.clear) < 2:
        return None
    near = sorted(view.clear, key=lambda sight: sight.depth)
    said = f"{NUMBERS[len(near)]} things" if len(near) < len(NUMBERS) else "many things"
    if near[1].depth < 1.15 * near[0].depth:
        return said
    return f"{_a(_name(near[0].thing))} nearest, {said}"


def _relation(view: View, choice: _Choice) -> str | None:
    facts: dict[str, list[tuple[Sight, Sight]]] = {}
    for one in view.clear:
        for other in view.clear:
            for words in _relations(one, other) if _name(one.thing) != _name(other.thing) else ():
                facts.setdefault(words, []).append((one, other))
    if not facts:
        return None
    # First the kind of relation: else the frequent "left of" would be nearly all that is ever said.
    words = choice.pick(tuple(facts))
    one, other = choice.pick(facts[words])
    return f"{_a(_name(one.thing))} {words} {_a(_name(other.thing))}"


def _relations(one: Sight, other: Sight) -> list[str]:
    """What is clearly true of one thing in respect of another, as the camera sees them."""
    found = []
    if one.thing.on == other.index:
        found.append("on")
    if (
        one.span[1] < other.column
        and one.column < other.span[0]
        and other.column - one.column >= ASIDE
    ):
        found.append("left of")
    if (
        other.span[1] < one.column
        and other.column < one.span[0]
        and one.column - other.column >= ASIDE
    ):
        found.append("right of")
    if other.span[0] <= one.column <= other.span[1] or one.span[0] <= other.column <= one.span[1]:
        if other.depth > BEHIND * one.depth:
            found.append("in front of")
        if one.depth > BEHIND * other.depth:
            found.append("behind")
    return found


_UNNAMED = {"room": "a room", "outdoors": "open ground"}
_Way = Callable[[View, _Choice], str | None]
_ORDERS: tuple[tuple[_Way, ...], ...] = (
    (_relation, _list),
    (_relation, _count, _list),
    (_list,),
    (_count, _list),
    (_total, _relation),
    (_one,),
)

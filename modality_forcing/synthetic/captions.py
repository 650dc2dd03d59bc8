"""Short captions of a scene, which mention only clearly visible objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from modality_forcing.synthetic.raycast import trace
from modality_forcing.synthetic.scene import Scene, SceneObject

VIEW = 32  # pixels a side of the small view that decides what is visible
CLEAR = 10  # pixels of that view that an object needs before a caption may name it
ASIDE = 6  # pixels of that view between the centers of two objects, one left of the other
BEHIND = 1.3  # ratio of the depths of two objects, one behind the other
BIG, SMALL = 1.2, 0.4  # meters across
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLURALS = {"box": "boxes"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class VisibleObject:
    """An object in the small view."""

    obj: SceneObject
    index: int
    area: int  # pixels
    column: float  # mean
    span: tuple[int, int]  # of columns
    depth: float  # of its center


@dataclass(frozen=True)
class VisibleObjects:
    """The clearly visible objects, largest first, and those of which too little shows."""

    clear: tuple[VisibleObject, ...]
    unclear: tuple[SceneObject, ...]


def find_visible(scene: Scene, visible: np.ndarray | None = None) -> VisibleObjects:
    """Measures the objects in the small view.

    visible: i16 [h w] of a rendering; saves tracing the scene if it has the size of that view.
    """
    if visible is None or visible.shape != (VIEW, VIEW):
        visible = trace((scene,), VIEW)[1].reshape(VIEW, VIEW)
    count = len(scene.objects)
    if not count:
        return VisibleObjects((), ())
    # Pixels [view n] of each object in each column.
    bins = visible.astype(np.int64) + 1 + (count + 1) * np.arange(VIEW)
    pixels = np.bincount(bins.ravel(), minlength=VIEW * (count + 1))
    columns = pixels.reshape(VIEW, count + 1)[:, 1:]
    areas, moments = columns.sum(axis=0).tolist(), (np.arange(VIEW) @ columns).tolist()
    clear, unclear = [], []
    for index, (obj, area) in enumerate(zip(scene.objects, areas, strict=True)):
        if not obj.nameable or not area:
            continue
        if area < CLEAR:
            unclear.append(obj)
            continue
        occupied = columns[:, index].nonzero()[0]
        span = (int(occupied[0]), int(occupied[-1]))
        column, depth = moments[index] / area, center_depth(scene, obj)
        clear.append(VisibleObject(obj, index, area, column, span, depth))
    return VisibleObjects(tuple(sorted(clear, key=lambda one: -one.area)), tuple(unclear))


def center_depth(scene: Scene, obj: SceneObject) -> float:
    """Returns the depth of an object's center along the optical axis, meters."""
    steps = zip(obj.position, scene.camera.position, scene.camera.axes[2], strict=True)
    return sum((at - eye) * axis for at, eye, axis in steps)


def caption(scene: Scene, visible: np.ndarray | None = None) -> str:
    """Returns a caption of counts, colors, shapes, sizes or relations, and the setting.

    scene.wording chooses among the true captions; nothing depends on the resolution of the image.
    """
    view, choice = find_visible(scene, visible), _Choice(scene.wording)
    places = ("in a room", "indoors") if scene.setting == "room" else ("outdoors", "outside")
    place = choice.pick(places)
    if not view.clear:
        return _UNNAMED[scene.setting] if view.unclear else f"nothing {place}"
    for describe in (*choice.pick(_FORMS), _one):
        if description := describe(view, choice):
            return f"{description} {place}"
    raise AssertionError("one clear object can always be named")


class _Choice:
    """Successive picks from one number in [0, 1)."""

    def __init__(self, wording: float):
        self._rest = wording

    def pick(self, options: Sequence[_T]) -> _T:
        scaled = self._rest * len(options)
        number = min(int(scaled), len(options) - 1)
        self._rest = scaled - number
        return options[number]


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _name(obj: SceneObject) -> str:
    return f"{obj.color} {obj.kind}"


def _kind(obj: SceneObject) -> str:
    return obj.kind


def _colored_thing(obj: SceneObject) -> str:
    return f"{obj.color} thing"


def _sized(obj: SceneObject) -> str:
    across = 2 * max(obj.half)
    size = "big " if across >= BIG else "small " if across <= SMALL else ""
    return _a(size + _name(obj))


def _one(view: VisibleObjects, choice: _Choice) -> str | None:
    return _sized(view.clear[0].obj)


def _list(view: VisibleObjects, choice: _Choice) -> str | None:
    names = [_a(_name(one.obj)) for one in view.clear[:3]]
    if len(set(names)) < len(names) or len(names) < 2:
        return None
    if len(names) == 3 and choice.pick((True, False)):
        return f"{names[0]}, {names[1]} and {names[2]}"
    return f"{names[0]} and {names[1]}"


def _count(view: VisibleObjects, choice: _Choice) -> str | None:
    """Counts equal objects, unless an unclear one could be one more."""
    options = []
    for describe in (_name, _kind, _colored_thing):
        unsure = {describe(obj) for obj in view.unclear}
        counts = Counter(describe(one.obj) for one in view.clear)
        options += [(words, n) for words, n in counts.items() if n > 1 and words not in unsure]
    if not options:
        return None
    words, n = choice.pick(options)
    before, _, noun = words.rpartition(" ")
    return " ".join(f"{NUMBERS[n]} {before} {PLURALS.get(noun, noun + 's')}".split())


def _total(view: VisibleObjects, choice: _Choice) -> str | None:
    if view.unclear or len(view.clear) < 2:
        return None
    by_depth = sorted(view.clear, key=lambda one: one.depth)
    count = len(by_depth)
    total = f"{NUMBERS[count]} things" if count < len(NUMBERS) else "many things"
    if by_depth[1].depth < 1.15 * by_depth[0].depth:
        return total
    return f"{_a(_name(by_depth[0].obj))} nearest, {total}"


def _relation(view: VisibleObjects, choice: _Choice) -> str | None:
    pairs: dict[str, list[tuple[VisibleObject, VisibleObject]]] = {}
    for one in view.clear:
        for other in view.clear:
            if _name(one.obj) != _name(other.obj):
                for words in _relations(one, other):
                    pairs.setdefault(words, []).append((one, other))
    if not pairs:
        return None
    # The kind of relation first: else nearly all captions would be of the frequent "left of".
    words = choice.pick(tuple(pairs))
    one, other = choice.pick(pairs[words])
    return f"{_a(_name(one.obj))} {words} {_a(_name(other.obj))}"


def _relations(one: VisibleObject, other: VisibleObject) -> list[str]:
    """Returns the relations of one object to another that are clear in the image."""
    relations = []
    if one.obj.support == other.index:
        relations.append("on")
    if _is_left(one, other):
        relations.append("left of")
    if _is_left(other, one):
        relations.append("right of")
    if other.span[0] <= one.column <= other.span[1] or one.span[0] <= other.column <= one.span[1]:
        if other.depth > BEHIND * one.depth:
            relations.append("in front of")
        if one.depth > BEHIND * other.depth:
            relations.append("behind")
    return relations


def _is_left(one: VisibleObject, other: VisibleObject) -> bool:
    is_separate = one.span[1] < other.column and one.column < other.span[0]
    return is_separate and other.column - one.column >= ASIDE


_UNNAMED = {"room": "a room", "outdoors": "open ground"}
_Form = Callable[[VisibleObjects, _Choice], str | None]
_FORMS: tuple[tuple[_Form, ...], ...] = (
    (_relation, _list),
    (_relation, _count, _list),
    (_list,),
    (_count, _list),
    (_total, _relation),
    (_one,),
)

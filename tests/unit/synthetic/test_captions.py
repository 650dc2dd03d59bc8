"""Every caption is parsed word by word and compared with the scene and what is visible."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.synthetic.captions import BIG, CLEAR, SMALL, VIEW, caption
from modality_forcing.synthetic.objects import COLORS, KINDS
from modality_forcing.synthetic.scene import Scene, SceneObject
from modality_forcing.synthetic.shading import render
from modality_forcing.synthetic.source import sample_scene

COLOR, KIND = "|".join(COLORS), "|".join(KINDS)
ONE = rf"an? (?:(?:big|small) )?(?:{COLOR}) (?:{KIND})"
PLACES = {"in a room": "room", "indoors": "room", "outdoors": "outdoors", "outside": "outdoors"}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
COUNT = 300


class Truth:
    """What an image shows, measured independently."""

    def __init__(self, scene: Scene):
        self.scene = scene
        visible = render((scene,), VIEW).visible[0]
        self.where = {
            n: np.argwhere(visible == n)
            for n, obj in enumerate(scene.objects)
            if obj.kind != "wall"
        }
        self.clear = [n for n, pixels in self.where.items() if len(pixels) >= CLEAR]
        self.unclear = [n for n, pixels in self.where.items() if 0 < len(pixels) < CLEAR]

    def obj(self, n: int) -> SceneObject:
        return self.scene.objects[n]

    def depth(self, n: int) -> float:
        camera = self.scene.camera
        return float((np.array(self.obj(n).position) - camera.position) @ np.array(camera.axes[2]))

    def called(self, words: str) -> list[int]:
        """The clear objects of which "a big red box" (or "red box", "red thing", "box") is true."""
        found = []
        for n in self.clear:
            obj, across = self.obj(n), 2 * max(self.obj(n).half)
            facts = {obj.color, obj.kind, "thing", "a", "an"}
            facts |= {"big"} if across >= BIG else {"small"} if across <= SMALL else set()
            if set(words.split()) <= facts:
                found.append(n)
        return found

    def related(self, one: int, words: str, other: int) -> bool:
        columns = [self.where[n][:, 1] for n in (one, other)]
        match words:
            case "left of":
                return (
                    columns[0].mean() + 5 < columns[1].mean()
                    and columns[0].max() < columns[1].mean()
                )
            case "right of":
                return (
                    columns[1].mean() + 5 < columns[0].mean()
                    and columns[1].max() < columns[0].mean()
                )
            case "in front of":
                return self.depth(one) * 1.25 < self.depth(other)
            case "behind":
                return self.depth(other) * 1.25 < self.depth(one)
            case "on":
                above, below = self.obj(one), self.obj(other)
                apart = np.hypot(*np.subtract(above.position, below.position)[:2])
                return above.position[2] > below.position[2] + below.half[2] and apart < max(
                    below.half
                )
        raise AssertionError(words)


def holds(said: str, truth: Truth) -> str:
    """The form of a caption, after asserting that all it says is true."""
    if not truth.clear:
        assert said in ("a room", "open ground") if truth.unclear else said.startswith("nothing ")
        return "empty"
    place = next(place for place in PLACES if said.endswith(" " + place))
    assert PLACES[place] == truth.scene.setting
    said = said.removesuffix(" " + place)
    if found := re.fullmatch(rf"({ONE}) (left of|right of|in front of|behind|on) ({ONE})", said):
        first, words, second = found.groups()
        pairs = [(a, b) for a in truth.called(first) for b in truth.called(second) if a != b]
        assert any(truth.related(a, words, b) for a, b in pairs)
        return words
    if found := re.fullmatch(rf"({ONE}) nearest, (\w+) things", said):
        assert NUMBERS[found[2]] == len(truth.clear) and not truth.unclear
        assert min(truth.clear, key=truth.depth) in truth.called(found[1])
        return "nearest"
    if re.fullmatch(rf"({ONE})(, {ONE})?( and {ONE})?", said):
        for words, times in Counter(re.findall(ONE, said)).items():
            assert len(truth.called(words)) >= times
        return "list" if " and " in said else "one"
    assert " " in said
    number, rest = said.split(maxsplit=1)
    single = rest.removesuffix("s").replace("boxe", "box")
    assert re.fullmatch(rf"(?:{COLOR}) (?:{KIND})|{KIND}|(?:{COLOR}) thing|thing", single), said
    assert len(truth.called(single)) == NUMBERS[number]
    half_seen = [truth.obj(n) for n in truth.unclear]
    assert not any({obj.color, obj.kind, "thing"} >= set(single.split()) for obj in half_seen)
    return "count"


def test_captions_are_true_short_and_of_a_known_form():
    forms, lengths, agreed = Counter(), [], set()
    for index in range(COUNT):
        scene = sample_scene(11, "captions", index)
        truth = Truth(scene)
        for wording in (scene.wording, 0.05, 0.3, 0.55, 0.7, 0.95):
            said = caption(replace(scene, wording=wording))
            forms[holds(said, truth)] += 1
            lengths.append(len(said.split()))
        agreed.add(index)
    wanted = (
        "left of",
        "right of",
        "in front of",
        "behind",
        "on",
        "nearest",
        "list",
        "one",
        "count",
    )
    assert all(forms[form] > 0.002 * sum(forms.values()) for form in wanted), forms
    assert max(lengths) <= 13 and np.mean(np.array(lengths) <= 12) > 0.9
    assert forms["empty"] < 0.1 * sum(forms.values())


def test_false_captions_are_detected():
    truth = next(
        t
        for t in (Truth(sample_scene(11, "captions", i)) for i in range(50))
        if len(t.clear) > 2 and not t.unclear
    )
    place = "indoors" if truth.scene.setting == "room" else "outdoors"
    absent = next(c for c in COLORS if c not in {obj.color for obj in truth.scene.objects})
    for false in (f"a {absent} box {place}", f"eight objects {place}", "nothing indoors"):
        with pytest.raises(AssertionError):
            holds(false, truth)


def test_caption_does_not_depend_on_resolution():
    for index in range(25):
        scene = sample_scene(0, "train", index)
        views = (render((scene,), size).visible[0] for size in (16, 32, 40))
        said = {caption(scene)} | {caption(scene, view) for view in views}
        assert len(said) == 1


def test_wordings_vary():
    crowded = next(
        scene
        for scene in (sample_scene(0, "train", i) for i in range(50))
        if len(Truth(scene).clear) > 3
    )
    assert len({caption(replace(crowded, wording=w)) for w in np.linspace(0, 0.999, 60)}) > 8


def test_hidden_objects_are_not_named():
    empty = replace(sample_scene(0, "train", 0), objects=())
    assert caption(empty).startswith("nothing ")
    assert re.search(r"\d", caption(empty)) is None

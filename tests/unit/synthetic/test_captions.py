"""Every caption is read back, word by word, and held against the scene and what is visible of it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.synthetic.captions import BIG, CLEAR, SMALL, VIEW, caption
from modality_forcing.synthetic.objects import COLOURS, KINDS
from modality_forcing.synthetic.raycast import Scene, Thing
from modality_forcing.synthetic.shading import render
from modality_forcing.synthetic.source import scene

COLOUR, KIND = "|".join(COLOURS), "|".join(KINDS)
ONE = rf"an? (?:(?:big|small) )?(?:{COLOUR}) (?:{KIND})"
PLACES = {"in a room": "room", "indoors": "room", "outdoors": "outdoors", "outside": "outdoors"}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
DRAWN = 300


class Truth:
    """What a picture shows, measured from its ids in a way of its own."""

    def __init__(self, drawn: Scene):
        self.drawn = drawn
        visible = render(drawn, VIEW)[4]
        self.where = {
            n: np.argwhere(visible == n)
            for n, thing in enumerate(drawn.things)
            if thing.kind != "wall"
        }
        self.clear = [n for n, pixels in self.where.items() if len(pixels) >= CLEAR]
        self.doubtful = [n for n, pixels in self.where.items() if 0 < len(pixels) < CLEAR]

    def thing(self, n: int) -> Thing:
        return self.drawn.things[n]

    def depth(self, n: int) -> float:
        camera = self.drawn.camera
        return float(
            (np.array(self.thing(n).position) - camera.position) @ np.array(camera.axes[2])
        )

    def called(self, words: str) -> list[int]:
        """The clear things of which "a big red box" (or "red box", "red thing", "box") is true."""
        found = []
        for n in self.clear:
            thing, across = self.thing(n), 2 * max(self.thing(n).half)
            facts = {thing.colour, thing.kind, "thing", "a", "an"}
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
                above, below = self.thing(one), self.thing(other)
                apart = np.hypot(*np.subtract(above.position, below.position)[:2])
                return above.position[2] > below.position[2] + below.half[2] and apart < max(
                    below.half
                )
        raise AssertionError(words)


def holds(said: str, truth: Truth) -> str:
    """The form of a caption, after asserting that all it says is true."""
    if not truth.clear:
        assert said in ("a room", "open ground") if truth.doubtful else said.startswith("nothing ")
        return "empty"
    place = next(place for place in PLACES if said.endswith(" " + place))
    assert PLACES[place] == truth.drawn.setting
    said = said.removesuffix(" " + place)
    if found := re.fullmatch(rf"({ONE}) (left of|right of|in front of|behind|on) ({ONE})", said):
        first, words, second = found.groups()
        pairs = [(a, b) for a in truth.called(first) for b in truth.called(second) if a != b]
        assert any(truth.related(a, words, b) for a, b in pairs)
        return words
    if found := re.fullmatch(rf"({ONE}) nearest, (\w+) things", said):
        assert NUMBERS[found[2]] == len(truth.clear) and not truth.doubtful
        assert min(truth.clear, key=truth.depth) in truth.called(found[1])
        return "nearest"
    if re.fullmatch(rf"({ONE})(, {ONE})?( and {ONE})?", said):
        for words, times in Counter(re.findall(ONE, said)).items():
            assert len(truth.called(words)) >= times
        return "list" if " and " in said else "one"
    assert " " in said
    number, rest = said.split(maxsplit=1)
    single = rest.removesuffix("s").replace("boxe", "box")
    assert re.fullmatch(rf"(?:{COLOUR}) (?:{KIND})|{KIND}|(?:{COLOUR}) thing|thing", single), said
    assert len(truth.called(single)) == NUMBERS[number]
    half_seen = [truth.thing(n) for n in truth.doubtful]
    assert not any(
        {thing.colour, thing.kind, "thing"} >= set(single.split()) for thing in half_seen
    )
    return "count"


def test_every_caption_is_true_short_and_of_a_known_form():
    forms, lengths, agreed = Counter(), [], set()
    for index in range(DRAWN):
        drawn = scene(11, "captions", index)
        truth = Truth(drawn)
        for wording in (drawn.wording, 0.05, 0.3, 0.55, 0.7, 0.95):
            said = caption(replace(drawn, wording=wording))
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


def test_the_reader_of_this_test_notices_lies():
    truth = next(
        t
        for t in (Truth(scene(11, "captions", i)) for i in range(50))
        if len(t.clear) > 2 and not t.doubtful
    )
    place = "indoors" if truth.drawn.setting == "room" else "outdoors"
    absent = next(c for c in COLOURS if c not in {thing.colour for thing in truth.drawn.things})
    for lie in (f"a {absent} box {place}", f"eight things {place}", "nothing indoors"):
        with pytest.raises(AssertionError):
            holds(lie, truth)


def test_the_caption_is_the_same_at_every_resolution():
    for index in range(25):
        drawn = scene(0, "train", index)
        said = {caption(drawn)} | {caption(drawn, render(drawn, size)[4]) for size in (16, 32, 40)}
        assert len(said) == 1


def test_wordings_differ():
    crowded = next(
        drawn for drawn in (scene(0, "train", i) for i in range(50)) if len(Truth(drawn).clear) > 3
    )
    assert len({caption(replace(crowded, wording=w)) for w in np.linspace(0, 0.999, 60)}) > 8


def test_what_cannot_be_seen_is_not_named():
    empty = replace(scene(0, "train", 0), things=())
    assert caption(empty).startswith("nothing ")
    assert re.search(r"\d", caption(empty)) is None

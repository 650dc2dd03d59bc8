"""The tabs of the page: what a click asks for, and where the answer is shown."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modality_forcing.app import actions
from modality_forcing.app.actions import Answer
from modality_forcing.app.examples import Example
from modality_forcing.app.sessions import Sessions
from modality_forcing.app.settings import KEEP_ALL, Settings
from modality_forcing.inference.pipeline import Pipeline

# It is not imported here, which takes seconds.
missing = importlib.util.find_spec("gradio") is None
pytestmark = pytest.mark.skipif(missing, reason="needs gradio")

EXAMPLE = Example(Path("/examples/scene.png"), Path("/examples/depth.npy"), "a box")
MADE = Answer(
    image=Path("image.png"),
    depth=Path("depth.png"),
    normals=Path("normals.png"),
    uncertainty=Path("spread.png"),
    scene=Path("scene.glb"),
    files=(Path("depth.npy"), Path("points.ply")),
    note="in meters",
)
FILES = ["depth.npy", "points.ply"]
SHARED = {"Steps": 5, "Seed": 7}  # values by label
OF_DEPTH = {"Field of view": 40, "Jumps of depth": 20, "Colors of depth": "gray"}


class NoModel(Pipeline):
    """What the page hands on to `actions`, which these tests replace."""

    def __init__(self) -> None:
        pass


def short(label: str) -> str:
    """A label without what explains it."""
    return label.partition(":")[0].partition(" (")[0]


class Opened:
    """A built page that is clicked on without a server."""

    def __init__(self, root: Path, *, has_depth: bool, has_normals: bool = False):
        import gradio

        from modality_forcing.app import page

        self.request = gradio.Request(session_hash="someone")
        self.sessions, self.model = Sessions(root), NoModel()
        self.blocks = page.build(
            page.Page(
                *(self.model, self.sessions, [EXAMPLE]),
                has_depth=has_depth,
                has_normals=has_normals,
                about="Runs on a CPU.",
                max_bytes=50 * 10**6,
            )
        )

    def labels(self, kind: str) -> list[str | None]:
        blocks = self.blocks.blocks.values()
        return [getattr(x, "label", None) for x in blocks if type(x).__name__ == kind]

    def event(self, name: str, target: str = "") -> Any:
        """The first event of that name, of the component of an id or a text."""
        for found in self.blocks.fns.values():
            ((of, event),) = found.targets
            here = self.blocks.blocks.get(of or -1)
            names = (getattr(here, "elem_id", None), getattr(here, "value", None))
            if event == name and (not target or target in names):
                return found
        raise AssertionError(f"no event {name} of {target}")

    def click(self, button: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Clicks with some values, by label, set; returns what is shown, by id or kind."""
        event, left = self.event("click", button), dict(values or {})
        inputs = [left.pop(short(x.label), x.value) for x in event.inputs]
        assert not left
        shown = event.fn(self.request, *inputs)
        ids = [x.elem_id or type(x).__name__ for x in event.outputs]
        return dict(zip(ids, shown, strict=True))


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Opened:
    return Opened(tmp_path_factory.mktemp("page"), has_depth=True)


@pytest.fixture(scope="module")
def with_normals(tmp_path_factory) -> Opened:
    return Opened(tmp_path_factory.mktemp("page"), has_depth=True, has_normals=True)


@pytest.fixture(scope="module")
def images_only(tmp_path_factory) -> Opened:
    return Opened(tmp_path_factory.mktemp("page"), has_depth=False)


@pytest.fixture
def asked(monkeypatch) -> list[tuple[Any, ...]]:
    """Replaces the actions by a stub; returns the arguments of their calls."""
    calls: list[tuple[Any, ...]] = []

    def stub(name: str) -> Callable[..., Answer]:
        return lambda *values, **more: calls.append((name, *values, more)) or MADE

    for name in ("image_to_depth", "depth_to_image", "image_to_normals", "generate"):
        monkeypatch.setattr(actions, name, stub(name))
    return calls


def test_network_without_depth_has_the_text_alone(opened, with_normals, images_only):
    both = ["Image → depth", "Depth → image"]
    assert opened.labels("Tab") == [*both, "Text → both"]
    assert with_normals.labels("Tab") == [*both, "Image → normals", "Text → all"]
    assert images_only.labels("Tab") == [] and images_only.labels("Textbox") == ["Caption", None]
    assert {"Trajectory", "Guidance", "Steps"} <= set(images_only.labels("Slider"))
    assert "Field of view" not in images_only.labels("Slider")
    results = ("text_image", "text_depth", "text_normals", "text_scene")

    def shown(page: Opened) -> list[bool]:
        visible = {x.elem_id: x.visible for x in page.blocks.blocks.values()}
        return [visible[name] is True for name in results]

    assert shown(images_only) == [True, False, False, False]
    assert shown(opened) == [True, True, False, True] and all(shown(with_normals))


def test_nothing_of_the_page_is_an_api_and_work_waits_in_one_queue(opened):
    events = list(opened.blocks.fns.values())
    assert {event.api_visibility for event in events} == {"private"}
    work = [event for event in events if event.concurrency_id == "device"]
    assert len(work) == 3 and {event.concurrency_limit for event in work} == {1}


def test_photo_is_estimated_with_its_settings(opened, asked):
    values = {"Ensemble": 3, "Condition guidance": 2.5, **SHARED, **OF_DEPTH}
    files = {"Image": "/uploads/photo.jpg", "Table": "/uploads/points.csv"}
    shown = opened.click("i2d_run", files | values)
    ((name, model, image, folder, settings, more),) = asked
    assert (name, model, image) == ("image_to_depth", opened.model, Path("/uploads/photo.jpg"))
    assert more == {"measured": Path("/uploads/points.csv")}
    expected = Settings(steps=5, seed=7, fov=40, jump=20, colormap="gray", ensemble=3)
    assert settings == replace(expected, condition_guidance=2.5)
    assert folder.is_dir() and folder.parent == opened.sessions.root / "answers"
    opened.sessions.close("someone")
    assert not folder.exists()
    assert (shown["i2d_depth"], shown["i2d_scene"], shown["i2d_files"]) == (
        *("depth.png", "scene.glb"),
        FILES,
    )
    note, spread = shown["Markdown"], shown["i2d_uncertainty"]
    assert (note["value"], note["visible"]) == ("in meters", True)
    assert (spread["value"], spread["visible"]) == ("spread.png", True)
    assert shown["Button"]["visible"]  # to use this depth for an image


def test_first_click_has_the_default_settings(opened, images_only, asked):
    for page, button in ((opened, "i2d_run"), (opened, "d2i_run"), (images_only, "text_run")):
        page.click(button)
    opened.click("text_run")
    default = Settings()
    assert [call[-2] for call in asked] == [default, default, default, Settings(jump=KEEP_ALL)]
    assert asked[0][2] is None and asked[1][2] is None  # no file
    assert len({call[-3] for call in asked}) == 4  # a folder for each answer


def test_depth_map_is_given_with_its_caption_and_settings(opened, asked):
    given = {"Depth map": "/uploads/map.npy", "Caption": "a box", "Strength": 0.5}
    guidance = {"Guidance": 4.0, "Condition guidance": 2.5}
    points = {name: OF_DEPTH[name] for name in ("Field of view", "Jumps of depth")}
    shown = opened.click("d2i_run", given | guidance | points | SHARED)
    ((name, model, file, caption, _, settings, _),) = asked
    assert (name, model, file) == ("depth_to_image", opened.model, Path("/uploads/map.npy"))
    assert caption == "a box"
    expected = Settings(steps=5, seed=7, fov=40, jump=20, guidance=4.0, condition_guidance=2.5)
    assert settings == replace(expected, strength=0.5)
    assert shown == {"d2i_image": "image.png", "d2i_scene": "scene.glb", "d2i_files": FILES}


def test_normals_are_estimated_with_their_settings(with_normals, asked):
    values = {"Image": "/uploads/photo.jpg", "Condition guidance": 2.5, **SHARED}
    shown = with_normals.click("i2n_run", values)
    ((name, model, image, _, settings, _),) = asked
    expected = ("image_to_normals", with_normals.model, Path("/uploads/photo.jpg"))
    assert (name, model, image) == expected
    assert settings == Settings(steps=5, seed=7, condition_guidance=2.5)
    assert shown == {"i2n_normals": "normals.png", "i2n_files": FILES}


@pytest.mark.parametrize("has_depth", [True, False])
def test_caption_is_generated_with_its_settings(opened, images_only, asked, has_depth):
    page = opened if has_depth else images_only
    values = {"Caption": "a box", "Trajectory": -2, "Refine": True, "Guidance": 4.0, **SHARED}
    shown = page.click("text_run", values | (OF_DEPTH if has_depth else {}))
    ((name, model, caption, _, settings, more),) = asked
    assert (name, model, caption) == ("generate", page.model, "a box")
    assert more == {"has_depth": has_depth}
    expected = Settings(log2_alpha=-2, refine=True, guidance=4.0, steps=5, seed=7)
    if has_depth:
        expected = replace(expected, fov=40, jump=20, colormap="gray")
    assert settings == expected
    images = {"text_image": "image.png", "text_depth": "depth.png", "text_scene": "scene.glb"}
    assert shown == {**images, "text_normals": "normals.png", "text_files": FILES}


def test_uploaded_map_is_previewed(opened, monkeypatch):
    monkeypatch.setattr(actions, "preview", lambda path, folder: path and folder / path.name)
    show = opened.event("change", "d2i_file")
    assert Path(show.fn(opened.request, "/uploads/map.npy")).name == "map.npy"
    assert show.fn(opened.request, None) is None
    assert [x.elem_id for x in show.outputs] == ["d2i_given"]


def test_estimated_depth_is_used_in_the_next_tab(opened):
    event = opened.event("click", "Use this depth for an image")
    file, tabs = event.fn(FILES)
    assert file == "depth.npy" and tabs.selected == "d2i"
    assert event.fn(None)[0] is None
    assert [x.elem_id for x in event.inputs] == ["i2d_files"]
    assert event.outputs[0].elem_id == "d2i_file"


def test_examples_fill_the_fields_of_their_tab(opened):
    events = [event for event in opened.blocks.fns.values() if event.concurrency_limit is None]
    filled = [(event.fn(0), [short(x.label) for x in event.outputs]) for event in events]
    assert filled == [
        (str(EXAMPLE.image), ["Image"]),
        ([str(EXAMPLE.depth), "a box"], ["Depth map", "Caption"]),
        ("a box", ["Caption"]),
    ]


def test_files_of_a_session_are_removed_when_it_ends(opened):
    mine, other = opened.sessions.new_folder("someone"), opened.sessions.new_folder("another")
    opened.event("unload").fn(opened.request)
    assert not mine.exists() and other.is_dir()

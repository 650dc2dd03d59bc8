"""What the page passes on: settings, files that were uploaded, and mistakes in one line."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modality_forcing.app import settings as choices
from modality_forcing.app.settings import KEEP_ALL, Settings
from modality_forcing.errors import UserError

# It is not imported here, which takes seconds.
missing = importlib.util.find_spec("gradio") is None
pytestmark = pytest.mark.skipif(missing, reason="needs gradio")
SHARED = ("condition_guidance", "guidance", "fov", "jump", "steps", "seed", "colormap")


@pytest.fixture(scope="module")
def widgets() -> ModuleType:
    from modality_forcing.app import widgets

    return widgets


@pytest.fixture(scope="module")
def gr() -> ModuleType:
    import gradio

    return gradio


@pytest.fixture(scope="module")
def offered(widgets, gr) -> dict[str, Any]:
    """The components of all settings that tabs share."""
    with gr.Blocks():
        names, components = widgets.settings(*SHARED)
    assert names == SHARED
    return dict(zip(names, components, strict=True))


# ---- Settings


def test_components_start_with_the_default_settings(widgets, gr, offered):
    values = [component.value for component in offered.values()]
    assert widgets.read_settings(SHARED, values) == Settings()
    with gr.Blocks():
        _, (jump,) = widgets.settings("jump", jump=KEEP_ALL)
    assert jump.value == KEEP_ALL


def test_components_offer_what_settings_take_and_nothing_more(widgets, offered):
    for name, component in offered.items():
        if name == "colormap":
            assert [value for _, value in component.choices] == list(choices.COLORMAPS)
            continue
        for value in (component.minimum, component.maximum):
            assert getattr(widgets.read_settings([name], [value]), name) == value
        for value in (component.minimum - 1, component.maximum + 1):
            with pytest.raises(UserError, match=f"{name.replace('_', ' ')} is {value}"):
                widgets.read_settings([name], [value])


@pytest.mark.usefixtures("unchecked")
def test_typed_numbers_reach_the_settings_as_they_are(widgets, offered):
    """Gradio itself would print a traceback for them."""
    assert offered["steps"].preprocess("many") == "many"
    assert offered["seed"].preprocess(1e99) == 1e99
    with pytest.raises(UserError, match=r"steps is 'many'; choose a whole number"):
        widgets.read_settings(["steps"], ["many"], refine=True)


def test_empty_field_is_the_default_and_others_are_added_by_name(widgets):
    found = widgets.read_settings(("steps", "fov"), (None, 40), ensemble=2.0, strength=None)
    assert found == Settings(fov=40, ensemble=2)


# ---- Errors


def test_mistake_is_one_line_without_the_folder_of_an_upload(widgets, gr, capfd):
    path = "/srv/secret/0a1b/my  photo.jpg"  # Gradio keeps both spaces

    def run(request: object, picture: str, caption: str) -> None:
        raise UserError("cannot be read as an image", where=Path(picture), hint="upload one")

    wrapped = widgets.in_one_line(run)
    # Gradio looks for a request in it.
    assert inspect.signature(wrapped) == inspect.signature(run)
    with pytest.raises(gr.Error) as raised:
        wrapped(None, path, "a/b")
    assert raised.value.message == "my photo.jpg: cannot be read as an image; upload one"
    assert not raised.value.print_exception and capfd.readouterr() == ("", "")


def test_bug_is_a_traceback_on_the_console_alone(widgets, gr, capfd):
    def run(value: str) -> None:
        raise RuntimeError(f"a bug with {value}")

    with pytest.raises(gr.Error) as raised:
        widgets.in_one_line(run)("/srv/secret/photo.jpg")
    assert raised.value.message == "something failed on the server; its console says what"
    printed = capfd.readouterr().err
    assert "Traceback" in printed and "a bug with /srv/secret/photo.jpg" in printed
    assert widgets.in_one_line(lambda x, *, y: (x, y))(1, y=2) == (1, 2)


def test_request_that_cannot_be_read_is_one_line(widgets, gr, capfd):
    async def read(value: Any) -> Any:
        if value == "own":
            raise gr.Error("this file was not uploaded here")
        return {"known": 1}[value]

    reading = widgets.refusing_others(read)
    assert asyncio.run(reading("known")) == 1
    with pytest.raises(gr.Error, match="was not uploaded here"):
        asyncio.run(reading("own"))
    assert capfd.readouterr().err == ""
    with pytest.raises(gr.Error) as raised:
        asyncio.run(reading("a\nb" * 500))
    assert raised.value.message == "this request holds what the page does not send"
    printed = capfd.readouterr().err
    assert printed.startswith("refused a request: KeyError: ")
    assert printed.count("\n") == 1 and len(printed) < 300


# ---- Uploads


@pytest.fixture
def component(widgets, gr, tmp_path: Path) -> Any:
    (tmp_path / "uploads").mkdir()
    made = gr.File()
    widgets.accept_uploads(made, tmp_path / "uploads")
    return made


def list_files(*files: Any) -> Any:
    from gradio.data_classes import ListFiles

    return ListFiles(list(files))


def test_uploaded_file_is_passed_on_unread(component, gr, tmp_path: Path):
    data, path = gr.FileData, tmp_path / "uploads" / "photo.jpg"
    path.write_text("no image")
    real = str(path.resolve())
    assert component.preprocess(data(path=str(path))) == real
    assert component.move_resource_to_block_cache(path) == real
    assert asyncio.run(component.async_move_resource_to_block_cache(str(path))) == real
    several = list_files(data(path=str(path)), data(path=str(path)))
    assert component.preprocess(several) == [real, real]
    assert component.preprocess(None) is None
    assert component.move_resource_to_block_cache(None) is None


def test_other_files_are_refused(component, gr, tmp_path: Path):
    root, outside = tmp_path / "uploads", tmp_path / "uploads.txt"
    outside.write_text("secret")
    (root / "link").symlink_to(outside)
    (root / "folder").mkdir()
    others = (outside, root / "link", root / "folder", root / "none", root / "../uploads.txt", root)
    for path in (*map(str, others), "http://127.0.0.1/photo.jpg", "photo.jpg"):
        for read in (
            component.move_resource_to_block_cache,
            lambda path: asyncio.run(component.async_move_resource_to_block_cache(path)),
            lambda path: component.preprocess(gr.FileData(path=path)),
            lambda path: component.preprocess(list_files(gr.FileData(path=path))),
        ):
            with pytest.raises(gr.Error, match="this file was not uploaded here"):
                read(path)
    unnamed = gr.FileData.model_construct(path=None, url="data:image/png;base64,AAAA")
    with pytest.raises(gr.Error, match="this file was not uploaded here"):
        component.preprocess(unnamed)

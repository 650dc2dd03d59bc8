"""The components that the tabs of the page share, and how their events are handled."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import gradio as gr
from gradio.components import Component
from gradio.data_classes import FileData, ImageData, ListFiles

from modality_forcing import paths
from modality_forcing.app import settings as choices
from modality_forcing.app.settings import Settings
from modality_forcing.errors import UserError
from modality_forcing.progress import print_stderr

_ONE_DEVICE = "device"  # all that computes waits in one queue
_BACKGROUND = (0.12, 0.13, 0.15, 1.0)  # of point clouds: most are light or colored
_UNKNOWN = "something failed on the server; its console says what"
_NOT_OF_THE_PAGE = "this request holds what the page does not send"
_LINE = 200  # characters of a console's line on it

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Component)
Preprocess = TypeVar("Preprocess", bound=Callable[..., Awaitable[object]])


def settings(*names: str, jump: float = Settings.jump) -> tuple[tuple[str, ...], list[Component]]:
    """Adds the components of settings that tabs share, folded; returns them with their names."""
    make = {
        "fov": lambda: gr.Slider(
            *(0, 150, 0),
            step=1,
            label="Field of view",
            info="In degrees across the longer side; 0: as the photo says, else 65.",
        ),
        "jump": lambda: gr.Slider(
            *(1, choices.KEEP_ALL, jump),
            step=1,
            label="Jumps of depth",
            info="In percent: points where depth jumps by more are left out; at 100 none is.",
        ),
        "guidance": lambda: gr.Slider(
            *(0, choices.MAX_GUIDANCE, 0),
            step=0.5,
            label="Guidance",
            info="Influence of the caption; 0: as the checkpoint's config says.",
        ),
        "condition_guidance": lambda: gr.Slider(
            *(0, choices.MAX_CONDITION_GUIDANCE, 0),
            step=0.5,
            label="Condition guidance",
            info="Above 1 the output follows the input more closely; 0: the checkpoint's config.",
        ),
        "steps": lambda: gr.Slider(
            *(0, choices.MAX_STEPS, 0),
            step=1,
            label="Steps",
            info="Of the sampler; 0: as the checkpoint's config says.",
        ),
        "seed": lambda: gr.Number(0, precision=0, minimum=0, maximum=2**31 - 1, label="Seed"),
        "colormap": lambda: gr.Radio(
            list(choices.COLORMAPS), value=choices.COLORMAPS[0], label="Colors of depth"
        ),
    }
    with gr.Accordion("More settings", open=False):
        return names, [checked_by_settings(make[name]()) for name in names]


def checked_by_settings(component: C) -> C:
    """Returns a component whose values pass as they come, for `Settings` to check.

    Gradio would print a traceback for a number that somebody typed.
    """
    component.preprocess = lambda payload: payload
    return component


def read_settings(names: Sequence[str], values: Sequence[object], **more: object) -> Settings:
    """Returns settings from the values of components; raises UserError for one not offered."""
    chosen = dict(zip(names, values, strict=True)) | more
    return choices.parse_settings({name: v for name, v in chosen.items() if v is not None})


def shown(label: str, name: str, *, visible: bool = True, height: int = 300) -> gr.Image:
    """Adds a place for an image that is made, with every pixel of a small one visible."""
    return gr.Image(
        label=label,
        elem_id=name,
        elem_classes="shown",
        type="filepath",
        format="png",
        interactive=False,
        height=height,
        buttons=["fullscreen"],
        visible=visible,
    )


def scene(name: str, *, visible: bool = True) -> gr.Model3D:
    """Adds a place for a point cloud that can be turned."""
    return gr.Model3D(
        label="Point cloud",
        elem_id=name,
        interactive=False,
        height=340,
        display_mode="point_cloud",
        clear_color=_BACKGROUND,
        visible=visible,
    )


def downloads(name: str) -> gr.File:
    """Adds a list of files to download."""
    return gr.File(
        label="Files", file_count="multiple", type="filepath", interactive=False, elem_id=name
    )


def on_click(
    button: gr.Button,
    run: Callable[..., object],
    inputs: Sequence[Component],
    outputs: Sequence[Component],
) -> None:
    """Runs a function at a click, one at a time over all buttons."""
    button.click(
        in_one_line(run),
        list(inputs),
        list(outputs),
        concurrency_limit=1,
        concurrency_id=_ONE_DEVICE,
        api_visibility="private",
        show_progress_on=list(outputs)[:1],
    )


def in_one_line(run: Callable[P, T]) -> Callable[P, T]:
    """Wraps a function so that a user's mistake is one line on the page."""

    @functools.wraps(run)
    def wrapped(*values: P.args, **more: P.kwargs) -> T:
        try:
            return run(*values, **more)
        except UserError as error:
            raise gr.Error(_without_folders(str(error), values), print_exception=False) from None
        except Exception:
            print_stderr(traceback.format_exc())
            raise gr.Error(_UNKNOWN, print_exception=False) from None

    return wrapped


def refusing_others(preprocess: Preprocess) -> Preprocess:
    """Wraps what reads the values of a request: those that it cannot read are one line."""

    @functools.wraps(preprocess)
    async def wrapped(*values: object, **more: object) -> object:
        try:
            return await preprocess(*values, **more)
        except gr.Error:
            raise
        except Exception as error:
            line = " ".join(str(error).split())[:_LINE]
            print_stderr(f"refused a request: {type(error).__name__}: {line}")
            raise gr.Error(_NOT_OF_THE_PAGE, print_exception=False) from None

    return cast(Preprocess, wrapped)


def _without_folders(text: str, values: Sequence[object]) -> str:
    """Returns a message with the names of uploaded files in place of where they are."""
    for value in values:
        if isinstance(value, str) and os.sep in value:
            path = " ".join(value.split())  # as an error has it, which is one line
            text = text.replace(path, os.path.basename(path))
    return text


def accept_uploads(component: Component, root: Path) -> None:
    """Makes a component pass on the path of an uploaded file, unread, and nothing else.

    Gradio itself would download addresses, unpack data in a request, and open images by itself,
    whose errors say nothing to a user. The methods of this object are replaced, since Gradio writes
    a file beside the module of every subclass.
    """

    def check(url_or_file_path: str | Path | None) -> str | None:  # as Gradio names it
        if url_or_file_path is None:
            return None
        real = os.path.realpath(url_or_file_path)
        if not real.startswith(os.path.realpath(root) + os.sep) or not paths.is_file(real):
            raise gr.Error("this file was not uploaded here", print_exception=False)
        return real

    async def check_later(url_or_file_path: str | Path | None) -> str | None:
        return check(url_or_file_path)

    def preprocess(
        payload: FileData | ImageData | ListFiles | None,
    ) -> str | list[str | None] | None:
        if payload is None:
            return None
        if isinstance(payload, ListFiles):
            return [check(one.path) for one in payload]
        if payload.path is None:
            raise gr.Error("this file was not uploaded here", print_exception=False)
        return check(payload.path)

    component.move_resource_to_block_cache = check
    component.async_move_resource_to_block_cache = check_later
    component.preprocess = preprocess
